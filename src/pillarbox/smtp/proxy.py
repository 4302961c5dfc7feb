"""The PROXY protocol's header (haproxy.org, proxy-protocol.txt), versions 1 and 2: octets to addresses.

A header is read once, before anything else, and only from peers that are listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from pillarbox.networks import normal_address

# 2.1: "So a 108-byte buffer is always enough to store all the line and a trailing zero for string processing."
MAX_V1 = 107
# Far above what addresses and the known TLVs take; a longer header is not read.
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
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None


def parse(octets: bytes) -> ProxyHeader | None:
    """Return the header at the start of what arrived, None if more is needed; raises BadHeader."""
    if octets[: len(SIGNATURE)] == SIGNATURE[: len(octets)]:
        return _version2(octets)
    if octets[: len(_V1)] == _V1[: len(octets)]:
        return _version1(octets)
    raise BadHeader("no PROXY header")


def _version1(octets: bytes) -> ProxyHeader | None:
    end = octets.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(octets) >= MAX_V1:
            raise BadHeader("version 1 header without an end")
        return None
    # 'PROXY TCP4 192.168.0.1 192.168.0.11 56324 443', each part behind exactly one space
    parts = octets[len(_V1) : end].split(b" ")
    length = end + 2
    if parts[0] == b"UNKNOWN":  # "the receiver must ignore anything presented before the CRLF"
        return ProxyHeader(length)
    if len(parts) != 5 or parts[0] not in (b"TCP4", b"TCP6"):
        raise BadHeader("version 1 header of another form")
    kind = IPv4Address if parts[0] == b"TCP4" else IPv6Address
    return ProxyHeader(length, _endpoint(kind, parts[1], parts[3]), _endpoint(kind, parts[2], parts[4]))


def _endpoint(kind: type[IPv4Address | IPv6Address], address: bytes, port: bytes) -> tuple[str, int]:
    try:
        parsed = kind(address.decode("ascii"))
    except ValueError:
        raise BadHeader("bad address") from None
    if not (port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise BadHeader("bad port")
    return normal_address(str(parsed)), int(port)


def _version2(octets: bytes) -> ProxyHeader | None:
    if len(octets) < 16:
        return None
    command, family = octets[12], octets[13]
    length = 16 + int.from_bytes(octets[14:16], "big")
    if command >> 4 != 2 or command & 0xF > 1 or length > MAX_V2:
        raise BadHeader("bad version 2 header")
    if len(octets) < length:
        return None
    # "LOCAL: the receiver … must use the real connection endpoints"; likewise UNSPEC and other families
    size = {0x11: 4, 0x21: 16}.get(family)
    if command & 0xF == 0 or size is None:
        return ProxyHeader(length)
    if length < 16 + 2 * size + 4:
        raise BadHeader("version 2 header too short for its addresses")
    return ProxyHeader(length, *_addresses(octets[16 : 16 + 2 * size + 4], size))


def _addresses(block: bytes, size: int) -> tuple[tuple[str, int], tuple[str, int]]:
    source, destination = ip_address(block[:size]), ip_address(block[size : 2 * size])
    ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
    return (normal_address(str(source)), ports[0]), (normal_address(str(destination)), ports[1])
