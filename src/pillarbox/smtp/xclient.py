"""XCLIENT and XFORWARD (Postfix's XCLIENT_README, XFORWARD_README): what a trusted proxy says of the real client.

All attributes are read and checked before the first one is applied. What is quoted here is from these two texts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pillarbox.networks import normal_address
from pillarbox.smtp.grammar import GrammarError, decode_xtext
from pillarbox.smtp.reply import BAD_ATTRIBUTES, Refused, bad_attribute, syntax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pillarbox.session import Session

# "[UNAVAILABLE] when client hostname lookup failed due to a permanent error, or [TEMPUNAVAIL] when the lookup error
# condition was transient"; "may be specified in upper case, lower case or mixed case"
_UNKNOWN = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
# Note 1: "an attribute-value element must not be longer than 255 characters (specific attributes may impose shorter
# lengths)."
_LONGEST = 255
_LONGEST_PROTO = 64
# What Postfix takes for a host name: underscores too, but no address, no empty label and no dot at the end.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?![0-9.]+$){_LABEL}(?:\.{_LABEL})*")
_PRINTABLE = re.compile("[!-~]*")
_SPECIAL_IN_HEADERS = str.maketrans(dict.fromkeys('<>()\\";@', "?"))


def parse(verb: str, argument: str, known: Mapping[str, Callable[[str], str]]) -> dict[str, str]:
    """Return attribute → decoded value, "" where the proxy does not know; raises Refused."""
    values: dict[str, str] = {}
    for word in argument.split():
        name, equals, raw = word.partition("=")
        # "Although command and attribute names are shown in upper case, they are in fact case insensitive."
        name = name.upper() if name.isascii() else name
        if not equals or name not in known or name in values:
            raise Refused(bad_attribute(verb, name))
        values[name] = _value(raw, known[name])
    if not values:
        raise Refused(syntax(f"{verb} attribute=value ..."))
    return values


def _value(raw: str, check: Callable[[str], str]) -> str:
    if len(raw) > _LONGEST:
        raise Refused(BAD_ATTRIBUTES)
    try:
        value = decode_xtext(raw)
    except GrammarError as problem:
        raise Refused(BAD_ATTRIBUTES) from problem
    return "" if value.isascii() and value.upper() in _UNKNOWN else check(value)


# --- What an attribute may say: each returns the value as it is kept, or raises Refused


def _address(value: str) -> str:
    # It has "an SMTP client numerical IPv4 network address, an IPv6 address prefixed with IPV6:"; one without the
    # prefix can mean nothing else. In XFORWARD too Postfix takes nothing but an address.
    is_ipv6 = value[:5].upper() == "IPV6:"
    bare = value[5:] if is_ipv6 else value
    if "%" in bare or (is_ipv6 and ":" not in bare):
        raise Refused(BAD_ATTRIBUTES)
    try:
        return normal_address(bare)
    except ValueError as problem:
        raise Refused(BAD_ATTRIBUTES) from problem


def _port(value: str) -> str:
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535):
        raise Refused(BAD_ATTRIBUTES)
    return str(int(value))


def _proto(value: str) -> str:
    # "The PROTO attribute specifies either SMTP or ESMTP."; a proxy before an LMTP server has a third one to say.
    return _one_of(value, ("SMTP", "ESMTP", "LMTP"))


def _source(value: str) -> str:
    return _one_of(value, ("LOCAL", "REMOTE"))


def _one_of(value: str, words: tuple[str, ...]) -> str:
    if not value.isascii() or value.upper() not in words:
        raise Refused(BAD_ATTRIBUTES)
    return value.upper()


def _host(value: str) -> str:
    # It "specifies an SMTP client hostname (not an SMTP client address)".
    if _HOST.fullmatch(value) is None:
        raise Refused(BAD_ATTRIBUTES)
    return value


def _helo(value: str) -> str:
    if not value or " " in value:
        raise Refused(BAD_ATTRIBUTES)
    return value


def _login(value: str) -> str:
    return value  # "" de-authenticates


def _forwarded(value: str) -> str:
    # "After xtext decoding, attribute values must not contain control characters, non-ASCII characters, whitespace, or
    # other characters that are special in message headers." The latter become "?", as in Postfix.
    if not value or _PRINTABLE.fullmatch(value) is None:
        raise Refused(BAD_ATTRIBUTES)
    return value.translate(_SPECIAL_IN_HEADERS)


def _forwarded_proto(value: str) -> str:
    # "This may be an SMTP or non-SMTP protocol name of up to 64 characters"
    if len(value) > _LONGEST_PROTO:
        raise Refused(BAD_ATTRIBUTES)
    return _forwarded(value)


XCLIENT: Mapping[str, Callable[[str], str]] = {
    "NAME": _host,
    "REVERSE_NAME": _host,
    "ADDR": _address,
    "PORT": _port,
    "PROTO": _proto,
    "HELO": _helo,
    "LOGIN": _login,
    "DESTADDR": _address,
    "DESTPORT": _port,
}
XFORWARD: Mapping[str, Callable[[str], str]] = {
    "NAME": _forwarded,  # "The hostname may be a non-DNS hostname."
    "ADDR": _address,
    "PORT": _port,
    "PROTO": _forwarded_proto,
    "HELO": _forwarded,
    "IDENT": _forwarded,
    "SOURCE": _source,
}

# --- XCLIENT's values in the session

# attribute → the session's field
_FIELDS = {
    "NAME": "client_hostname",
    "ADDR": "remote_address",
    "PORT": "remote_port",
    "DESTADDR": "local_address",
    "DESTPORT": "local_port",
}
_DEFAULT = ":DEFAULT"
_OPENING = {"SMTP": "HELO", "ESMTP": "EHLO", "LMTP": "LHLO"}


def apply(session: Session, values: dict[str, str]) -> None:
    """Put checked XCLIENT attributes into the session; the originals stay under ``NAME:DEFAULT``."""
    told = session.x_client
    names_client = "ADDR" in values or "NAME" in values
    if names_client:
        told.setdefault("NAME" + _DEFAULT, session.client_hostname)
    for name, field in _FIELDS.items():
        if name in values:
            told.setdefault(name + _DEFAULT, str(getattr(session, field)))
            # What is unknown is not the proxy's own either: that may be trusted more than any client.
            setattr(session, field, int(values[name] or 0) if field.endswith("port") else values[name])
    _note(session, told, values)
    if names_client:
        session.client_hostname = told.get("NAME") or f"[{session.remote_address or 'unknown'}]"


def _note(session: Session, told: dict[str, str], values: dict[str, str]) -> None:
    # Those that belong to the greeting, which begins again: "The SMTP server must not reset attributes that were
    # received with the last XCLIENT command. This includes HELO or PROTO attributes." It does reset the earlier ones.
    for name in ("HELO", "PROTO", "LOGIN"):
        told.pop(name, None)
    told.update(values)
    session.host_name_appears_as = values.get("HELO") or None
    session.opening_command = _OPENING.get(values.get("PROTO", ""))


def forget(session: Session) -> None:
    """Undo XCLIENT: give the session's fields their own values back."""
    for name, field in _FIELDS.items():
        original = session.x_client.get(name + _DEFAULT)
        if original is not None:
            setattr(session, field, int(original) if field.endswith("port") else original)
    session.x_client.clear()
    del session.x_forward
