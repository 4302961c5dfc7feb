"""The PROXY header, against a parser that is slow and plain; and more octets behind a whole one change nothing."""

from __future__ import annotations

import plainproxy

from pillarbox.smtp import proxy


def one(octets: bytes) -> None:
    """Try one input, and all its beginnings."""
    found = _parsed(octets)
    assert found == plainproxy.parse(octets), octets
    for end in range(min(len(octets), 300)):
        part = _parsed(octets[:end])
        if part is None:  # more was wanted
            continue
        assert part == found, f"{octets[:end]!r} is {part}, {octets!r} is {found}"
        return


def _parsed(octets: bytes) -> object:
    """Return what the header says in the form of the plain parser."""
    try:
        header = proxy.parse(octets)
    except proxy.BadHeader:
        return plainproxy.Bad
    if header is None:
        assert len(octets) < proxy.MAX_V2, "it wants more than a header may have"
        return None
    assert 0 < header.length <= len(octets), header
    return plainproxy.said(header)
