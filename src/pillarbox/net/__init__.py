"""Everything that touches sockets: the asyncio transport, TLS, DNS, listeners."""
