"""The parameters of delivery reports (DSN, RFC 3461): RET and ENVID of MAIL, NOTIFY and ORCPT of RCPT."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from pillarbox.extension import Asked
from pillarbox.session import Recipient
from pillarbox.smtp.grammar import has_forbidden_characters
from pillarbox.smtp.params import upper, xtext
from pillarbox.smtp.reply import Refused, wrong_parameter

# RFC 3461 4.4: "The ENVID parameter MAY be up to 100 characters in length."
_MAX_ENVID = 100
# RFC 3461 4.2: "The entire ORCPT parameter MAY be up to 500 characters in length."
_MAX_ORCPT = 500
# RFC 3461 4.2: "addr-type = atom"; the atom of RFC 822, without the "=" that no parameter's value may hold.
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]+")

# RFC 6533 3: "HEXPOINT = ( ( "0"/"1" ) %x31-39 ) / "10" / "20" / "2B" / "3D" / "7F" / "5C" / (HEXDIG8 HEXDIG) /
# ( NZHEXDIG 2(HEXDIG) ) / ( NZDHEXDIG 3(HEXDIG) ) / ( "D" %x30-37 2(HEXDIG) ) / ( NZHEXDIG 4(HEXDIG) ) /
# ( "10" 4*HEXDIG )"; the last of six digits. ABNF's letters have no case.
_HEXPOINT = (
    r"[01][1-9]|10|20|2b|3d|7f|5c|[89a-f][0-9a-f]|[1-9a-f][0-9a-f]{2}|[1-9abcef][0-9a-f]{3}|d[0-7][0-9a-f]{2}"
    r"|[1-9a-f][0-9a-f]{4}|10[0-9a-f]{4}"
)
_EMBEDDED = re.compile(rf"\\x\{{({_HEXPOINT})\}}", re.ASCII | re.IGNORECASE)
# RFC 6533 3: "utf-8-addr-unitext = 1*(QUCHAR / EmbeddedUnicodeChar)", and QUCHAR is printable ASCII "except CTLs, SP,
# '\', '+' and '=', plus other Unicode characters".
_UNITEXT = re.compile(rf"(?:[^\x00-\x20\\+=\x7f]|{_EMBEDDED.pattern})+", re.ASCII | re.IGNORECASE)


def ret(asked: Asked, value: str) -> None:
    """RET: what of the message a delivery report returns."""
    wish = _one_of_ret(upper(value))
    # RFC 8689 5: "If both RET=FULL and REQUIRETLS are present, the RET=FULL MUST be disregarded."
    asked.envelope.dsn = replace(asked.envelope.dsn, ret="HDRS" if asked.envelope.require_tls else wish)


def _one_of_ret(value: str) -> Literal["FULL", "HDRS"]:
    if value == "FULL":
        return "FULL"
    if value == "HDRS":
        return "HDRS"
    raise Refused(wrong_parameter("RET must be FULL or HDRS"))


def envid(asked: Asked, value: str) -> None:
    """ENVID: what a delivery report calls the message."""
    if len(value) > _MAX_ENVID:
        raise Refused(wrong_parameter(f"ENVID is longer than {_MAX_ENVID} characters"))
    asked.envelope.dsn = replace(asked.envelope.dsn, envid=_ascii_xtext(value, "ENVID"))


def notify(asked: Asked, value: str) -> None:
    """NOTIFY: which delivery reports are wanted."""
    # RFC 3461 4.1: 'notify-esmtp-value = "NEVER" / 1#notify-list-element'.
    wishes = tuple(upper(value).split(","))
    known = all(wish in ("NEVER", "SUCCESS", "FAILURE", "DELAY") for wish in wishes)
    # RFC 3461 4.1: "the NEVER keyword MUST appear by itself". Of a wish that stands twice it says nothing.
    if not known or ("NEVER" in wishes and len(wishes) > 1):
        raise Refused(wrong_parameter("NOTIFY must be NEVER or some of SUCCESS, FAILURE, DELAY"))
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, notify=tuple(dict.fromkeys(wishes)))


def orcpt(asked: Asked, value: str) -> None:
    """ORCPT: the address that a delivery report calls the recipient by."""
    # RFC 3461 4.2: 'original-recipient-address = addr-type ";" xtext'.
    kind, semicolon, encoded = value.partition(";")
    if not (semicolon and encoded and _ADDRESS_TYPE.fullmatch(kind)):
        raise Refused(wrong_parameter("ORCPT must be type;address"))
    if len(value) > _MAX_ORCPT:
        raise Refused(wrong_parameter(f"ORCPT is longer than {_MAX_ORCPT} characters"))
    kind = kind.lower()
    if kind == "utf-8":
        address = _utf8_address(encoded)
    elif asked.envelope.smtp_utf8:
        # Postfix labels every address rfc822, and encodes UTF-8 as it is: to refuse that would be to refuse the mail.
        address = xtext(encoded, "ORCPT")
    else:
        address = _ascii_xtext(encoded, "ORCPT")
    if isinstance(asked.address, Recipient):
        asked.address.dsn = replace(asked.address.dsn, orcpt=(kind, address))


def _utf8_address(encoded: str) -> str:
    """Decode an address of the type utf-8; what is not in its form is plain xtext."""
    # RFC 6533 3: "An SMTP server that advertises both the SMTPUTF8 extension and the DSN extension MUST accept a UTF-8
    # address type in the ORCPT parameter including 8-bit UTF-8 characters." RFC 3461 4.2: "the address associated with
    # the ORCPT keyword is NOT constrained to conform to the syntax rules for that "addr-type"".
    if not _UNITEXT.fullmatch(encoded):
        return xtext(encoded, "ORCPT")
    address = _EMBEDDED.sub(lambda match: chr(int(match[1], 16)), encoded)
    if has_forbidden_characters(address):
        raise Refused(wrong_parameter("control or invisible character in ORCPT"))
    return address


def _ascii_xtext(value: str, keyword: str) -> str:
    # RFC 3461 4.2, 4.4: the value "prior to encoding as "xtext" MUST consist entirely of printable (graphic and white
    # space) characters from the US-ASCII repertoire".
    text = xtext(value, keyword)
    if not text.isascii():
        raise Refused(wrong_parameter(f"{keyword} must be printable ASCII"))
    return text
