"""The PROXY header's parser: every form, every split, and what no input may do."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pillarbox import ProxyInfo, ProxyTLS
from pillarbox.smtp.proxy import MAX_V2, SIGNATURE, BadHeader, ProxyHeader, crc32c, parse

ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS, AWS, AZURE = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30, 0xEA, 0xEE


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def header(rest: bytes, *, family: int = 0x11, command: int = 0x21) -> bytes:
    """Return a header of version 2 with this behind its first 16 octets."""
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(rest)) + rest


def inet(more: bytes = b"", source: str = "192.0.2.7", destination: str = "198.51.100.1") -> bytes:
    """Return the addresses and ports, and what stands behind them."""
    return ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", 51234, 25) + more


def ssl(*parts: bytes, client: int = 0x01, verify: int = 0) -> bytes:
    return tlv(SSL, struct.pack("!BI", client, verify) + b"".join(parts))


def summed(octets: bytes) -> bytes:
    """Return a header with the right checksum in place of the four zeros of its TLV."""
    at = octets.index(tlv(CRC32C, bytes(4))) + 3
    return octets[:at] + struct.pack("!I", crc32c(octets)) + octets[at + 4 :]


def read(octets: bytes) -> ProxyHeader:
    found = parse(octets)
    assert found is not None
    return found


def told(*tlvs: bytes) -> ProxyInfo:
    """Return what a header with these TLVs says."""
    return read(header(inet(b"".join(tlvs)))).info


LONGEST = ":".join(["ffff"] * 8)
SOURCE, DESTINATION = ("192.0.2.7", 51234), ("198.51.100.1", 25)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n"
FULL = summed(
    header(
        inet(
            tlv(CRC32C, bytes(4))
            + tlv(AUTHORITY, b"mx.example.com")
            + tlv(NOOP, b"xyz")
            + tlv(UNIQUE_ID, b"\x00\xff id")
            + ssl(tlv(0x21, b"TLSv1.3"), tlv(0x23, b"TLS_AES_256_GCM_SHA384"))
            + tlv(AWS, b"\x01vpce-1")
            + tlv(AZURE, b"\x01\x04\x00\x00\x00")
        )
    )
)
GOOD: list[tuple[bytes, Any, Any]] = [
    (V1, SOURCE, DESTINATION),
    (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", ("0.0.0.0", 0), ("255.255.255.255", 65535)),
    (b"PROXY TCP6 2001:DB8::7 ::1 51234 25\r\n", ("2001:db8::7", 51234), ("::1", 25)),
    (f"PROXY TCP6 {LONGEST} {LONGEST} 65535 65535\r\n".encode(), (LONGEST, 65535), (LONGEST, 65535)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN " + b"\xff \0\r\r x" * 10 + b"\r\n", None, None),
    (header(inet()), SOURCE, DESTINATION),
    (header(inet(), family=0x12), SOURCE, DESTINATION),
    (header(inet(b"", "2001:db8::7", "2001:db8::1"), family=0x21), ("2001:db8::7", 51234), ("2001:db8::1", 25)),
    (header(inet(b"", "2001:db8::7", "2001:db8::1"), family=0x22), ("2001:db8::7", 51234), ("2001:db8::1", 25)),
    (header(inet(b"", "::ffff:192.0.2.7", "::ffff:198.51.100.1"), family=0x21), SOURCE, DESTINATION),
    (header(b"/run/x".ljust(216, b"\0"), family=0x31), None, None),
    (header(b"/run/x".ljust(216, b"\0"), family=0x32), None, None),
    (header(b"", family=0x00), None, None),
    (header(b"what nobody understands", family=0x10), None, None),
    (header(b"what nobody understands", family=0x01), None, None),
    (header(b"", command=0x20), None, None),
    (header(inet(), command=0x20), None, None),
    (header(b"\xff" * 50, family=0xFF, command=0x20), None, None),  # LOCAL: the family "is ignored"
    (header(inet(tlv(NOOP, bytes(MAX_V2 - 16 - 12 - 3)))), SOURCE, DESTINATION),  # as long as any may be
    (FULL, SOURCE, DESTINATION),
]  # fmt: skip
BAD = [
    b"EHLO client.example\r\n",
    b"\r\n\r\n\0\r\nQUIX",
    b"PROXYTCP4",
    b"PROXY  TCP4 192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25 \r\n",
    b"PROXY TCP4\t192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 051234 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 025\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 00\r\n",
    b"PROXY TCP4 192.0.2.07 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.1 51234 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::1 51234 25\r\n",
    b"PROXY TCP6 2001:db8::7::1 2001:db8::1 51234 25\r\n",
    b"PROXY TCP6 2001:db8::00007 2001:db8::1 51234 25\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY UNKNOWN" + b" " * 93 + b"\r\n",  # 108 octets
    b"PROXY UDP4 192.0.2.7 198.51.100.1 51234 25\r\n",
    header(inet(), command=0x22),
    header(inet(), command=0x11),
    header(inet(), command=0x30),
    header(inet(), family=0x41),
    header(inet(), family=0x13),
    header(inet()[:-1]),
    header(inet(), family=0x21),
    header(bytes(215), family=0x31),
    header(bytes(MAX_V2 - 15)),
    header(b"", command=0x20)[:14] + struct.pack("!H", MAX_V2 - 15),  # refused before it comes
    header(inet(b"\x04")),
    header(inet(b"\x04\x00")),
    header(inet(b"\x04\x00\x01")),
    header(inet(tlv(NOOP, b"abc")[:-1])),
    header(inet(tlv(AWS, b"x") + b"\x02\xff\xff")),
    header(b"\x02\x00\x05abc", family=0x00),
    header(inet(tlv(UNIQUE_ID, bytes(129)))),
    header(inet(tlv(AUTHORITY, b"a") + tlv(AUTHORITY, b"b"))),
    header(inet(tlv(AUTHORITY, b"\xff"))),
    header(inet(tlv(AUTHORITY, b"a\r\nb"))),
    header(inet(tlv(NETNS, b"a\0"))),
    header(inet(tlv(CRC32C, bytes(4)))),
    header(inet(tlv(CRC32C, b""))),
    header(inet(tlv(CRC32C, bytes(5)))),
    FULL.replace(b"mx.example.com", b"mx.example.org"),
    header(inet(tlv(SSL, bytes(4)))),
    header(inet(ssl(b"\x21"))),
    header(inet(ssl(b"\x21\x00\x08TLSv1.3"))),
    header(inet(ssl(b"\x21\x00\x08TLSv1.3") + tlv(NOOP, b"behind it"))),  # a part must not reach beyond the whole
    header(inet(ssl(tlv(0x21, b"a"), tlv(0x21, b"b")))),
    header(inet(ssl(tlv(0x22, b"\xc3")))),
    header(inet(ssl(tlv(0x22, b"a\nb"), client=0))),
]


@pytest.mark.parametrize(("octets", "source", "destination"), GOOD, ids=range(len(GOOD)))
def test_a_good_header_at_every_length(octets: bytes, source: Any, destination: Any) -> None:
    for length in range(len(octets)):
        assert parse(octets[:length]) is None
    for behind in (b"", b"E", b"EHLO client.example\r\n", V1, octets, b"\x16\x03\x01"):
        found = read(octets + behind)
        assert (found.length, found.source, found.destination) == (len(octets), source, destination)


@pytest.mark.parametrize("octets", BAD, ids=range(len(BAD)))
def test_a_bad_header_at_every_length(octets: bytes) -> None:
    with pytest.raises(BadHeader):
        parse(octets)
    refused = False
    for length in range(len(octets)):
        try:
            assert parse(octets[:length]) is None
            assert not refused
        except BadHeader:
            refused = True


@pytest.mark.promises(
    "Proxies", "A PROXY header has limits of length and time, and a malformed one ends the connection."
)
@pytest.mark.parametrize("octets", [V1[:-2], V1[:-2] + b"\n", V1[:-2] + b"\r", V1[:-2].ljust(106)])
def test_a_line_ends_with_crlf_within_107_octets(octets: bytes) -> None:
    assert parse(octets) is None
    with pytest.raises(BadHeader):
        parse(octets.ljust(107))


# --- What stands behind the addresses


def test_everything_that_a_proxy_may_say() -> None:
    info = read(FULL).info
    assert info == ProxyInfo(
        version=2,
        authority="mx.example.com",
        unique_id=b"\x00\xff id",
        tls=ProxyTLS(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384"),
        tlvs=((AWS, b"\x01vpce-1"), (AZURE, b"\x01\x04\x00\x00\x00")),
    )


def test_what_is_not_known_stays_raw_and_in_order() -> None:
    info = told(tlv(AZURE, b"2"), tlv(0xF0, b""), tlv(AWS, b"1"), tlv(0x06, b"\xff"), tlv(AZURE, b"2"))
    assert info.tlvs == ((AZURE, b"2"), (0xF0, b""), (AWS, b"1"), (0x06, b"\xff"), (AZURE, b"2"))


def test_the_other_types() -> None:
    info = told(
        tlv(ALPN, b"\x00h2"), tlv(NETNS, b"blue"), tlv(UNIQUE_ID, bytes(128)), tlv(AUTHORITY, "grü.example".encode())
    )
    assert (info.alpn, info.netns, info.authority) == (b"\x00h2", "blue", "grü.example")
    assert info.unique_id == bytes(128)
    assert info.tls is None
    assert told(tlv(AUTHORITY, b""), tlv(UNIQUE_ID, b"")) == ProxyInfo(2, authority="", unique_id=b"")


def test_nothing_is_made_of_a_header_with_addresses_alone() -> None:
    assert read(header(inet())).info is read(header(inet(), family=0x12)).info
    assert read(header(inet())).info == ProxyInfo(2)
    assert read(V1).info is read(b"PROXY UNKNOWN\r\n").info
    assert read(V1).info == ProxyInfo(1)


def test_local_says_nothing_but_that() -> None:
    for family in (0x00, 0x11, 0x31, 0xFF):  # "the family which is ignored"
        octets = header(inet(tlv(AUTHORITY, b"x") + ssl()), command=0x20, family=family)
        assert read(octets) == ProxyHeader(len(octets), ProxyInfo(2, local=True))


def test_unknown_families_and_unix_sockets_have_facts_too() -> None:
    assert read(header(tlv(UNIQUE_ID, b"1"), family=0x00)).info.unique_id == b"1"
    assert read(header(bytes(216) + tlv(UNIQUE_ID, b"1"), family=0x31)).info.unique_id == b"1"


def test_tls() -> None:
    names = [b"TLSv1.3", b"client.example", b"AES", b"SHA256", b"RSA2048", b"X25519MLKEM768", b"rsa_pss_rsae_sha256"]
    parts = [tlv(0x21 + number, name) for number, name in enumerate(names)]
    tls = told(ssl(*parts, tlv(0x28, b"\x30\x00"), tlv(0x2F, b"new"), client=0x07, verify=0)).tls
    assert tls == ProxyTLS(
        version="TLSv1.3",
        common_name="client.example",
        cipher="AES",
        signature_algorithm="SHA256",
        key_algorithm="RSA2048",
        group="X25519MLKEM768",
        signature_scheme="rsa_pss_rsae_sha256",
        peer_certificate=b"\x30\x00",
        certificate_on_connection=True,
        certificate_in_session=True,
        verify=0,
        tlvs=((0x2F, b"new"),),
    )


@pytest.mark.parametrize(
    ("client", "verify", "authorized"),
    [(0x01, 0, False), (0x01, 1, False), (0x03, 0, True), (0x05, 0, True), (0x07, 18, False), (0x03, 1 << 31, False)],
)
def test_authorized_is_who_gave_a_certificate_that_verified(client: int, verify: int, authorized: bool) -> None:
    tls = told(ssl(client=client, verify=verify)).tls
    assert tls is not None
    assert (tls.authorized, tls.verify) == (authorized, verify)


def test_a_client_without_tls() -> None:
    assert told(ssl(client=0x00, verify=1)).tls is None
    assert told(ssl(client=0x06)).tls is None


# --- The checksum


# RFC 3720 B.4 has these, byte-swapped.
@pytest.mark.parametrize(
    ("octets", "value"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc32c(octets: bytes, value: int) -> None:
    assert crc32c(octets) == value


@pytest.mark.parametrize("at", range(len(FULL)))
def test_the_checksum_finds_a_wrong_bit_anywhere(at: int) -> None:
    wrong = FULL[:at] + bytes([FULL[at] ^ 0x10]) + FULL[at + 1 :]
    try:
        found = parse(wrong)
    except BadHeader:
        return
    # Only where there is nothing to check: LOCAL, more octets to come, or no checksum's type any more.
    assert found is None or found.info.local or FULL[at] in (CRC32C, 0x11)


# --- Any octets

STARTS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"])
TLVS = st.lists(st.builds(tlv, st.integers(0, 255), st.binary(max_size=40))).map(b"".join)
HEADERS = st.one_of(
    st.builds(lambda start, rest: start + rest, STARTS, st.binary(max_size=200)),
    st.builds(
        lambda tlvs, cut, family, command: header(inet(tlvs)[: cut or None], family=family, command=command),
        TLVS,
        st.integers(-3, 0),
        st.sampled_from([0x00, 0x11, 0x12, 0x10]),
        st.sampled_from([0x20, 0x21]),
    ),
    st.builds(lambda sub: header(inet(ssl(sub))), st.one_of(TLVS, st.binary(max_size=40))),
)


def outcome(octets: bytes) -> object:
    try:
        return parse(octets)
    except BadHeader:
        return BadHeader


@pytest.mark.promises("Proxies", "However a PROXY header is cut into packets, it means the same.")
@given(HEADERS, st.data())
@example(V1, None)
@example(FULL, None)
def test_more_octets_never_change_what_was_decided(octets: bytes, data: Any) -> None:
    whole = outcome(octets)  # never another exception
    length = len(octets) // 2 if data is None else data.draw(st.integers(0, len(octets)))
    before = outcome(octets[:length])
    assert before is None or before == whole
    assert whole is None or outcome(octets + b"\r\n\0x") == whole
    if isinstance(whole, ProxyHeader):
        assert outcome(octets[: whole.length]) == whole
        assert outcome(octets[: whole.length - 1]) is None


@given(st.integers(0, 65535), st.ip_addresses(v=6), st.ip_addresses(v=4), TLVS)
def test_both_versions_say_the_same(port: int, six: Any, four: Any, tlvs: bytes) -> None:
    for address, family in ((six, 0x21), (four, 0x11)):
        line = f"PROXY TCP{address.version} {address} {address} {port} {port}\r\n".encode()
        ports = struct.pack("!HH", port, port)
        first, second = read(line), read(header(address.packed * 2 + ports, family=family))
        assert (first.source, first.destination) == (second.source, second.destination)
        assert first.source is not None
        assert first.source[1] == port
