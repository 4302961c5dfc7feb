"""How a connection to the next server is made: greeting, EHLO or LHLO, TLS and AUTH, by aiosmtplib.

Then the socket changes hands: ``relay_client`` speaks from there on.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPResponseException,
)

from pillarbox.deliver.relay_client import LONGEST_LINE, Connection, Lost

if TYPE_CHECKING:
    from pillarbox.deliver.relay_settings import Place

__all__ = ["LoginRefused", "connect"]

_PLACE = re.compile(r"Error connecting to .*? on port \w+: ")


class LoginRefused(Lost):
    """The next server does not take our name and password: to try that again at once locks accounts."""


async def connect(place: Place) -> Connection:
    """Return a connection that is ready for MAIL; raise Lost."""
    smtp = _client(place)
    cancelled = _cancelled()
    try:
        await smtp.connect(timeout=place.limits.connect)
        await _hello(smtp, place)
        await _secured(smtp, place)
        await _logged_in(smtp, place)
        # asyncio.wait_for of Python 3.11, by which aiosmtplib waits, may swallow a cancellation.
        if _cancelled() > cancelled:
            raise asyncio.CancelledError
        return _handed_over(smtp, place)
    except BaseException as error:
        smtp.close()
        if isinstance(error, SMTPException | OSError | ValueError):  # ValueError: what CRAM-MD5 was asked is no base64
            raise Lost(_reason(error), "4.4.1") from error
        raise


def _cancelled() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _client(place: Place) -> SMTP:
    where: dict[str, str | int] = (
        {"socket_path": place.path} if place.path else {"hostname": place.host, "port": place.port}
    )
    return SMTP(
        **where,  # type: ignore[arg-type]  # each is of its type
        local_hostname=place.name,
        use_tls=place.implicit,
        start_tls=False,  # later: LMTP says LHLO before it
        tls_context=place.context,
        timeout=place.limits.command,
    )


async def _hello(smtp: SMTP, place: Place) -> None:
    if place.lmtp:
        response = await smtp.execute_command(b"LHLO", place.name.encode("ascii"))
        if response.code != 250:
            raise SMTPHeloError(response.code, response.message)
        smtp.last_ehlo_response = response
        return
    try:
        await smtp.ehlo()
    except SMTPHeloError as error:
        # RFC 5321 3.2 wants a client to fall back on HELO where EHLO is not known.
        if error.code < 500:
            raise
        await smtp.helo()


async def _secured(smtp: SMTP, place: Place) -> None:
    if place.implicit or not place.starttls:
        return
    if smtp.supports_extension("starttls"):
        await smtp.starttls()
        await _hello(smtp, place)
    elif place.required:
        raise Lost("it does not offer STARTTLS", "4.7.4")


async def _logged_in(smtp: SMTP, place: Place) -> None:
    if place.login is None:
        return
    if not (place.login.insecure or smtp.get_transport_info("sslcontext")):
        raise Lost("it offers no TLS, without which the password is not sent", "4.7.4")
    try:
        await smtp.login(place.login.username, place.login.password)
    except ConnectionError:
        raise
    except SMTPAuthenticationError as error:
        kind = LoginRefused if error.code >= 500 else Lost
        raise kind(f"it refuses the login: {error.code} {error.message}", "4.3.5") from error
    except SMTPException as error:
        raise Lost(f"cannot log in: {error}", "4.3.5") from error


def _handed_over(smtp: SMTP, place: Place) -> Connection:
    loop = asyncio.get_running_loop()
    transport = cast("asyncio.Transport | None", smtp.transport)
    if transport is None:
        raise Lost("it closed the connection", "4.4.1")
    offers = {keyword.upper(): parameters for keyword, parameters in smtp.esmtp_extensions.items()}
    verified = transport.get_extra_info("sslcontext") is not None and place.context.check_hostname
    reader = asyncio.StreamReader(LONGEST_LINE, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    return Connection(reader, writer, offers, lmtp=place.lmtp, verified=verified, limits=place.limits)


def _reason(error: Exception) -> str:
    if isinstance(error, SMTPResponseException):
        return f"it said {error.code} {' '.join(error.message.split())}"
    cause = error.__cause__
    if isinstance(error, SMTPConnectError) and isinstance(cause, OSError) and not isinstance(cause, SMTPException):
        return f"cannot connect: {cause.strerror or cause}"
    # aiosmtplib names the place, which stands in the log already, and for a Unix socket "None on port None".
    return _PLACE.sub("cannot connect: ", str(error)) or type(error).__name__
