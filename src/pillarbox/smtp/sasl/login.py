"""LOGIN (draft-murchison-sasl-login): two prompts. Obsolete, and still what many clients speak."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, identity, text


class Login(Mechanism):
    """A user name, which may come with the command, and a password."""

    name = "LOGIN"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        username = identity(await exchange.challenge(b"Username:") if initial is None else initial)
        if not username:
            raise InvalidCredential("no user name")
        password = text(await exchange.challenge(b"Password:"))
        return await exchange.verify(AuthRequest(self.name, username, password=password, authcid=username))
