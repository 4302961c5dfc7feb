"""PLAIN (RFC 4616)."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, identity, text


class Plain(Mechanism):
    """Authzid, authcid and password in one message."""

    name = "PLAIN"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        # RFC 4954 4: without an initial response the server sends "334 " with an empty challenge.
        token = await exchange.challenge(b"") if initial is None else initial
        # RFC 4616 2: 'message = [authzid] UTF8NUL authcid UTF8NUL passwd'
        parts = token.split(b"\0")
        if len(parts) != 3:
            raise InvalidCredential("PLAIN takes three parts")
        authzid, authcid = identity(parts[0]), identity(parts[1])
        username = authcid or authzid
        if not username:
            raise InvalidCredential("no user name")
        return await exchange.verify(
            AuthRequest(self.name, username, password=text(parts[2]), authcid=authcid, authzid=authzid)
        )
