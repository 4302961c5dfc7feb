"""The parameters of MAIL and RCPT: how each is read, and where its value goes. ``extensions`` says which there are.

Those of delivery reports stand in ``dsn``, those that say when a message is to be delivered in ``delivery``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pillarbox.errors import PROGRAM_ENDS, Reject
from pillarbox.extension import Asked, Parameter
from pillarbox.session import BodyType
from pillarbox.smtp import reply
from pillarbox.smtp.grammar import GrammarError, decode_xtext, parse_mailbox, parse_parameters
from pillarbox.smtp.reply import Refused, Reply, wrong_parameter


def parse(text: str, table: Mapping[str, Parameter], asked: Asked) -> None:
    """Read the parameters onto ``asked``; raises Refused, and then ``asked`` is to be thrown away."""
    try:
        found = parse_parameters(text)
    except GrammarError as problem:
        raise Refused(wrong_parameter(str(problem))) from problem
    args = asked.address.args
    for keyword, value in found:
        args[keyword] = True if value is None else value
        parameter = table.get(keyword)
        if parameter is None:
            if not asked.options.lenient_parameters:
                raise Refused(reply.unknown_parameter(keyword))
        elif not value if parameter.takes_value else value is not None:
            needs = "needs a" if parameter.takes_value else "takes no"
            raise Refused(wrong_parameter(f"parameter {keyword} {needs} value"))
        else:
            meant = _applied(parameter, asked, value or "")
            if meant is not None:
                args[keyword] = meant


def _applied(parameter: Parameter, asked: Asked, value: str) -> object:
    try:
        return _checked(parameter.apply(asked, value))
    except Reject as reject:
        raise Refused(reply.from_reject(reject, reply.BAD_PARAMETERS)) from reject
    except (Refused, *PROGRAM_ENDS):
        raise
    except BaseException as error:  # an application's own parameter
        raise Refused(reply.LOCAL_ERROR, error) from error


def _checked(meant: object) -> object:
    if isinstance(meant, Reject):  # returned where it was to be raised, as of a handler
        raise meant
    if hasattr(meant, "__await__"):
        getattr(meant, "close", bool)()  # a coroutine that is forgotten would warn of it
        raise TypeError(f"a parameter's apply returned {type(meant).__name__}: nothing is awaited here")
    return meant


# --- What each means


def keep(_: Asked, __: str) -> None:
    """Leave a parameter as it was sent."""


def size(asked: Asked, value: str, too_large: Reply) -> None:
    """SIZE: refuse what would be too large anyway."""
    # RFC 1870 3: 'size-value ::= 1*20DIGIT'.
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise Refused(wrong_parameter("syntax of SIZE"))
    limit = asked.options.size
    if limit is not None and int(value) > limit:
        raise Refused(too_large)


def body(asked: Asked, value: str) -> None:
    """BODY: what the message is made of."""
    known: dict[str, BodyType] = {"7BIT": "7bit", "8BITMIME": "8bitmime"}
    if asked.options.binarymime:
        known["BINARYMIME"] = "binarymime"
    body_type = known.get(upper(value))
    if body_type is None:
        raise Refused(wrong_parameter(f"BODY must be {' or '.join(known)}"))
    asked.envelope.body_type = body_type


def smtputf8(asked: Asked, _: str) -> None:
    """SMTPUTF8: addresses and header fields may be in UTF-8."""
    asked.envelope.smtp_utf8 = True


def require_tls(asked: Asked, _: str) -> None:
    """REQUIRETLS: deliver it over TLS or not at all."""
    # RFC 8689 2: "The session itself MUST employ TLS transmission."
    if not asked.session.secure:
        raise Refused(reply.REQUIRETLS_NEEDS_TLS)
    asked.envelope.require_tls = True
    # RFC 8689 5: "If both RET=FULL and REQUIRETLS are present, the RET=FULL MUST be disregarded." (See `dsn.ret`.)
    if asked.envelope.dsn.ret == "FULL":
        asked.envelope.dsn = replace(asked.envelope.dsn, ret="HDRS")


def auth(asked: Asked, value: str) -> None:
    """AUTH: who submitted it first."""
    # RFC 4954 8: "The decoded form of the xtext MUST be either a <mailbox> or the two characters "<>"".
    mailbox = xtext(value, "AUTH")
    if mailbox != "<>" and mailbox[:1] == "<" and mailbox[-1:] == ">":  # as curl writes it
        mailbox = mailbox[1:-1]
    try:
        submitter = "" if mailbox == "<>" else parse_mailbox(mailbox, lenient=asked.options.lenient_address_parsing)
    except GrammarError:  # as Dovecot sends a user name: nobody, as far as the RFC goes, and no reason to lose mail
        submitter = ""
    # RFC 4954 5: "If the server does not sufficiently trust the authenticated identity of the client, or if the client
    # is not authenticated, then the server MUST behave as if the AUTH=<> parameter was supplied." Whether a client that
    # has logged in is to be believed only the application knows.
    asked.envelope.submitter = submitter if asked.session.user is not None else ""


def upper(value: str) -> str:
    """Return a keyword in upper case; ASCII only, or "ſ" would pass for "S"."""
    return value.upper() if value.isascii() else value


def xtext(value: str, keyword: str) -> str:
    """Decode a value; raises Refused."""
    try:
        return decode_xtext(value)
    except GrammarError as problem:
        raise Refused(wrong_parameter(f"{keyword} is not valid xtext")) from problem
