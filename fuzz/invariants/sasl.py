"""Every SASL mechanism against a client that says anything: a user, a refusal or a malformed credential, nothing else.

And nobody is a user whom the application has not let in: of these accounts only "ann" with "secret" may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache

from pillarbox import AuthRequest, InvalidCredential, Reject, ScramKeys, Session, TLSInfo
from pillarbox.smtp.grammar import has_forbidden_characters
from pillarbox.smtp.reply import Refused
from pillarbox.smtp.sasl import built_in

NAMES = (
    "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "ANONYMOUS", "SCRAM-SHA-1", "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
)  # fmt: skip
STEP = b"\n"  # what stands between two of the client's messages


@cache
def _keys() -> Sequence[ScramKeys]:
    return [ScramKeys.from_password("secret", hash=name, iterations=4096, salt=b"salt") for name in ("sha1", "sha256")]


class _Exchange:
    """An exchange with a client whose messages are there already."""

    host = "mx.test"

    def __init__(self, messages: list[bytes]) -> None:
        tls = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", channel_bindings={"tls-server-end-point": b"hash"})
        self.session = Session(remote_address="192.0.2.1", secure=True)
        self.session.tls = tls
        self.offered: Collection[str] = NAMES
        self._messages = messages
        self.asked: list[AuthRequest] = []

    async def challenge(self, octets: bytes) -> bytes:
        if not self._messages:
            raise Refused.__new__(Refused)
        return self._messages.pop(0)

    async def tell(self, octets: bytes) -> None:
        return

    async def verify(self, request: AuthRequest) -> object:
        self.asked.append(request)
        if request.verified or request.validate_password("secret"):
            return request.username
        raise Reject

    async def scram_keys(self, username: str) -> Sequence[ScramKeys]:
        return _keys() if username == "ann" else ()


def one(octets: bytes) -> None:
    """Try one input: the mechanism, whether there is an initial response, and the client's messages."""
    if len(octets) < 2:
        return
    name, messages = NAMES[octets[0] % len(NAMES)], octets[2:].split(STEP)
    exchange = _Exchange(messages)
    initial = messages.pop(0) if octets[1] % 2 else None
    running = built_in(name).authenticate(exchange, initial)
    try:
        running.send(None)
    except StopIteration as done:
        assert done.value, "a user that is nobody"
        assert name not in ("EXTERNAL", "ANONYMOUS", "XOAUTH2", "OAUTHBEARER"), done.value
        assert not name.startswith(("SCRAM", "CRAM")), "a proof that nobody could make"
    except (InvalidCredential, Reject, Refused):
        pass
    else:
        raise AssertionError("it waits for something else than the client")
    for request in exchange.asked:
        assert request.method == name
        assert not any(map(has_forbidden_characters, (request.username, request.authcid, request.authzid)))
        assert repr(request) == repr(replace(request, password="", access_token="")), "a secret in a repr"
