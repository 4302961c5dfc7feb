"""The PROXY protocol's header as its text describes it (haproxy.org, proxy-protocol.txt), written down plainly."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

from pillarbox.smtp.proxy import MAX_V1, MAX_V2, ProxyHeader

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([^ ]+) ([^ ]+) ([^ ]+) ([^ ]+)")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_MAPPED = bytes(10) + b"\xff\xff"
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 1, 2, 3, 4, 5, 0x20, 0x30
_TEXTS = (0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27)
CERTIFICATE = 0x28


class Bad(Exception):
    """It is no header."""


def said(header: ProxyHeader) -> object:
    """Return what the server's parser found in the form of this one."""
    info, ends = header.info, (header.source, header.destination)
    octets = tuple(None if end is None else (_packed(end[0].encode()), end[1]) for end in ends)
    tls = info.tls
    facts = None if tls is None else (
        (tls.version, tls.common_name, tls.cipher, tls.signature_algorithm, tls.key_algorithm, tls.group,
         tls.signature_scheme),
        tls.peer_certificate, tls.certificate_on_connection, tls.certificate_in_session, tls.verify, tls.tlvs,
    )  # fmt: skip
    others = (info.authority, info.unique_id, info.alpn, info.netns, info.tlvs)
    return header.length, octets, info.version, info.local, others, facts


def parse(octets: bytes) -> object:
    """Return what ``said`` does, None where more is needed, or Bad."""
    try:
        if SIGNATURE.startswith(octets[:12]):
            return _version2(octets)
        if b"PROXY ".startswith(octets[:6]):
            return _version1(octets)
    except Bad:
        pass
    return Bad


def _need(condition: object) -> None:
    if not condition:
        raise Bad


# --- Version 1


def _version1(octets: bytes) -> object:
    line, end, _ = octets[:MAX_V1].partition(b"\r\n")
    if not end:
        _need(len(octets) < MAX_V1)
        return None
    ends: tuple[object, object] = (None, None)
    if line != b"PROXY UNKNOWN" and not line.startswith(b"PROXY UNKNOWN "):
        found = _V1.fullmatch(line)
        if found is None:
            raise Bad
        size = 4 if found[1] == b"TCP4" else 16
        ends = (_end(size, found[2], found[4]), _end(size, found[3], found[5]))
    return len(line) + 2, ends, 1, False, (None, None, None, None, ()), None


def _end(size: int, address: bytes, port: bytes) -> tuple[bytes, int]:
    packed = _packed(address, size)
    _need(_PORT.fullmatch(port) and int(port) < 65536)
    return packed, int(port)


def _packed(address: bytes, size: int = 0) -> bytes:
    """Return the octets of an address, of an IPv4-mapped one the last four."""
    family = socket.AF_INET6 if size == 16 or (not size and b":" in address) else socket.AF_INET
    try:
        return _unmapped(socket.inet_pton(family, address.decode("ascii")))
    except (OSError, ValueError):
        raise Bad from None


def _unmapped(packed: bytes) -> bytes:
    return packed.removeprefix(_MAPPED) if len(packed) == 16 else packed


# --- Version 2


def _version2(octets: bytes) -> object:
    if len(octets) < 16:
        return None
    kind, family, length = octets[12], octets[13], 16 + octets[14] * 256 + octets[15]
    _need(kind in (0x20, 0x21) and length <= MAX_V2)
    _need(kind == 0x20 or (family >> 4 <= 3 and family & 15 <= 2))
    if len(octets) < length:
        return None
    nothing: tuple[Any, ...] = (None, None, None, None, ())
    if kind == 0x20 or (family not in (0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32)):
        return length, (None, None), 2, kind == 0x20, nothing, None
    size = {0: 0, 1: 12, 2: 36, 3: 216}[family >> 4]
    header = octets[:length]
    _need(len(header) >= 16 + size)
    ends = _ends(header[16 : 16 + size]) if size in (12, 36) else (None, None)
    return (length, ends, 2, False, *_facts(header, 16 + size))


def _ends(block: bytes) -> tuple[object, object]:
    size, ports = (len(block) - 4) // 2, block[-4:]
    source, destination = _unmapped(block[:size]), _unmapped(block[size : 2 * size])
    return (source, ports[0] * 256 + ports[1]), (destination, ports[2] * 256 + ports[3])


def _vectors(octets: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    while at < len(octets):
        _need(at + 3 <= len(octets))
        length = octets[at + 1] * 256 + octets[at + 2]
        _need(at + 3 + length <= len(octets))
        yield octets[at], at + 3, octets[at + 3 : at + 3 + length]
        at += 3 + length


def _facts(header: bytes, at: int) -> tuple[object, object]:
    vectors = list(_vectors(header, at))
    known = (ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL, NETNS)
    kinds = [kind for kind, _, _ in vectors if kind in known]
    _need(len(kinds) == len(set(kinds)))
    for kind, start, value in vectors:
        if kind == CRC32C:
            _need(value == _crc(header[:start] + bytes(4) + header[start + 4 :]))
    there = {kind: value for kind, _, value in vectors}
    _need(len(there.get(UNIQUE_ID, b"")) <= 128)
    others = tuple((kind, value) for kind, _, value in vectors if kind not in (*known, NOOP))
    names = _text(there.get(AUTHORITY)), there.get(UNIQUE_ID), there.get(ALPN), _text(there.get(NETNS))
    return (*names, others), _tls(there.get(SSL))


def _tls(value: bytes | None) -> object:
    if value is None:
        return None
    _need(len(value) >= 5)
    vectors = list(_vectors(value, 5))
    kinds = [kind for kind, _, _ in vectors if kind in (*_TEXTS, CERTIFICATE)]
    _need(len(kinds) == len(set(kinds)))
    there = {kind: octets for kind, _, octets in vectors}
    texts = tuple(_text(there.get(kind)) for kind in (0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27))
    others = tuple((kind, octets) for kind, _, octets in vectors if kind not in (*_TEXTS, CERTIFICATE))
    verify = int.from_bytes(value[1:5], "big")
    facts = texts, there.get(CERTIFICATE), bool(value[0] & 2), bool(value[0] & 4), verify, others
    return facts if value[0] & 1 else None


def _text(value: bytes | None) -> str | None:
    try:
        text = None if value is None else value.decode()
    except UnicodeDecodeError:
        raise Bad from None
    invisible = "\u200b\u2060\ufeff"
    _need(text is None or all(ord(c) >= 32 and not 127 <= ord(c) < 160 and c not in invisible for c in text))
    return text


def _crc(octets: bytes) -> bytes:
    """Return the CRC-32C of some octets, bit by bit."""
    remainder = 0xFFFFFFFF
    for octet in octets:
        remainder ^= octet
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 * (remainder & 1))
    return (remainder ^ 0xFFFFFFFF).to_bytes(4, "big")
