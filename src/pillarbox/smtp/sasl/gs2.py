"""The GS2 header (RFC 5801 4, RFC 5802 7), with which SCRAM and OAUTHBEARER begin."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pillarbox.smtp.sasl.base import InvalidCredential, identity

# RFC 5802 7: 'gs2-header = gs2-cbind-flag "," [ authzid ] ","' and 'cb-name = 1*(ALPHA / DIGIT / "." / "-")'
# (Not compiled here: that takes 1 ms, which those save who do not use it.)
_HEADER = rb"(?:(?P<flag>[ny])|p=(?P<binding>[A-Za-z0-9.-]+)),(?:a=(?P<authzid>[^,\0]+))?,"


@dataclass(frozen=True, slots=True)
class Header:
    """flag: "n", "y" or "p"; binding: the channel binding that "p" names. octets: the header as it was sent."""

    flag: str
    binding: str
    authzid: str
    octets: bytes


def split_header(message: bytes) -> tuple[Header, bytes]:
    """Return the header and what follows it."""
    match = re.match(_HEADER, message)
    if match is None:
        raise InvalidCredential("no GS2 header")
    flag, binding, authzid = match.group("flag", "binding", "authzid")
    header = Header((flag or b"p").decode(), (binding or b"").decode(), saslname(authzid or b""), match[0])
    return header, message[match.end() :]


def saslname(octets: bytes) -> str:
    """Decode a name in which "," and "=" are written =2C and =3D."""
    # RFC 5802 5.1: 'If the server receives a username that contains '=' not followed by either '2C' or '3D', then the
    # server MUST fail the authentication.'
    if re.search(rb"=(?!2C|3D)", octets):
        raise InvalidCredential("= in a name must be =3D")
    return identity(octets.replace(b"=2C", b",").replace(b"=3D", b"="))
