"""XOAUTH2 (Google's and Microsoft's): a user name and a bearer token."""

from __future__ import annotations

from pillarbox.errors import Reject
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, identity, text

# What a server answers where the handler does not say: the form of Google's documentation.
FAILURE = {"status": "401", "schemes": "bearer", "scope": "mail"}


async def authenticate(exchange: Exchange, initial: bytes | None) -> object:
    """Take user and token; a failure is first told as JSON, to which the client answers with any line."""
    token = await exchange.challenge(b"") if initial is None else initial
    request = _request(token)
    try:
        return await exchange.verify(request)
    except Reject as failure:
        if failure.code is not None and failure.code != 535:
            raise
        told = FAILURE if failure.data is None else failure.data
        import json  # 2 ms, which few servers ever need

        await exchange.tell(json.dumps(told, default=str).encode())
        raise


def _request(token: bytes) -> AuthRequest:
    # The form is "user={User}^Aauth=Bearer {Access Token}^A^A" with ^A for 0x01.
    fields = {}
    for part in token.split(b"\x01"):
        key, equals, value = part.partition(b"=")
        if equals:
            fields[key.lower()] = value
    username = identity(fields.get(b"user", b""))
    scheme, _, bearer = text(fields.get(b"auth", b"")).partition(" ")
    if not username or scheme.lower() != "bearer" or not bearer.strip():
        raise InvalidCredential("XOAUTH2 takes user and auth=Bearer")
    return AuthRequest("XOAUTH2", username, authcid=username, access_token=bearer.strip())
