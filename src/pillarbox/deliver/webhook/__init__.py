"""``http://…`` and ``https://…``: a message is accepted when the endpoint has answered 2xx, and never before.

The message waits in a spool until it is whole, since its signature stands in front of it; see docs/target-webhook.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, ClassVar

from pillarbox import ConfigurationError, Reject
from pillarbox.deliver import Settings, Target
from pillarbox.deliver.disk import Steps, Threads
from pillarbox.deliver.spool import Spool
from pillarbox.deliver.webhook.body import Body, json_body, multipart_body, reference_body
from pillarbox.deliver.webhook.event import EventMessage, event_for
from pillarbox.deliver.webhook.mime import content_of
from pillarbox.deliver.webhook.named_spool import NAME_START, NamedSpool, remove_leftovers
from pillarbox.deliver.webhook.settings import WebhookSettings, check_extra, shown_url
from pillarbox.deliver.webhook.signature import secret_key
from pillarbox.program.paths import expanded, looks

if TYPE_CHECKING:
    from pillarbox import Recipient, Session
    from pillarbox.deliver import Message
    from pillarbox.deliver.webhook.endpoint import Endpoint

__all__ = ["Webhook", "WebhookSettings"]


class Webhook(Target):
    """The target ``https://HOST/PATH``."""

    Settings: ClassVar[type[Settings]] = WebhookSettings
    settings: WebhookSettings

    def __init__(self, url: str, settings: WebhookSettings | None = None) -> None:
        settings = settings or WebhookSettings()
        super().__init__(shown_url(url, settings), settings)
        check_extra()
        self._full_url = url
        self._keys = [secret_key(secret) for secret in settings.secrets]
        self._folder = _path(settings.folder)
        self._threads = Threads(url)
        files = (settings.secret_file, settings.ca, settings.cert, settings.key)
        self.made_from = (url, *looks(*files))  # not to be shown
        self._endpoint: Endpoint | None = None

    def same_as(self, other: Target) -> bool:
        """Whether the other has the same secrets and certificates too, also those in files."""
        if not isinstance(other, Webhook) or not super().same_as(other):
            return False
        return self.made_from == other.made_from

    async def start(self) -> None:
        """Read secrets and certificates, and look at the folder; the endpoint is asked with the first message only."""
        from pillarbox.deliver.webhook.endpoint import Endpoint

        keys = self._keys + await asyncio.to_thread(self._from_file)
        tls = await asyncio.to_thread(self._context)
        await asyncio.to_thread(self._check_folder)
        self._endpoint = Endpoint(self._full_url, self.url, self.settings, keys, tls)

    async def close(self) -> None:
        """End the connections."""
        if self._endpoint is not None:
            await self._endpoint.close()

    @property
    def verifies(self) -> bool:
        """Whether there is a limit."""
        return self.settings.size_limit is not None

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Refuse a message that its sender announced as too large before it is sent (RFC 1870)."""
        sender = session.envelope.mail_from
        announced = sender.args.get("SIZE") if sender else None
        if isinstance(announced, str) and announced.isdigit():
            self._check_size(int(announced))

    async def deliver(self, message: Message) -> list[str | Reject]:
        """Spool the message, post it, and return the endpoint's answer for each recipient."""
        if self._endpoint is None:
            raise RuntimeError("start() comes first")
        identifier = _identifier(message)
        steps = Steps(self.url, message.session, self._threads)
        spool = self._spool(identifier, steps)
        try:
            async for block in message:
                self._check_size(spool.size + len(block))
                await spool.write(block)
            await spool.finish()
            body = await steps.run(self._body, message, spool)
            answer = await self._endpoint.post(body, identifier, message)
        except BaseException:
            await steps.end(spool.close)
            raise
        with suppress(asyncio.CancelledError):  # too late: it is delivered
            await steps.end(spool.close)
        return answer

    def _check_size(self, size: int) -> None:
        limit = self.settings.size_limit
        if limit is not None and size > limit:
            raise Reject(552, "Error: message too large", enhanced="5.3.4")

    def _spool(self, identifier: str, steps: Steps) -> Spool:
        if self.settings.format != "reference" or self._folder is None:
            return Spool(steps, self._folder)
        return NamedSpool(steps, self._folder, f"{identifier}_{token_hex(4)}")

    def _body(self, message: Message, spool: Spool) -> Body:
        """Look through the message, and return the body of the request; in a thread."""
        path = str(spool.path.absolute()) if isinstance(spool, NamedSpool) else None
        raw = "" if self.settings.format == "json" else None
        content = content_of(spool, self.settings.text_limit)
        event = event_for(message, content, EventMessage(size=spool.size, sha256=_sha256(spool), path=path, raw=raw))
        if self.settings.format == "json":
            return json_body(event, spool)
        return multipart_body(event, spool) if self.settings.format == "multipart" else reference_body(event)

    # --- At the start

    def _from_file(self) -> list[bytes]:
        path = _path(self.settings.secret_file)
        if path is None:
            return []
        try:
            lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise self._wrong("secret_file", error, path) from None
        secrets = [line for line in lines if line and not line.startswith("#")]
        if not secrets:
            raise ConfigurationError(f"{self.url}: secret_file {path}: there is no secret in it")
        try:
            return [secret_key(secret) for secret in secrets]
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.url}: secret_file {path}: {error}") from None

    def _context(self) -> ssl.SSLContext | None:
        if not self._full_url.lower().startswith("https:"):
            return None
        ca, cert, key = (_path(each) for each in (self.settings.ca, self.settings.cert, self.settings.key))
        try:
            context = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise self._wrong("ca", error, ca) from error
        if cert is not None:
            try:
                context.load_cert_chain(cert, key, password="")
            except OSError as error:
                raise self._wrong("cert", error, cert) from error
        return context

    def _check_folder(self) -> None:
        folder = self._folder
        if folder is None:
            return
        if os.name == "nt" and self.settings.format == "reference":
            raise ConfigurationError(f'{self.url}: format = "reference" needs a POSIX system')
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(f"{self.url}: folder {folder}: there is no such folder that may be written to")
        if self.settings.format == "reference":
            remove_leftovers(folder)

    def _wrong(self, key: str, error: Exception, path: object) -> ConfigurationError:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
        return ConfigurationError(f"{self.url}: {key} {path}: {str(reason).lower()}")


def _sha256(spool: Spool) -> str:
    digest = hashlib.sha256()
    for block in spool.blocks():
        digest.update(block)
    return digest.hexdigest()


def _path(text: str | None) -> Path | None:
    return expanded(text) if text is not None else None


def _identifier(message: Message) -> str:
    """Return the webhook-id: the same for each attempt, another one where the same message goes to other recipients."""
    # The specification: the identifier should not "include any `.`", which separates what is signed.
    addresses = "\n".join(recipient.address for recipient in message.recipients)
    return f"{NAME_START}{message.id.replace('.', '_')}_{hashlib.sha256(addresses.encode()).hexdigest()[:8]}"
