"""The parameters of MAIL and RCPT: one table says which there are, what they take and where they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pillarbox.session import Address, Envelope, Recipient
from pillarbox.smtp.grammar import GrammarError, decode_xtext, parse_parameters
from pillarbox.smtp.reply import Reply

if TYPE_CHECKING:
    from pillarbox.smtp.service import Service


class Refused(Exception):
    """What the client asked for is refused with this reply; the session stays as it was."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(str(answer))
        self.reply = answer


@dataclass(slots=True, eq=False, repr=False)
class Asked:
    """Where a parameter's value goes, and what decides whether it may."""

    service: Service
    secure: bool
    envelope: Envelope
    address: Address


Apply = Callable[[Asked, str], None]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Parameter:
    """One ESMTP parameter: whether it takes a value, and what the value does."""

    apply: Apply
    takes_value: bool = True
    dsn: bool = False  # left raw where DSN is hidden


def parse(text: str, table: dict[str, Parameter], asked: Asked) -> None:
    """Read the parameters onto ``asked``; raises Refused, and then ``asked`` is to be thrown away."""
    service = asked.service
    try:
        found = parse_parameters(text)
    except GrammarError as problem:
        raise Refused(Reply(501, "5.5.4", f"Error: {problem}")) from problem
    for keyword, value in found:
        parameter = table.get(keyword)
        asked.address.args[keyword] = True if value is None else value
        if parameter is None:
            _check_unknown(keyword, service)
        elif not value if parameter.takes_value else value is not None:
            wants = "takes no value" if not parameter.takes_value else "needs a value"
            raise Refused(Reply(501, "5.5.4", f"Error: parameter {keyword} {wants}"))
        elif not (parameter.dsn and service.options.hide_dsn):
            parameter.apply(asked, value or "")


def _check_unknown(keyword: str, service: Service) -> None:
    # RFC 5321 4.1.1.11: "If the server SMTP does not recognize or cannot implement one or more of the parameters
    # associated with a particular MAIL FROM or RCPT TO command, it will return code 555."
    if not service.options.lenient_parameters:
        raise Refused(Reply(555, "5.5.4", f"Error: parameter {keyword} is not supported"))


def _size(asked: Asked, value: str) -> None:
    # RFC 1870 3: 'size-value ::= 1*20DIGIT'.
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise Refused(Reply(501, "5.5.4", "Error: syntax of SIZE"))
    limit = asked.service.options.size
    if limit is not None and int(value) > limit:
        raise Refused(asked.service.too_large)


def _body(asked: Asked, value: str) -> None:
    body = _upper(value)
    if body == "8BITMIME":
        asked.envelope.body_type = "8bitmime"
    elif body != "7BIT":
        raise Refused(Reply(501, "5.5.4", "Error: BODY must be 7BIT or 8BITMIME"))


def _smtputf8(asked: Asked, _: str) -> None:
    asked.envelope.smtp_utf8 = True


def _require_tls(asked: Asked, _: str) -> None:
    # RFC 8689 2: "the REQUIRETLS SMTP extension … only if the session … is TLS-protected".
    if not asked.secure:
        raise Refused(Reply(530, "5.7.10", "Error: REQUIRETLS needs TLS"))
    asked.envelope.require_tls = True


def _auth(_: Asked, value: str) -> None:
    # RFC 4954 5: 'AUTH=' takes '"<>"' or an xtext mailbox; what it says stays in args.
    if value != "<>":
        _xtext(value, "AUTH")


def _ret(asked: Asked, value: str) -> None:
    asked.envelope.dsn = replace(asked.envelope.dsn, ret=_one_of_ret(_upper(value)))


def _one_of_ret(value: str) -> Literal["FULL", "HDRS"]:
    if value == "FULL":
        return "FULL"
    if value == "HDRS":
        return "HDRS"
    raise Refused(Reply(501, "5.5.4", "Error: RET must be FULL or HDRS"))


def _envid(asked: Asked, value: str) -> None:
    asked.envelope.dsn = replace(asked.envelope.dsn, envid=_xtext(value, "ENVID"))


def _notify(asked: Asked, value: str) -> None:
    # RFC 3461 4.1: 'notify-esmtp-value = "NEVER" / 1#notify-list-element'.
    wishes = tuple(_upper(value).split(","))
    known = all(wish in ("NEVER", "SUCCESS", "FAILURE", "DELAY") for wish in wishes)
    if not known or ("NEVER" in wishes and len(wishes) > 1) or len(set(wishes)) != len(wishes):
        raise Refused(Reply(501, "5.5.4", "Error: NOTIFY must be NEVER or some of SUCCESS, FAILURE, DELAY"))
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, notify=wishes)


def _orcpt(asked: Asked, value: str) -> None:
    # RFC 3461 4.2: 'original-recipient-address = addr-type ";" xtext'.
    kind, semicolon, address = value.partition(";")
    if not (kind and semicolon and address and kind.isascii() and kind.replace("-", "").isalnum()):
        raise Refused(Reply(501, "5.5.4", "Error: ORCPT must be type;address"))
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, orcpt=(kind.lower(), _xtext(address, "ORCPT")))


def _upper(value: str) -> str:
    """Return a keyword in upper case; ASCII only, or "ſ" would pass for "S"."""
    return value.upper() if value.isascii() else value


def _xtext(value: str, keyword: str) -> str:
    try:
        return decode_xtext(value)
    except GrammarError as problem:
        raise Refused(Reply(501, "5.5.4", f"Error: {keyword} is not valid xtext")) from problem


MAIL: dict[str, Parameter] = {
    "SIZE": Parameter(_size),  # RFC 1870
    "BODY": Parameter(_body),  # RFC 6152
    "SMTPUTF8": Parameter(_smtputf8, takes_value=False),  # RFC 6531
    "REQUIRETLS": Parameter(_require_tls, takes_value=False),  # RFC 8689
    "AUTH": Parameter(_auth),  # RFC 4954
    "RET": Parameter(_ret, dsn=True),  # RFC 3461
    "ENVID": Parameter(_envid, dsn=True),
}

RCPT: dict[str, Parameter] = {
    "NOTIFY": Parameter(_notify, dsn=True),  # RFC 3461
    "ORCPT": Parameter(_orcpt, dsn=True),
}
