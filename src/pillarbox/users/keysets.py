"""Key sets (JWKS, RFC 7517 5): where the keys come from, how long they are kept, and which of them a token means."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from pillarbox import ConfigurationError
from pillarbox.program.paths import local_path
from pillarbox.users.fetching import check_url, http_session, read_at_most
from pillarbox.users.watched import WatchedFile

if TYPE_CHECKING:
    import aiohttp
    import jwt

__all__ = ["FileKeys", "Keys", "KeysUnavailable", "URLKeys"]

LIFETIME = 3600.0  # seconds after which a key set is asked for again: keys are taken back too
LONGEST_LIFE = 24 * 3600.0  # seconds that it is used where it cannot be had anew
PAUSE = 30.0  # seconds between two requests, however many tokens with unknown keys come
_LONGEST_SET = 1024 * 1024  # octets

_log = logging.getLogger("pillarbox.users")


class KeysUnavailable(Exception):
    """There are no keys now; the text says why, for the log."""


class Keys(Protocol):
    """A key set."""

    async def start(self) -> None:
        """Read the keys, once; raise ConfigurationError for what can never work."""

    async def close(self) -> None:
        """Give back what ``start`` took."""

    async def key(self, name: object, algorithm: str) -> jwt.PyJWK:
        """Return the key of that name (``kid``) for an algorithm.

        Raises KeysUnavailable, and ValueError where there is no such key.
        """
        ...


class FileKeys:
    """A key set in a file, which is read again when it changes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._file = WatchedFile(local_path(url), parse_keys)

    async def start(self) -> None:
        try:
            await asyncio.to_thread(self._file.current)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._url}: {_reason(error)}") from error

    async def close(self) -> None:
        """Do nothing: no file stays open."""

    async def key(self, name: object, algorithm: str) -> jwt.PyJWK:
        try:
            keys = await asyncio.to_thread(self._file.current)
        except (OSError, ValueError) as error:
            raise KeysUnavailable(_reason(error)) from error
        return _made(chosen(keys, name, algorithm), algorithm)


class URLKeys:
    """A key set that is fetched, kept for ``LIFETIME``, and fetched anew for a key that is not in it."""

    def __init__(self, url: str, *, timeout: float, ca: str | None) -> None:
        check_url(url)
        self._url, self._timeout, self._ca = url, timeout, ca
        self._http: aiohttp.ClientSession | None = None
        self._fetching = asyncio.Lock()
        self._keys: list[dict[str, Any]] | None = None
        self._got = self._asked = float("-inf")  # when the last set came; when it was last asked for
        self._failure = "not asked for yet"  # of the last request; empty where it brought keys

    async def start(self) -> None:
        self._http = http_session(self._url, headers={}, timeout=self._timeout, ca=self._ca)
        await self._refresh()
        if self._keys is None:
            # Not an error: mail is to come in also while the issuer is down.
            _log.warning("%s: no keys yet, nobody can log in with a token: %s", self._url, self._failure)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def key(self, name: object, algorithm: str) -> jwt.PyJWK:
        if time.monotonic() - self._got > LIFETIME:
            await self._refresh()
        try:
            return _made(chosen(self._current(), name, algorithm), algorithm)
        except UnknownKeyError:
            await self._refresh()
        try:
            return _made(chosen(self._current(), name, algorithm), algorithm)
        except UnknownKeyError:
            if self._failure:  # the set that could not be had may hold it
                raise KeysUnavailable(self._failure) from None
            raise

    def _current(self) -> list[dict[str, Any]]:
        if self._keys is None or time.monotonic() - self._got > LONGEST_LIFE:
            raise KeysUnavailable(self._failure)
        return self._keys

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was just tried; who comes meanwhile waits for the one request."""
        async with self._fetching:
            if time.monotonic() - self._asked < PAUSE:
                return
            self._asked = time.monotonic()
            try:
                self._keys = parse_keys(await self._fetched())
            except Exception as error:  # noqa: BLE001 - whatever goes wrong with somebody else's server, the old keys stay
                self._failure = _reason(error)
                if self._keys is not None:
                    _log.warning("%s: the old keys are used, the new cannot be had: %s", self._url, self._failure)
            else:
                self._got, self._failure = time.monotonic(), ""

    async def _fetched(self) -> bytes:
        assert self._http is not None, "start() comes first"  # noqa: S101
        async with self._http.get(self._url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"it answered {answer.status}")
            return await read_at_most(answer, _LONGEST_SET)


class UnknownKeyError(ValueError):
    """No key fits; a newer set might have it."""


def parse_keys(content: bytes) -> list[dict[str, Any]]:
    """Return the keys of a set that sign; raise ValueError for what is no set of keys."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not keys:
        raise ValueError('it is no key set: it must be {"keys": […]}')
    # RFC 7517 5: "Implementations SHOULD ignore JWKs within a JWK Set that use "kty" (key type) values that are not
    # understood by them, that are missing required members, or for which values are out of the supported ranges."
    return [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]


_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


def chosen(keys: list[dict[str, Any]], name: object, algorithm: str) -> dict[str, Any]:
    """Return the one key that a token means; raise UnknownKeyError where there is none, or more than one."""
    fitting = [
        key
        for key in keys
        if key.get("kty") == _TYPES[algorithm[:2]]
        and key.get("alg", algorithm) == algorithm
        and key.get("crv") == _CURVES.get(algorithm, key.get("crv"))
        and (name is None or key.get("kid") == name)
    ]
    if len(fitting) != 1:
        raise UnknownKeyError(
            "the key set has no such key" if not fitting else "the token does not say which key it is"
        )
    return fitting[0]


def _made(key: dict[str, Any], algorithm: str) -> jwt.PyJWK:
    import jwt

    try:
        return jwt.PyJWK(key, algorithm)
    except jwt.PyJWTError:
        raise ValueError("the key cannot be used") from None  # its text holds the key


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
