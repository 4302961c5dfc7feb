"""PLAIN (RFC 4616)."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, identity, text


async def authenticate(exchange: Exchange, initial: bytes | None) -> object:
    """Take authzid, authcid and password in one message."""
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
        AuthRequest("PLAIN", username, password=text(parts[2]), authcid=authcid, authzid=authzid)
    )
