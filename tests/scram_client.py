"""SCRAM as a client does it, written from RFC 5802 alone: the tests' other side."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from dataclasses import dataclass


@dataclass
class ScramClient:
    """One exchange; ``hash`` is hashlib's name."""

    username: str
    password: str
    hash: str = "sha256"
    nonce: str = "rOprNGfwEbeRWgbNEkqO"
    header: str = "n,,"  # what it says of channel binding, and as whom it wants to act
    binding: bytes = b""  # what the channel says
    extensions: str = ""  # behind the nonce, with a comma in front

    @property
    def bare(self) -> str:
        name = self.username.replace("=", "=3D").replace(",", "=2C")
        return f"n={name},r={self.nonce}{self.extensions}"

    def first(self) -> str:
        return b64encode((self.header + self.bare).encode()).decode()

    def final(self, challenge: str, *, bound: bytes | None = None, nonce: str | None = None) -> str:
        """Answer the server's first message; ``bound`` and ``nonce`` say something else than they should."""
        asked = b64decode(challenge).decode()
        fields = dict(part.split("=", 1) for part in asked.split(","))
        assert fields["r"].startswith(self.nonce)
        assert len(fields["r"]) >= len(self.nonce) + 18
        salt, count = b64decode(fields["s"]), int(fields["i"])
        cbind = b64encode(self.header.encode() + self.binding if bound is None else bound).decode()
        without_proof = f"c={cbind},r={nonce or fields['r']}"
        salted = hashlib.pbkdf2_hmac(self.hash, self.password.encode(), salt, count)
        message = f"{self.bare},{asked},{without_proof}".encode()
        client_key = hmac.digest(salted, b"Client Key", self.hash)
        signature = hmac.digest(hashlib.new(self.hash, client_key).digest(), message, self.hash)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.expected = b"v=" + b64encode(
            hmac.digest(hmac.digest(salted, b"Server Key", self.hash), message, self.hash)
        )
        return b64encode(f"{without_proof},p={b64encode(proof).decode()}".encode()).decode()

    def believes(self, challenge: str) -> bool:
        """Whether the server has proven that it knows the keys."""
        return b64decode(challenge) == self.expected
