"""XOAUTH2 (Google's and Microsoft's): a user name and a bearer token."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, identity
from pillarbox.smtp.sasl.bearer import bearer_token, pairs, verify_or_tell

# What a server answers where the handler does not say: the form of Google's documentation.
FAILURE = {"status": "401", "schemes": "bearer", "scope": "mail"}


class XOAuth2(Mechanism):
    """User and token in one message: "user={User}^Aauth=Bearer {Access Token}^A^A" with ^A for 0x01."""

    name = "XOAUTH2"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        token = await exchange.challenge(b"") if initial is None else initial
        fields = pairs(token)
        username, bearer = identity(fields.get(b"user", b"")), bearer_token(fields.get(b"auth", b""))
        if not (username and bearer):
            raise InvalidCredential("XOAUTH2 takes user and auth=Bearer")
        request = AuthRequest(self.name, username, authcid=username, access_token=bearer)
        return await verify_or_tell(exchange, request, FAILURE)
