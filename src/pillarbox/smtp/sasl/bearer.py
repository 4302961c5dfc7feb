"""What XOAUTH2 and OAUTHBEARER share: a bearer token among key-value pairs, and a failure that is told as JSON."""

from __future__ import annotations

from pillarbox.errors import Reject
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, text


def bearer_token(value: bytes) -> str:
    """Return the token of ``Bearer …`` (RFC 6750 2.1); "" where that is no such thing."""
    scheme, _, token = text(value).partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def pairs(octets: bytes) -> dict[bytes, bytes]:
    """Return what stands between ^A, with the keys in lower case; none may be there twice."""
    given = [part.partition(b"=") for part in octets.split(b"\x01") if b"=" in part]
    found = {key.lower(): value for key, _, value in given}
    if len(found) < len(given):
        raise InvalidCredential("a key stands there twice")
    return found


async def verify_or_tell(exchange: Exchange, request: AuthRequest, failure: object) -> object:
    """Verify a token; a failure is first told as JSON, to which the client answers with any line."""
    try:
        return await exchange.verify(request)
    except Reject as reject:
        if reject.code is not None and reject.code != 535:
            raise
        told = failure if reject.data is None else reject.data
        import json  # 2 ms, which few servers ever need

        await exchange.tell(json.dumps(told, default=str).encode())
        raise
