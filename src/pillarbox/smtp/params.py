"""The parameters of MAIL and RCPT: how each is read, and where its value goes. ``extensions`` says which there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pillarbox.errors import Reject
from pillarbox.extension import Asked, Parameter
from pillarbox.session import BodyType, Recipient
from pillarbox.smtp import reply
from pillarbox.smtp.grammar import GrammarError, decode_xtext, parse_parameters
from pillarbox.smtp.reply import Refused, Reply


def parse(text: str, table: Mapping[str, Parameter], asked: Asked) -> None:
    """Read the parameters onto ``asked``; raises Refused, and then ``asked`` is to be thrown away."""
    try:
        found = parse_parameters(text)
    except GrammarError as problem:
        raise Refused(wrong(str(problem))) from problem
    args = asked.address.args
    for keyword, value in found:
        args[keyword] = True if value is None else value
        parameter = table.get(keyword)
        if parameter is None:
            _check_unknown(keyword, asked)
        elif not value if parameter.takes_value else value is not None:
            raise Refused(wrong(f"parameter {keyword} {'needs a' if parameter.takes_value else 'takes no'} value"))
        else:
            meant = _applied(parameter, asked, value or "")
            if meant is not None:
                args[keyword] = meant


def _check_unknown(keyword: str, asked: Asked) -> None:
    # RFC 5321 4.1.1.11: "If the server SMTP does not recognize or cannot implement one or more of the parameters
    # associated with a particular MAIL FROM or RCPT TO command, it will return code 555."
    if not asked.options.lenient_parameters:
        raise Refused(Reply(555, "5.5.4", f"Error: parameter {keyword} is not supported"))


def _applied(parameter: Parameter, asked: Asked, value: str) -> object:
    try:
        return _not_awaitable(parameter.apply(asked, value))
    except Reject as reject:
        raise Refused(reply.from_reject(reject, reply.BAD_PARAMETERS)) from reject
    except Refused:
        raise
    except Exception as error:  # an application's own parameter
        raise Refused(reply.LOCAL_ERROR, error) from error


def _not_awaitable(meant: object) -> object:
    if hasattr(meant, "__await__"):
        getattr(meant, "close", bool)()  # a coroutine that is forgotten would warn of it
        raise TypeError(f"a parameter's apply returned {type(meant).__name__}: nothing is awaited here")
    return meant


def wrong(problem: str) -> Reply:
    """Return the reply to a parameter whose value is wrong."""
    return Reply(501, "5.5.4", f"Error: {problem}")


# --- What each means


def keep(_: Asked, __: str) -> None:
    """Leave a parameter as it was sent."""


def size(asked: Asked, value: str, too_large: Reply) -> None:
    """SIZE: refuse what would be too large anyway."""
    # RFC 1870 3: 'size-value ::= 1*20DIGIT'.
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise Refused(wrong("syntax of SIZE"))
    limit = asked.options.size
    if limit is not None and int(value) > limit:
        raise Refused(too_large)


def body(asked: Asked, value: str) -> None:
    """BODY: what the message is made of."""
    known: dict[str, BodyType] = {"7BIT": "7bit", "8BITMIME": "8bitmime"}
    if asked.options.binarymime:
        known["BINARYMIME"] = "binarymime"
    body_type = known.get(_upper(value))
    if body_type is None:
        raise Refused(wrong(f"BODY must be {' or '.join(known)}"))
    asked.envelope.body_type = body_type


def smtputf8(asked: Asked, _: str) -> None:
    """SMTPUTF8: addresses and header fields may be in UTF-8."""
    asked.envelope.smtp_utf8 = True


def require_tls(asked: Asked, _: str) -> None:
    """REQUIRETLS: deliver it over TLS or not at all."""
    # RFC 8689 2: "the REQUIRETLS SMTP extension … only if the session … is TLS-protected".
    if not asked.session.secure:
        raise Refused(Reply(530, "5.7.10", "Error: REQUIRETLS needs TLS"))
    asked.envelope.require_tls = True


def auth(_: Asked, value: str) -> None:
    """AUTH: who submitted it first."""
    # RFC 4954 5: 'AUTH=' takes '"<>"' or an xtext mailbox; what it says stays in args.
    if value != "<>":
        _xtext(value, "AUTH")


def ret(asked: Asked, value: str) -> None:
    """RET: what of the message a delivery report returns."""
    asked.envelope.dsn = replace(asked.envelope.dsn, ret=_one_of_ret(_upper(value)))


def _one_of_ret(value: str) -> Literal["FULL", "HDRS"]:
    if value == "FULL":
        return "FULL"
    if value == "HDRS":
        return "HDRS"
    raise Refused(wrong("RET must be FULL or HDRS"))


def envid(asked: Asked, value: str) -> None:
    """ENVID: what a delivery report calls the message."""
    asked.envelope.dsn = replace(asked.envelope.dsn, envid=_xtext(value, "ENVID"))


def notify(asked: Asked, value: str) -> None:
    """NOTIFY: which delivery reports are wanted."""
    # RFC 3461 4.1: 'notify-esmtp-value = "NEVER" / 1#notify-list-element'.
    wishes = tuple(_upper(value).split(","))
    known = all(wish in ("NEVER", "SUCCESS", "FAILURE", "DELAY") for wish in wishes)
    if not known or ("NEVER" in wishes and len(wishes) > 1) or len(set(wishes)) != len(wishes):
        raise Refused(wrong("NOTIFY must be NEVER or some of SUCCESS, FAILURE, DELAY"))
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, notify=wishes)


def orcpt(asked: Asked, value: str) -> None:
    """ORCPT: the address that a delivery report calls the recipient by."""
    # RFC 3461 4.2: 'original-recipient-address = addr-type ";" xtext'.
    kind, semicolon, address = value.partition(";")
    if not (kind and semicolon and address and kind.isascii() and kind.replace("-", "").isalnum()):
        raise Refused(wrong("ORCPT must be type;address"))
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, orcpt=(kind.lower(), _xtext(address, "ORCPT")))


def _upper(value: str) -> str:
    """Return a keyword in upper case; ASCII only, or "ſ" would pass for "S"."""
    return value.upper() if value.isascii() else value


def _xtext(value: str, keyword: str) -> str:
    try:
        return decode_xtext(value)
    except GrammarError as problem:
        raise Refused(wrong(f"{keyword} is not valid xtext")) from problem
