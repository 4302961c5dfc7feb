"""OAUTHBEARER (RFC 7628): a bearer token, and maybe the user it is for."""

from __future__ import annotations

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, text
from pillarbox.smtp.sasl.bearer import bearer_token, pairs, verify_or_tell
from pillarbox.smtp.sasl.gs2 import split_header

# RFC 7628 3.2.2: the member "status" is required; "invalid_token" is RFC 6750's.
FAILURE = {"status": "invalid_token"}


class OAuthBearer(Mechanism):
    """One message: a GS2 header, then ^A and pairs of key and value, each with ^A behind it, then ^A (RFC 7628 3.1)."""

    name = "OAUTHBEARER"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        message = await exchange.challenge(b"") if initial is None else initial
        header, rest = split_header(message)
        # There is no OAUTHBEARER-PLUS: who demands a channel binding cannot have one, who only could use one may go on.
        if header.flag == "p" or not (rest.startswith(b"\x01") and rest.endswith(b"\x01\x01")):
            raise InvalidCredential("no message of OAUTHBEARER")
        fields = pairs(rest)
        bearer = bearer_token(fields.pop(b"auth", b""))
        if not bearer:
            raise InvalidCredential("OAUTHBEARER takes auth=Bearer")
        more = {text(key): text(value) for key, value in fields.items()}
        # RFC 7628 3.1 leaves the authzid out where the token says it all: on_auth then has to return who that is.
        name = header.authzid
        request = AuthRequest(self.name, name, authcid=name, authzid=name, access_token=bearer, properties=more)
        return await verify_or_tell(exchange, request, FAILURE)
