"""Addresses, parameters and xtext as their RFCs' ABNF has them, for ASCII, written down plainly."""

from __future__ import annotations

import re
import socket
import string

_ATEXT = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]"
_DOT_STRING = rf"{_ATEXT}+(?:\.{_ATEXT}+)*"
# RFC 5321 4.1.2: qtextSMTP is %d32-33, %d35-91 and %d93-126, quoted-pairSMTP is a backslash and %d32-126.
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_SUB_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
DOMAIN = re.compile(rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*")
_LITERAL = re.compile(r"\[(?:([0-9.]+)|(?i:IPv6):([0-9A-Fa-f:.]+))\]")
_MAILBOX = re.compile(rf"({_DOT_STRING}|{_QUOTED})@([A-Za-z0-9.-]+|\[[^\]]*\])")
PATH = re.compile(rf"<(?:@{DOMAIN.pattern}(?:,@{DOMAIN.pattern})*:)?(.+)>")


def is_domain(text: str) -> bool:
    """Whether this is a domain of ASCII, by form and length."""
    short = len(text) <= 255 and all(len(label) <= 63 for label in text.split("."))
    return DOMAIN.fullmatch(text) is not None and short


def is_literal(text: str) -> bool:
    """Whether this is an address literal."""
    found = _LITERAL.fullmatch(text)
    if found is None:
        return False
    try:
        socket.inet_pton(socket.AF_INET if found[1] else socket.AF_INET6, found[1] or found[2])
    except OSError:
        return False
    return True


def is_mailbox(text: str) -> bool:
    """Whether this is a mailbox of ASCII, by form and length."""
    found = _MAILBOX.fullmatch(text)
    return found is not None and len(found[1]) <= 64 and (is_domain(found[2]) or is_literal(found[2]))


def decode_xtext(text: str) -> bytes | None:
    """Return the octets of an xtext (RFC 3461 4), None where it is none."""
    octets, at = bytearray(), 0
    while at < len(text):
        character, digits = text[at], text[at + 1 : at + 3]
        if character == "+":
            if len(digits) != 2 or not all(digit in "0123456789ABCDEF" for digit in digits):
                return None
            octets.append(int(digits, 16))
            at += 3
            continue
        if not "!" <= character <= "~" or character == "=":
            return None
        octets += character.encode()
        at += 1
    return bytes(octets)


def parameters(text: str) -> list[tuple[str, str | None]] | None:
    """Return the parameters of MAIL or RCPT (RFC 5321 4.1.2), for printable ASCII; None where they are none."""
    allowed = string.ascii_letters + string.digits
    found: list[tuple[str, str | None]] = []
    for word in text.split():
        keyword = word.split("=")[0]
        if keyword[:1] not in allowed or not keyword or any(c not in allowed + "-" for c in keyword):
            return None
        found.append((keyword.upper(), word[len(keyword) + 1 :] if "=" in word else None))
    return found if len({keyword for keyword, _ in found}) == len(found) else None
