"""SCRAM (RFC 5802, RFC 7677): both sides prove that they know the password, which neither sends nor keeps."""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pillarbox.errors import Reject
from pillarbox.smtp.sasl.base import AuthRequest, Exchange, InvalidCredential, Mechanism, text
from pillarbox.smtp.sasl.gs2 import Header, saslname, split_header
from pillarbox.smtp.sasl.keys import NAMES, ScramKeys
from pillarbox.smtp.sasl.saslprep import saslprep

if TYPE_CHECKING:
    from pillarbox.session import Session

# RFC 5802 7: 'attr-val = ALPHA "=" value', and a value holds neither NUL nor ",".
_ATTRIBUTE = re.compile(r"([A-Za-z])=([^\0,]+)")
_NONCE = re.compile(r"[!-+\--~]+")  # RFC 5802 7: printable ASCII without ","
_PLUS = "-PLUS"


class _Failure(Exception):
    """The exchange fails for a reason that RFC 5802 has a word for: it is what the client is told."""


class Scram(Mechanism):
    """SCRAM with one hash; the name may end in -PLUS: then the exchange is bound to the TLS connection."""

    needs_handler = "on_scram"

    def __init__(self, name: str) -> None:
        self.name = name
        self._hash = NAMES[name.removesuffix(_PLUS)]
        self._plus = name.endswith(_PLUS)

    def offered(self, session: Session) -> bool:
        # After XCLIENT the TLS connection is the proxy's, and no client of it could be bound to it.
        bindings = session.tls.channel_bindings if session.tls is not None else {}
        return not self._plus or (bool(bindings) and not session.x_client)

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        try:
            return await self._authenticate(exchange, await exchange.challenge(b"") if initial is None else initial)
        except _Failure as failure:
            # RFC 5802 5.1 lets a server leave the final message out where authentication fails; where it sends one,
            # that says why with "e". It may be the answer to either message; any line of the client may follow.
            await exchange.tell(f"e={failure}".encode())
            cause = failure.__cause__
            raise cause if isinstance(cause, Reject) else Reject() from failure

    async def _authenticate(self, exchange: Exchange, message: bytes) -> object:
        first = _first(message)
        self._check_flag(first.header, exchange)
        keys = await self._keys(exchange, first.username)
        asked = _asked(first, keys)
        proof = _final(await exchange.challenge(asked.encode()), asked, self._binding(first.header, exchange))
        auth_message = f"{first.bare},{asked},{proof.covered}".encode()
        _check_proof(keys, auth_message, proof.octets)
        user = await self._accepted(exchange, first, keys)
        # RFC 4954 4 has no place for data in the 235: the server's own proof goes as a challenge, which the client
        # answers with an empty line where it believes the server.
        if await exchange.challenge(b"v=" + b64encode(_hmac(keys, keys.server_key, auth_message))):
            raise InvalidCredential("SCRAM ends with an empty answer")
        return user

    # --- Channel binding

    def _check_flag(self, header: Header, exchange: Exchange) -> None:
        if (header.flag == "p") != self._plus:
            raise InvalidCredential("-PLUS goes with p=, and nothing else does")
        # RFC 5802 6: 'If the flag is set to "y" and the server supports channel binding, the server MUST fail
        # authentication.' Someone on the way has then taken -PLUS out of what was offered.
        if header.flag == "y" and any(name.startswith("SCRAM-") and name.endswith(_PLUS) for name in exchange.offered):
            raise _Failure("server-does-support-channel-binding")
        if header.flag == "p":
            self._binding(header, exchange)

    @staticmethod
    def _binding(header: Header, exchange: Exchange) -> bytes:
        """Return what the client's ``c=`` must hold: the header, and the channel's own data where it names that."""
        if header.flag != "p":
            return header.octets
        tls = exchange.session.tls
        data = tls.channel_bindings.get(header.binding) if tls is not None else None
        if data is None:
            raise _Failure("unsupported-channel-binding-type")
        return header.octets + data

    # --- The user

    async def _keys(self, exchange: Exchange, username: str) -> ScramKeys:
        """Return the user's keys, or for a user who has none some that no password fits."""
        for keys in await exchange.scram_keys(username):
            if keys.hash == self._hash:
                return keys
        return ScramKeys.of_nobody(username, hash=self._hash)

    async def _accepted(self, exchange: Exchange, first: _First, keys: ScramKeys) -> object:
        name, authzid = first.username, first.header.authzid
        request = AuthRequest(self.name, name, authcid=name, authzid=authzid, verified=True, _check=keys.fits)
        try:
            return await exchange.verify(request)
        except Reject as reject:
            if reject.code not in (None, 535):
                raise
            raise _Failure("invalid-proof") from reject  # nobody needs to learn that the password was right


# --- The client's first message


@dataclass(frozen=True, slots=True)
class _First:
    header: Header
    username: str
    nonce: str
    bare: str


def _first(message: bytes) -> _First:
    """Read ``gs2-header [reserved-mext ","] username "," nonce ["," extensions]``."""
    header, rest = split_header(message)
    bare = text(rest)
    attributes = _attributes(bare)
    if [key for key, _ in attributes[:2]] != ["n", "r"]:
        raise InvalidCredential("SCRAM begins with n= and r=")
    (_, name), (_, nonce) = attributes[:2]
    if not _NONCE.fullmatch(nonce):
        raise InvalidCredential("the nonce is not printable")
    return _First(header, _prepared(saslname(name.encode())), nonce, bare)


def _attributes(message: str) -> list[tuple[str, str]]:
    matches = [_ATTRIBUTE.fullmatch(part) for part in message.split(",")]
    found = [match.groups() for match in matches if match is not None]
    if len(found) < len(matches):
        raise InvalidCredential("SCRAM consists of attributes")
    # RFC 5802 5.1 of "m": "its presence in a client or a server message MUST cause authentication failure when the
    # attribute is parsed by the other end." Other attributes behind those that are known are ignored.
    if any(key == "m" for key, _ in found):
        raise _Failure("extensions-not-supported")
    return [(key, value) for key, value in found]


def _prepared(name: str) -> str:
    # RFC 5802 5.1 has the server prepare the name as a query string, and give up where that fails or leaves nothing.
    try:
        prepared = saslprep(name)
    except ValueError:
        prepared = ""
    if not prepared:
        raise _Failure("invalid-username-encoding")
    return prepared


def _asked(first: _First, keys: ScramKeys) -> str:
    """Return the server's first message: the client's nonce made longer, the salt and the count."""
    import secrets

    salt = b64encode(keys.salt).decode()
    return f"r={first.nonce}{secrets.token_urlsafe(18)},s={salt},i={keys.iterations}"


# --- The client's final message


@dataclass(frozen=True, slots=True)
class _Proof:
    covered: str  # the part of the message that the proof is about
    octets: bytes


def _final(message: bytes, asked: str, binding: bytes) -> _Proof:
    """Read ``c=… "," r=… ["," extensions] "," p=…`` and check all but the proof."""
    import hmac

    answer = text(message)
    attributes = _attributes(answer)
    keys = [key for key, _ in attributes]
    if len(keys) < 3 or keys[:2] != ["c", "r"] or keys[-1] != "p":
        raise InvalidCredential("SCRAM ends with c=, r= and p=")
    (_, bound), (_, nonce), (_, proof) = attributes[0], attributes[1], attributes[-1]
    if not hmac.compare_digest(_decoded(bound), binding):
        raise _Failure("channel-bindings-dont-match")
    if not hmac.compare_digest(f"r={nonce}".encode(), asked.partition(",")[0].encode()):
        raise _Failure("other-error")  # a message of another exchange
    return _Proof(answer.rpartition(",p=")[0], _decoded(proof))


def _decoded(value: str) -> bytes:
    try:
        return a2b_base64(value, strict_mode=True)
    except (Base64Error, ValueError):  # ValueError: not ASCII
        raise _Failure("invalid-encoding") from None


def _check_proof(keys: ScramKeys, auth_message: bytes, proof: bytes) -> None:
    # RFC 5802 3: "ClientSignature := HMAC(StoredKey, AuthMessage)", "ClientProof := ClientKey XOR ClientSignature" and
    # "StoredKey := H(ClientKey)".
    import hashlib
    import hmac

    signature = _hmac(keys, keys.stored_key, auth_message)
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
    is_key = hmac.compare_digest(hashlib.new(keys.hash, client_key).digest(), keys.stored_key)
    if not is_key or len(proof) != len(signature):
        raise _Failure("invalid-proof")


def _hmac(keys: ScramKeys, key: bytes, message: bytes) -> bytes:
    import hmac

    return hmac.digest(key, message, keys.hash)
