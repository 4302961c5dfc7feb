"""One endpoint: its connections, its secrets, and how often and how long it is asked before the client is told to wait.

Each attempt has a time stamp and signatures of its own; the identifier stays, so that the endpoint knows it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from pillarbox import Reject, __version__, log_fields
from pillarbox.deliver import unavailable
from pillarbox.deliver.webhook.answer import ANSWER_SIZE, Answer, NotUnderstood, answers, is_passing, refusal_for
from pillarbox.deliver.webhook.signature import signatures

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from pillarbox.deliver import Message
    from pillarbox.deliver.webhook.body import Body
    from pillarbox.deliver.webhook.settings import WebhookSettings

__all__ = ["Endpoint"]

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between attempts
_ADVICE = {
    401: "look at headers and secret",
    403: "look at headers and secret",
    404: "look at the URL",
    405: "look at the URL: it takes no POST",
    407: "look at proxy",
}

_LASTING = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, aiohttp.InvalidURL)

_log = logging.getLogger("pillarbox.deliver")


class _TryAgain(Exception):
    """It may go better soon. after: the seconds it asks for; refusal: what the client hears in the end."""

    def __init__(self, reason: str, refusal: Reject | None = None, after: float = 0.0) -> None:
        super().__init__(reason)
        self.refusal = refusal or unavailable()
        self.after = after


class _GiveUp(Exception):
    """Something is to be changed before this can work; the text says what, for the log."""


class Endpoint:
    """Posts bodies to one URL; make it in the event loop, and close it there."""

    def __init__(
        self, url: str, shown: str, settings: WebhookSettings, keys: Sequence[bytes], tls: ssl.SSLContext | None
    ) -> None:
        self._url = url
        self._shown = shown
        self._settings = settings
        self._keys = keys
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._tls = tls or True
        self._session = _session(settings)
        self._backoff = wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT) + wait_random(0, _FIRST_WAIT)

    async def close(self) -> None:
        """End the connections."""
        await self._session.close()

    async def post(self, body: Body, identifier: str, message: Message) -> list[str | Reject]:
        """Return the endpoint's answer for each recipient; Reject for all if it has none that can be used."""
        limit = asyncio.timeout(self._settings.give_up_after)
        try:
            async with limit:
                return await self._retrying(message)(self._attempt, body, identifier, message)
        except _TryAgain as trouble:
            refusal, reason = trouble.refusal, str(trouble)
        except _GiveUp as trouble:
            refusal, reason = unavailable(), str(trouble)
        except TimeoutError:
            if not limit.expired():
                raise
            refusal, reason = unavailable(), f"no answer in {self._settings.give_up_after:g} seconds"
        fields = log_fields(message.session, "deliver", "deliver")
        _log.error("cannot hand a message to %s: %s", self._shown, reason, extra=fields)
        raise refusal

    def _retrying(self, message: Message) -> AsyncRetrying:
        def note(state: RetryCallState) -> None:
            fields = log_fields(message.session, "deliver", "deliver")
            failure = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            text = "attempt %d at %s failed: %s; again in %.1f seconds"
            _log.info(text, state.attempt_number, self._shown, failure, wait, extra=fields)

        return AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            # An endpoint that asks for a longer pause than the client's time allows is not asked again.
            stop=stop_after_attempt(self._settings.attempts) | stop_before_delay(self._settings.give_up_after),
            wait=self._wait,
            before_sleep=note,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        return max(self._backoff(state), failure.after if isinstance(failure, _TryAgain) else 0.0)

    async def _attempt(self, body: Body, identifier: str, message: Message) -> list[str | Reject]:
        async with self._slots:
            headers = await self._headers(body, identifier)
            if self._session.closed:
                raise _GiveUp("the target is closed")
            try:
                status, answer, after, location = await self._exchange(body, headers)
            except _LASTING as error:
                raise _GiveUp(_described(error)) from error
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one
                raise _TryAgain(_described(error)) from error
        try:
            understood = Answer.from_body(*answer)
            if understood.is_silent and not 200 <= status <= 299:
                self._check(status, after, location)
            return answers(status, understood, message.recipients, f"{self._shown} ({identifier})")
        except NotUnderstood as error:
            raise _GiveUp(f"its answer cannot be understood: {error}") from error

    def _check(self, status: int, after: float, location: str) -> None:
        """Raise for a status that does not refuse the message itself."""
        refusal = refusal_for(status)
        if is_passing(status):
            raise _TryAgain(f"status {status}", refusal, after)
        if refusal.code == unavailable().code:
            advice = (
                f"it redirects to {_without_query(location)}: write that"
                if 300 <= status <= 399
                else _ADVICE.get(status)
            )
            raise _GiveUp(f"status {status}{f' ({advice})' if advice else ''}")

    async def _headers(self, body: Body, identifier: str) -> dict[str, str]:
        timestamp = int(time.time())
        headers = {
            "Content-Type": body.content_type,
            "Content-Length": str(body.length),
            "webhook-id": identifier,
            "webhook-timestamp": str(timestamp),
        }
        if self._keys:
            headers["webhook-signature"] = " ".join(await self._signed(body, identifier, timestamp))
        return headers

    async def _signed(self, body: Body, identifier: str, timestamp: int) -> list[str]:
        def sign(payload: Iterable[bytes]) -> list[str]:
            return signatures(self._keys, identifier, timestamp, payload)

        signed = await asyncio.to_thread(sign, body.blocks()) if body.on_disk else sign(body.blocks())
        # Receivers that read a form have the event, but no longer the body; and the libraries of Standard Webhooks take
        # text alone, where a message may be of any octets. The event holds the message's SHA-256.
        return signed if body.event is None else [*signed, *sign([body.event])]

    async def _exchange(self, body: Body, fields: dict[str, str]) -> tuple[int, tuple[bytes, str], float, str]:
        """Return status, body with its type, the seconds of Retry-After, and where a redirection leads."""
        proxy = self._settings.proxy.get_secret_value() if self._settings.proxy else None
        # Not `async with`: where an endpoint answers before it has read all and closes, it would raise for what could
        # not be written, and the answer (413) would be lost.
        response = await self._session.post(
            self._url, data=body.stream(), headers=fields, allow_redirects=False, proxy=proxy, ssl=self._tls
        )
        try:
            content = await _content(response)
        finally:
            response.release()
        headers = response.headers
        return response.status, content, _retry_after(headers.get("Retry-After", "")), headers.get("Location", "")


def _session(settings: WebhookSettings) -> aiohttp.ClientSession:
    connector: aiohttp.BaseConnector
    if settings.socket is not None:
        connector = aiohttp.UnixConnector(settings.socket, limit=0)
    else:
        # Names are looked up as all other programs of the host do it; the number of connections has a limit above it.
        connector = aiohttp.TCPConnector(limit=0, resolver=aiohttp.ThreadedResolver())
    return aiohttp.ClientSession(
        connector=connector,
        headers={
            "User-Agent": f"pillarbox/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **{name: value.get_secret_value() for name, value in settings.headers.items()},
        },
        timeout=aiohttp.ClientTimeout(total=settings.request_timeout, sock_connect=settings.connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # the configuration says all: neither a proxy nor a password comes from somewhere else
    )


async def _content(response: aiohttp.ClientResponse) -> tuple[bytes, str]:
    try:
        content = await response.content.readexactly(ANSWER_SIZE + 1)
        response.close()  # there is more, which nobody waits for
    except asyncio.IncompleteReadError as end:
        content = end.partial
    except (aiohttp.ClientError, OSError):
        if response.status <= 299 and response.content_type.endswith("json"):
            raise  # it may have been a refusal
        content = b""
    compressed = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    if compressed and response.status <= 299 and response.content_type.endswith("json"):
        raise _GiveUp("its answer is compressed, which it was asked not to do")  # a refusal would be overlooked
    return content, response.content_type


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After field asks for, 0 without one."""
    # RFC 9110 10.2.3: "Retry-After = HTTP-date / delay-seconds"
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _without_query(location: str) -> str:
    try:
        parts = urlsplit(location)
    except ValueError:
        return "what is no URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def _described(error: BaseException) -> str:
    """Say what went wrong in a connection without the URL, which may hold a secret."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        return str(error)  # host, port and reason
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status} (look at proxy)"
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__}{f': {reason}' if reason else ''}"
