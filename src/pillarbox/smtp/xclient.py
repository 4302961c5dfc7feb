"""XCLIENT and XFORWARD (Postfix's XCLIENT_README, XFORWARD_README): what a trusted proxy says of the real client.

All attributes are read and checked before the first one is applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillarbox.networks import normal_address
from pillarbox.smtp.grammar import GrammarError, decode_xtext
from pillarbox.smtp.reply import BAD_ATTRIBUTES, Refused, bad_attribute, syntax

if TYPE_CHECKING:
    from pillarbox.session import Session

XCLIENT = frozenset({"NAME", "REVERSE_NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"})
XFORWARD = frozenset({"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"})
# "a special value of [UNAVAILABLE] or [TEMPUNAVAIL]" says that the proxy does not know
_UNKNOWN = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
# attribute → the session's field
_FIELDS = {
    "NAME": "client_hostname",
    "ADDR": "remote_address",
    "PORT": "remote_port",
    "DESTADDR": "local_address",
    "DESTPORT": "local_port",
}
_DEFAULT = ":DEFAULT"


def parse(verb: str, argument: str, known: frozenset[str]) -> dict[str, str]:
    """Return attribute → decoded value, "" where the proxy does not know; raises Refused."""
    values: dict[str, str] = {}
    for word in argument.split():
        name, equals, raw = word.partition("=")
        name = name.upper() if name.isascii() else name
        if not equals or name not in known or name in values:
            raise Refused(bad_attribute(verb, name))
        values[name] = _value(name, raw)
    if not values:
        raise Refused(syntax(f"{verb} attribute=value …".replace("…", "...")))
    return values


def _value(name: str, raw: str) -> str:
    try:
        value = decode_xtext(raw)
    except GrammarError as problem:
        raise Refused(BAD_ATTRIBUTES) from problem
    if value.isascii() and value.upper() in _UNKNOWN:
        return ""
    check = _CHECKS.get(name)
    return value if check is None else check(value)


def _address(value: str) -> str:
    bare = value[5:] if value[:5].upper() == "IPV6:" else value
    try:
        return normal_address(bare)
    except ValueError as problem:
        raise Refused(BAD_ATTRIBUTES) from problem


def _port(value: str) -> str:
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535):
        raise Refused(BAD_ATTRIBUTES)
    return str(int(value))


def _proto(value: str) -> str:
    if not value.isascii() or value.upper() not in ("SMTP", "ESMTP", "LMTP"):
        raise Refused(BAD_ATTRIBUTES)
    return value.upper()


def _host(value: str) -> str:
    if len(value) > 255 or " " in value:
        raise Refused(BAD_ATTRIBUTES)
    return value


_CHECKS = {
    "ADDR": _address,
    "DESTADDR": _address,
    "PORT": _port,
    "DESTPORT": _port,
    "PROTO": _proto,
    "NAME": _host,
    "REVERSE_NAME": _host,
    "HELO": _host,
}


def apply(session: Session, values: dict[str, str]) -> None:
    """Put checked XCLIENT attributes into the session; the originals stay under ``NAME:DEFAULT``."""
    for name, value in values.items():
        field = _FIELDS.get(name)
        if field is not None:
            session.x_client.setdefault(name + _DEFAULT, str(getattr(session, field)))
            if value:
                setattr(session, field, int(value) if field.endswith("port") else value)
        session.x_client[name] = value
    if "ADDR" in values and not values.get("NAME"):
        session.x_client.setdefault("NAME" + _DEFAULT, session.client_hostname)
        session.client_hostname = f"[{session.remote_address}]"


def forget(session: Session) -> None:
    """Undo XCLIENT: give the session's fields their own values back."""
    for name, field in _FIELDS.items():
        original = session.x_client.get(name + _DEFAULT)
        if original is not None:
            setattr(session, field, int(original) if field.endswith("port") else original)
    session.x_client.clear()
    session.x_forward.clear()
