"""The PROXY protocol's header (haproxy.org, proxy-protocol.txt), versions 1 and 2: octets to addresses and facts.

A header is read once, before anything else, and only from peers that are listed. What is quoted here is that text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from pillarbox.networks import normal_address
from pillarbox.session import ProxyInfo, ProxyTLS
from pillarbox.smtp.grammar import has_forbidden_characters

# 2.1: "So a 108-byte buffer is always enough to store all the line and a trailing zero for string processing."
MAX_V1 = 107
# Far above what addresses and the known TLVs take, a client's certificate included; a longer header is not read.
MAX_V2 = 4096
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1 = b"PROXY "
BAD_HEADER = b"* BAD Invalid PROXY header\r\n"


class BadHeader(ValueError):
    """The peer does not begin with a PROXY header, or with a broken one."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What the header says: source and destination, or None where the connection's own addresses stay."""

    length: int
    info: ProxyInfo
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None


# Nearly all headers say nothing else: one object does for all of them.
_VERSION_1, _VERSION_2, _LOCAL = ProxyInfo(1), ProxyInfo(2), ProxyInfo(2, local=True)


def parse(octets: bytes) -> ProxyHeader | None:
    """Return the header at the start of what arrived, None if more is needed; raises BadHeader."""
    if octets[: len(SIGNATURE)] == SIGNATURE[: len(octets)]:
        return _version2(octets)
    if octets[: len(_V1)] == _V1[: len(octets)]:
        return _version1(octets)
    raise BadHeader("no PROXY header")


# --- Version 1, a line of text (2.1)


def _version1(octets: bytes) -> ProxyHeader | None:
    # "If the CRLF sequence is not found in the first 107 characters, the receiver should declare the line invalid."
    end = octets.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(octets) >= MAX_V1:
            raise BadHeader("version 1 header without an end")
        return None
    # 'PROXY TCP4 192.168.0.1 192.168.0.11 56324 443', each part behind exactly one space
    parts = octets[len(_V1) : end].split(b" ")
    length = end + 2
    if parts[0] == b"UNKNOWN":  # "the receiver must ignore anything presented before the CRLF is found"
        return ProxyHeader(length, _VERSION_1)
    if len(parts) != 5 or parts[0] not in (b"TCP4", b"TCP6"):
        raise BadHeader("version 1 header of another form")
    kind = IPv4Address if parts[0] == b"TCP4" else IPv6Address
    return ProxyHeader(length, _VERSION_1, _endpoint(kind, parts[1], parts[3]), _endpoint(kind, parts[2], parts[4]))


def _endpoint(kind: type[IPv4Address | IPv6Address], address: bytes, port: bytes) -> tuple[str, int]:
    try:
        parsed = kind(address.decode("ascii"))
    except ValueError:
        raise BadHeader("bad address") from None
    if b"%" in address:  # Python takes a zone for a part of the address
        raise BadHeader("bad address")
    # "represented as a decimal integer in the range [0..65535] inclusive. Heading zeroes are not permitted in front of
    # numbers in order to avoid any possible confusion with octal numbers."
    if not (port.isdigit() and len(port) <= 5 and int(port) <= 65535) or (port[:1] == b"0" and port != b"0"):
        raise BadHeader("bad port")
    return normal_address(str(parsed)), int(port)


# --- Version 2, binary (2.2)

# The 14th byte, family and transport → how long the addresses are. AF_UNIX has paths, which say nothing of a client.
_INET, _INET6 = (0x11, 0x12), (0x21, 0x22)
_ADDRESSES = {0x00: 0, **dict.fromkeys(_INET, 12), **dict.fromkeys(_INET6, 36), 0x31: 216, 0x32: 216}


def _version2(octets: bytes) -> ProxyHeader | None:
    if len(octets) < 16:
        return None
    version, command = divmod(octets[12], 16)
    length = 16 + int.from_bytes(octets[14:16], "big")
    if version != 2 or command > 1 or length > MAX_V2:
        raise BadHeader("bad version 2 header")
    if command == 1 and (octets[13] >> 4 > 3 or octets[13] & 0xF > 2):
        # "other values are unspecified and must not be emitted in version 2 of this protocol and must be rejected as
        # invalid by receivers."
        raise BadHeader("unknown family or transport")
    if len(octets) < length:
        return None
    if command == 0:
        # "The receiver must accept this connection as valid and must use the real connection endpoints and discard the
        # protocol block including the family which is ignored."
        return ProxyHeader(length, _LOCAL)
    return _proxied(octets[:length], octets[13])


def _proxied(header: bytes, family: int) -> ProxyHeader:
    size = _ADDRESSES.get(family)
    if size is None:  # half unspecified: nobody knows where its addresses end
        return ProxyHeader(len(header), _VERSION_2)
    end = 16 + size
    if len(header) < end:
        raise BadHeader("version 2 header too short for its addresses")
    info = _VERSION_2 if len(header) == end else _info(header, end)
    if family not in _INET + _INET6:
        return ProxyHeader(len(header), info)
    return ProxyHeader(len(header), info, *_addresses(header[16:end]))


def _addresses(block: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    size = (len(block) - 4) // 2
    source, destination = ip_address(block[:size]), ip_address(block[size : 2 * size])
    ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
    return (normal_address(str(source)), ports[0]), (normal_address(str(destination)), ports[1])


# --- What may stand behind the addresses: types, lengths and values (2.2.1 to 2.2.7)

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _SSL, _NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
_KNOWN = frozenset({_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _NETNS})
# 2.2.5: "an opaque byte sequence of up to 128 bytes"
_LONGEST_ID = 128
# 2.2.6 <client>
_CLIENT_SSL, _CLIENT_CERT_CONN, _CLIENT_CERT_SESS = 0x01, 0x02, 0x04
_SSL_TEXTS = {
    0x21: "version",
    0x22: "common_name",
    0x23: "cipher",
    0x24: "signature_algorithm",
    0x25: "key_algorithm",
    # Later than the text of 2020, in its order: PP2_SUBTYPE_SSL_GROUP, SSL_SIG_SCHEME and SSL_CLIENT_CERT.
    0x26: "group",
    0x27: "signature_scheme",
}
_SSL_CLIENT_CERT = 0x28


def _vectors(octets: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, place of the value, and value; raises BadHeader where one does not end within ``octets``."""
    while at < len(octets):
        kind, start = octets[at], at + 3
        at = start + int.from_bytes(octets[at + 1 : start], "big")
        if start > len(octets) or at > len(octets):
            raise BadHeader("a TLV that is cut off")
        yield kind, start, octets[start:at]


def _info(header: bytes, at: int) -> ProxyInfo:
    known: dict[int, bytes] = {}
    others: list[tuple[int, bytes]] = []
    for kind, start, value in _vectors(header, at):
        if kind in _KNOWN:
            _add(known, kind, value)
            if kind == _CRC32C:
                _check_sum(header, start, value)
        elif kind != _NOOP:
            others.append((kind, value))
    unique_id = known.get(_UNIQUE_ID)
    if unique_id is not None and len(unique_id) > _LONGEST_ID:
        raise BadHeader("unique id too long")
    return ProxyInfo(
        2,
        authority=_text(known.get(_AUTHORITY)),
        unique_id=unique_id,
        tls=_tls(known.get(_SSL)),
        alpn=known.get(_ALPN),
        netns=_text(known.get(_NETNS)),
        tlvs=tuple(others),
    )


def _add(found: dict[int, bytes], kind: int, value: bytes) -> None:
    if kind in found:  # which of the two is true?
        raise BadHeader(f"TLV {kind:#04x} twice")
    found[kind] = value


def _text(value: bytes | None) -> str | None:
    """Decode a name; what could not be shown is refused, since its origin is the client (SNI, common name)."""
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise BadHeader("a TLV that is not UTF-8") from None
    if has_forbidden_characters(text):
        raise BadHeader("a TLV with control characters")
    return text


def _tls(value: bytes | None) -> ProxyTLS | None:
    if value is None:
        return None
    if len(value) < 5:
        raise BadHeader("an SSL TLV that is cut off")
    client, found, others = value[0], dict[int, bytes](), list[tuple[int, bytes]]()
    for kind, _, part in _vectors(value, 5):
        if kind in _SSL_TEXTS or kind == _SSL_CLIENT_CERT:
            _add(found, kind, part)
        else:
            others.append((kind, part))
    texts = {name: _text(found.get(kind)) for kind, name in _SSL_TEXTS.items()}
    # "The PP2_CLIENT_SSL flag indicates that the client connected over SSL/TLS." HAProxy sends the TLV without it too.
    if not client & _CLIENT_SSL:
        return None
    return ProxyTLS(
        **texts,
        peer_certificate=found.get(_SSL_CLIENT_CERT),
        certificate_on_connection=bool(client & _CLIENT_CERT_CONN),
        certificate_in_session=bool(client & _CLIENT_CERT_SESS),
        verify=int.from_bytes(value[1:5], "big"),
        tlvs=tuple(others),
    )


# --- CRC-32C (2.2.3; RFC 4960 appendix B)


def _check_sum(header: bytes, start: int, value: bytes) -> None:
    # "replace the 32 bits of the checksum field in the received PROXY header with all '0's and calculate a CRC32c
    # checksum value of the whole PROXY header. … If it is not, the receiver MUST treat the TCP connection providing the
    # header as invalid."
    zeroed = header[:start] + bytes(4) + header[start + 4 :]
    if len(value) != 4 or int.from_bytes(value, "big") != crc32c(zeroed):
        raise BadHeader("wrong checksum")


def crc32c(octets: bytes) -> int:
    """Return the CRC-32C of some octets: some 80 ns each, so that the few of a header need no library."""
    table, remainder = _crc_table(), 0xFFFFFFFF
    for octet in octets:
        remainder = remainder >> 8 ^ table[(remainder ^ octet) & 0xFF]
    return remainder ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    """Return the remainder of each octet, for the polynomial 0x1EDC6F41 with its bits reversed."""
    return tuple(_crc_remainder(octet) for octet in range(256))


def _crc_remainder(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
    return octet
