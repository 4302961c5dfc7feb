"""Addresses of peers: their one canonical form, and which of them a list of addresses and networks means."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


def normal_address(address: str) -> str:
    """Return an address in its canonical form: IPv4-mapped IPv6 unwrapped, IPv6 compressed, without a zone.

    Raises ValueError for what is no address.
    """
    parsed = ip_address(address.partition("%")[0] if ":" in address else address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(parsed)


def client_network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address.

    A /64 is what one customer or one host is given; who has one can use all its addresses.
    """
    return str(ip_network((address, 64), strict=False)) if ":" in address else address


class Networks:
    """A set of peers: ``address in networks``. True or ``*`` is everyone, False or an empty list no one."""

    __slots__ = ("_everyone", "_networks")

    def __init__(self, listed: bool | Iterable[str]) -> None:
        entries = () if isinstance(listed, bool) else tuple(listed)
        self._everyone = listed is True or "*" in entries
        self._networks = tuple(_normal_network(entry) for entry in entries if entry != "*")

    def __bool__(self) -> bool:
        return self._everyone or bool(self._networks)

    @property
    def shortest_prefix(self) -> int:
        """How many bits its largest network is told by: 0 for everyone, 128 for no one."""
        return 0 if self._everyone else min((network.prefixlen for network in self._networks), default=128)

    def __contains__(self, address: str) -> bool:
        if self._everyone:
            return True
        if not self._networks or not address:  # a Unix socket's peer has no address
            return False
        peer = ip_address(address)
        return any(peer in network for network in self._networks)


def _normal_network(entry: str) -> IPv4Network | IPv6Network:
    """Return a network in the form of the addresses that are compared with it: IPv4-mapped IPv6 unwrapped."""
    network = ip_network(entry, strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network[0].ipv4_mapped is not None:
        return IPv4Network((network[0].ipv4_mapped, network.prefixlen - 96))
    return network
