"""``https://…`` or ``http://…``: an HTTP endpoint is asked with JSON who may log in. aiohttp speaks HTTP."""

from __future__ import annotations

import json
import logging
import ssl
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from pillarbox import ConfigurationError, log_fields
from pillarbox.program.paths import looks
from pillarbox.users.contract import PASSWORD_METHODS, TOKEN_METHODS, Settings, Users, acts_as_itself, unavailable
from pillarbox.users.fetching import check_url, http_session, read_at_most

if TYPE_CHECKING:
    import aiohttp

    from pillarbox import AuthRequest, Session

__all__ = ["HTTPSettings", "HTTPUsers"]

_LONGEST_ANSWER = 64 * 1024  # octets
_REFUSED = (401, 403)

_log = logging.getLogger("pillarbox.users")


class HTTPSettings(Settings):
    """What the table of an endpoint may hold.

    token: sent as ``Authorization: Bearer``, so that the endpoint knows who asks. timeout: seconds for an answer. ca: a
    PEM file with the authorities to trust in place of the system's. methods: what the endpoint can verify: passwords
    (PLAIN, LOGIN) and tokens (OAUTHBEARER, XOAUTH2).
    """

    token: SecretStr | None = None
    timeout: float = Field(default=10.0, gt=0)
    ca: str | None = None
    methods: list[str] = Field(default=list(PASSWORD_METHODS), min_length=1)


class HTTPUsers(Users):
    """The backends ``https://…`` and ``http://…``."""

    Settings = HTTPSettings

    def __init__(self, url: str, settings: HTTPSettings) -> None:
        check_url(url)
        super().__init__(url, settings)
        known = (*PASSWORD_METHODS, *TOKEN_METHODS)
        if unknown := [method for method in settings.methods if method not in known]:
            raise ConfigurationError(f"{url}: methods: an endpoint cannot verify {unknown[0]}, only {', '.join(known)}")
        token = settings.token
        if token is not None and not (token.get_secret_value().isascii() and token.get_secret_value().isprintable()):
            raise ConfigurationError(f"{url}: token: a header cannot hold it: only printable ASCII can be sent")
        self._http: aiohttp.ClientSession | None = None
        self.files = looks(settings.ca)

    def same_as(self, other: Users) -> bool:
        """Whether the other has the same authorities too, also those in the file."""
        return isinstance(other, HTTPUsers) and super().same_as(other) and self.files == other.files

    async def start(self) -> None:
        """Make ready; the endpoint is not asked before there is a login."""
        token = self.settings.token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token is not None else {}
        self._http = http_session(self.url, headers=headers, timeout=self.settings.timeout, ca=self.settings.ca)

    def methods(self) -> tuple[str, ...]:
        """Return the setting ``methods``."""
        return tuple(self.settings.methods)

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Ask the endpoint: 200 with a user accepts, 401 and 403 refuse, all else is a failure for now."""
        import aiohttp

        if not acts_as_itself(auth):
            return None
        try:
            status, content = await self._asked(question(auth, session))
            if status in _REFUSED:
                return None
            return _user(status, content)
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError, ValueError) as error:
            # Not the answer itself: it may say again what it was asked.
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            _log.error("%s: %s", self.url, reason, extra=log_fields(session, "users", "auth"))
            raise unavailable() from None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def _asked(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        import aiohttp

        try:
            return await self._post(asked)
        except (
            aiohttp.ServerDisconnectedError
        ):  # an idle connection that the endpoint has closed: once more, on a new one
            return await self._post(asked)

    async def _post(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        assert self._http is not None, "start() comes first"  # noqa: S101
        # To no other place: what is sent is a password.
        async with self._http.post(self.url, json=asked, allow_redirects=False) as answer:
            return answer.status, await read_at_most(answer, _LONGEST_ANSWER)


def question(auth: AuthRequest, session: Session) -> dict[str, Any]:
    """Return what the endpoint is told of a login."""
    secret = {"token": auth.access_token} if auth.method in TOKEN_METHODS else {"password": auth.password}
    tls = session.tls
    return {
        "username": auth.username,
        **secret,
        "mechanism": auth.method,
        "session": session.id,
        "client": {
            "address": session.remote_address,
            "port": session.remote_port,
            "name": session.client_hostname,
            "hello": session.host_name_appears_as,
        },
        "listener": {
            "address": session.local_address,
            "port": session.local_port,
            "protocol": "lmtp" if session.lmtp else "smtp",
        },
        # Where a proxy did the handshake, it is secure and nothing else is known of it.
        "tls": {"version": tls.version, "cipher": tls.cipher} if tls is not None else {} if session.secure else None,
    }


def _user(status: int, content: bytes) -> str:
    """Return the user in an answer; raise ValueError, which does not say what it holds."""
    if status != 200:
        raise ValueError(f"it answered {status}, and neither 200, 401 nor 403")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("its answer is no JSON") from None
    user = answer.get("user") if isinstance(answer, dict) else None
    if not isinstance(user, str) or not user or not user.isprintable():
        raise ValueError('its answer has no user: it must be {"user": "the name"}')
    return user
