"""LOGIN (draft-murchison-sasl-login): two prompts. Obsolete, and still what many clients speak."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, identity, text


async def authenticate(exchange: Exchange, initial: bytes | None) -> object:
    """Ask for a user name, unless it came with the command, and for a password."""
    username = identity(await exchange.challenge(b"Username:") if initial is None else initial)
    if not username:
        raise InvalidCredential("no user name")
    password = text(await exchange.challenge(b"Password:"))
    return await exchange.verify(AuthRequest("LOGIN", username, password=password, authcid=username))
