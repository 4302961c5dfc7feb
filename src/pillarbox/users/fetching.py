"""How this room speaks HTTP: TLS is verified, nothing is followed, kept or read without end. By aiohttp."""

from __future__ import annotations

import logging
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pillarbox import ConfigurationError
from pillarbox.program.paths import expanded
from pillarbox.program.settings import is_http_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

__all__ = ["check_url", "http_session", "read_at_most"]

_CONNECTIONS = 32  # at once; more requests wait

_log = logging.getLogger("pillarbox.users")


def check_url(url: str) -> None:
    """Raise ConfigurationError for what is no URL of HTTP, or holds a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError where it is none
    except ValueError as error:
        raise ConfigurationError(f"users: this is no URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"users: {parts.scheme}://…@{parts.hostname}: put what is secret into the setting token"
        )
    if not is_http_url(url):
        raise ConfigurationError(f"{url!r} names no host, or has a space in it: write https://HOST/PATH")


def http_session(
    url: str, *, headers: Mapping[str, str], timeout: float, ca: str | None = None
) -> aiohttp.ClientSession:
    """Return what asks this URL; raise ConfigurationError where it cannot be made. Only inside an event loop."""
    try:
        import aiohttp
    except ImportError as error:
        extra = "http" if url.startswith("http") else "jwt"
        raise ConfigurationError(f"{url}: aiohttp is missing: pip install 'pillarbox[{extra}]'") from error
    if _is_in_the_clear(url):
        _log.warning("%s: without TLS anybody on the way can read and change what is asked: use https", url)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=_context(url, ca), limit=_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),  # what is said for one user must not go along with another
        headers={"User-Agent": "pillarbox", **headers},
        timeout=aiohttp.ClientTimeout(total=timeout),
        trust_env=False,
    )


async def read_at_most(answer: aiohttp.ClientResponse, octets: int) -> bytes:
    """Return an answer's content; raise ValueError where it is longer."""
    content = bytearray()
    async for block in answer.content.iter_any():
        content += block
        if len(content) > octets:
            raise ValueError(f"its answer has more than {octets} octets")
    return bytes(content)


def _context(url: str, ca: str | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=expanded(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{url}: ca: {ca} cannot be used: {error.strerror or error}") from error


def _is_in_the_clear(url: str) -> bool:
    parts: Any = urlsplit(url)
    if parts.scheme.lower() == "https":
        return False
    try:
        return not ip_address(parts.hostname).is_loopback
    except ValueError:
        return bool(parts.hostname != "localhost")
