"""``jwt:KEYS``: OAuth bearer tokens that are signed (JWT), checked against a key set. PyJWT checks them.

KEYS is the key set (JWKS, RFC 7517 5): ``jwt:https://id.example.com/keys`` or ``jwt:PATH``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pillarbox import ConfigurationError, Reject, log_fields, saslprep
from pillarbox.program.paths import looks
from pillarbox.users.contract import TOKEN_METHODS, Settings, Users, unavailable
from pillarbox.users.keysets import FileKeys, KeysUnavailable, URLKeys

if TYPE_CHECKING:
    from pillarbox import AuthRequest, Session
    from pillarbox.users.keysets import Keys

__all__ = ["JWTSettings", "JWTUsers"]

# RFC 7518 3.1 and RFC 8037. Those with a shared secret (HS256 …) must be named by who wants them: then whoever checks
# tokens can also make them.
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")

_log = logging.getLogger("pillarbox.users")


class JWTSettings(Settings):
    """What the table of a key set may hold.

    issuer, audience: what the token's ``iss`` and ``aud`` must be; of several audiences one is enough. user_claim: the
    claim that names the user. scopes: what the token must be good for. algorithms: those of signatures. leeway: seconds
    that clocks may differ. ca: a PEM file with the authorities to trust for KEYS. timeout: seconds for an answer.
    """

    issuer: str = Field(min_length=1)
    audience: str | list[str] = Field(min_length=1)
    user_claim: str = Field(default="sub", min_length=1)
    scopes: list[str] = Field(default=[])
    algorithms: list[str] = Field(default=list(ASYMMETRIC), min_length=1)
    leeway: float = Field(default=30.0, ge=0, le=600)
    ca: str | None = None
    timeout: float = Field(default=10.0, gt=0)

    @field_validator("algorithms")
    @classmethod
    def _known(cls, given: list[str]) -> list[str]:
        for name in given:
            if name not in (*ASYMMETRIC, *SYMMETRIC):
                raise ValueError(f"{name!r} is none of {', '.join((*ASYMMETRIC, *SYMMETRIC))}")
        return given


class JWTUsers(Users):
    """The backend ``jwt:KEYS``."""

    Settings = JWTSettings

    def __init__(self, url: str, settings: JWTSettings) -> None:
        super().__init__(url, settings)
        place = url.partition(":")[2]
        self._keys: Keys
        if place.lower().startswith(("http://", "https://")):
            self._keys = URLKeys(place, timeout=settings.timeout, ca=settings.ca)
        else:
            self._keys = FileKeys(url)
        self.files = looks(settings.ca)

    def same_as(self, other: Users) -> bool:
        """Whether the other has the same authorities too, also those in the file."""
        return isinstance(other, JWTUsers) and super().same_as(other) and self.files == other.files

    async def start(self) -> None:
        """Read the key set; one that cannot be reached now is read later."""
        try:
            import jwt  # noqa: F401 - whether it is there
        except ImportError as error:
            raise ConfigurationError(f"{self.url}: PyJWT is missing: pip install 'pillarbox[jwt]'") from error
        await self._keys.start()

    def methods(self) -> tuple[str, ...]:
        """Return the mechanisms that carry a token."""
        return TOKEN_METHODS

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Return the user whom a token names; None for a token of another issuer, Reject for a bad one of ours."""
        import jwt

        token = auth.access_token
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None  # no JWT
        if claimed.get("iss") != self.settings.issuer:
            # Not what it says: nobody has vouched for that yet.
            _log.debug("%s: a token of another issuer", self.url, extra=log_fields(session, "users", "auth"))
            return None
        try:
            user = self._user(await self._verified(token, header))
        except KeysUnavailable as error:
            _log.error("%s: %s", self.url, error, extra=log_fields(session, "users", "auth"))
            raise unavailable() from error
        except _MissingScopeError as error:
            self._note(session, "the token lacks a scope")
            raise self._refusal(auth, "insufficient_scope", "403") from error
        except (jwt.PyJWTError, ValueError) as error:
            self._note(session, f"{type(error).__name__}: {error}")
            raise self._refusal(auth, "invalid_token", "401") from error
        if auth.username and _prepared(auth.username) != user:
            self._note(session, "the token is another user's")
            raise self._refusal(auth, "invalid_token", "401")
        return user

    async def close(self) -> None:
        """Close what fetches the keys."""
        await self._keys.close()

    async def _verified(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        """Return the claims of a token whose signature, issuer, audience and times are right."""
        import jwt

        algorithm = str(header.get("alg"))
        if algorithm not in self.settings.algorithms:
            raise jwt.InvalidAlgorithmError("the algorithm is not allowed")
        key = await self._keys.key(header.get("kid"), algorithm)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self.settings.audience,
            issuer=self.settings.issuer,
            leeway=self.settings.leeway,
            options={"require": ["exp", "iss", "aud", self.settings.user_claim], "enforce_minimum_key_length": True},
        )
        return claims

    def _user(self, claims: dict[str, Any]) -> str:
        # RFC 8693 4.2: "The value of the "scope" claim is a JSON string containing a space-separated list of scopes".
        # Some issuers write "scp", and a list.
        scope = claims.get("scope", claims.get("scp", ""))
        given = scope.split() if isinstance(scope, str) else scope if isinstance(scope, list) else []
        if any(each not in given for each in self.settings.scopes):
            raise _MissingScopeError
        claim = self.settings.user_claim
        # OpenID Connect has a boolean there; some issuers write it as a text.
        if claim == "email" and claims.get("email_verified") in (False, "false", "False"):
            raise ValueError("the e-mail address is not verified")
        user = claims[claim]
        if not isinstance(user, str) or not (prepared := _prepared(user)):
            raise ValueError(f"the claim {claim} is no name")
        return prepared

    def _refusal(self, auth: AuthRequest, error: str, status: str) -> Reject:
        """Return the refusal with what the client's OAuth library wants to know."""
        scope = {"scope": " ".join(self.settings.scopes)} if self.settings.scopes else {}
        if auth.method == "XOAUTH2":
            return Reject(535, data={"status": status, "schemes": "bearer", "scope": scope.get("scope", "mail")})
        # RFC 7628 3.2.2: "status" is required; "invalid_token" and "insufficient_scope" are of RFC 6750 3.1.
        return Reject(535, data={"status": error, **scope})

    def _note(self, session: Session, reason: str) -> None:
        _log.info("%s: token refused: %s", self.url, reason, extra=log_fields(session, "users", "auth"))


class _MissingScopeError(Exception):
    """The token is good, and not for mail."""


def _prepared(name: str) -> str:
    try:
        return saslprep(name)
    except ValueError:
        return ""
