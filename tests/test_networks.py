"""Which peers a list of addresses and networks means."""

from __future__ import annotations

import pytest

from pillarbox import Networks


# A system with both protocols on one socket shows IPv4 clients so, and so they come into lists.
@pytest.mark.parametrize("entry", ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:a00:1/128"])
def test_ipv4_in_ipv6_is_ipv4(entry: str) -> None:
    assert "10.0.0.1" in Networks([entry])
    assert "192.0.2.1" not in Networks([entry])
    assert "::a00:1" not in Networks([entry])


def test_ipv6() -> None:
    assert "2001:db8::1" in Networks(["2001:db8::5/32"])
    assert "2001:db9::1" not in Networks(["2001:db8::5/32"])
    assert "10.0.0.1" not in Networks(["::/0"])
