"""CRAM-MD5 (RFC 2195): the password is not sent, but the server must know it."""

from __future__ import annotations

import time

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, identity


class CramMD5(Mechanism):
    """A challenge, to which the answer is the user name and an HMAC of the challenge."""

    name = "CRAM-MD5"

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        import hmac
        import secrets

        if initial is not None:  # RFC 4954 4: a server-first mechanism has no initial response
            raise InvalidCredential("CRAM-MD5 takes no initial response")
        # RFC 2195 2: "a string … presumptively arbitrary … random digits, a timestamp, and the … host name"
        challenge = f"<{secrets.randbits(64)}.{time.time_ns() // 1_000_000}@{exchange.host}>".encode()
        answer = await exchange.challenge(challenge)
        name, space, digest = answer.rpartition(b" ")
        username = identity(name)
        if not (space and username):
            raise InvalidCredential("CRAM-MD5 answers with a user name and a digest")

        def knows(password: str) -> bool:
            expected = hmac.new(password.encode(), challenge, "md5").hexdigest().encode()
            return hmac.compare_digest(expected, digest.lower())

        return await exchange.verify(AuthRequest(self.name, username, authcid=username, _check=knows))
