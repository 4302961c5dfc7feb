"""ANONYMOUS (RFC 4505): no credential at all, only what the client cares to say of itself."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, identity

# RFC 4505 2 gives a token at most 255 characters; the other form is an e-mail address: 64 of them, "@" and 255.
_MAX_TOKEN, _MAX_ADDRESS = 255, 320


class Anonymous(Mechanism):
    """Maybe a trace: an e-mail address or any words without "@"."""

    name = "ANONYMOUS"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        trace = identity(await exchange.challenge(b"") if initial is None else initial)
        if len(trace) > (_MAX_ADDRESS if "@" in trace else _MAX_TOKEN):
            raise InvalidCredential("the trace is too long")
        return await exchange.verify(AuthRequest(self.name, "anonymous", trace=trace))
