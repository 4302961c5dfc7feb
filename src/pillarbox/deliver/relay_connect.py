"""How a connection to the next server is made: greeting, EHLO or LHLO, TLS and AUTH, by aiosmtplib.

Then the socket changes hands: ``relay_client`` speaks from there on.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from base64 import b64encode
from typing import TYPE_CHECKING, Any, cast

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from pillarbox.deliver.relay_client import LONGEST_LINE, LONGEST_TEXT, Connection, Lost

if TYPE_CHECKING:
    from pillarbox.deliver.relay_settings import Login, Place

__all__ = ["LoginRefused", "connect"]

_PLACE = re.compile(r"Error connecting to .*? on port \w+: ")


class LoginRefused(Lost):
    """The next server does not take our name and password: to try that again at once locks accounts."""


async def connect(place: Place) -> Connection:
    """Return a connection that is ready for MAIL; raise Lost."""
    smtp = _client(place, None if place.path else await _to_host(place))
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


async def _to_host(place: Place) -> socket.socket:
    """Connect to one address of the host: one that does not answer leaves time for the others."""
    loop = asyncio.get_running_loop()
    end = loop.time() + place.limits.connect
    failed: Exception = OSError("it has no address")
    try:
        async with asyncio.timeout_at(end):
            found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise Lost("cannot connect: its name cannot be looked up in time", "4.4.1") from None
    except (OSError, ValueError) as error:  # ValueError: a name that IDNA cannot encode
        found, failed = [], error
    for left, (family, _, _, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        try:
            return await _to_address(family, address, (end - loop.time()) / left)
        except OSError as error:
            failed = error
    raise Lost(f"cannot connect: {_of_system(failed)}", "4.4.1") from failed


async def _to_address(family: int, address: tuple[Any, ...], patience: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _client(place: Place, connection: socket.socket | None) -> SMTP:
    return SMTP(
        hostname=place.host or None,  # that the certificate is to be for
        socket_path=place.path or None,
        sock=connection,
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
    refused: SMTPAuthenticationError | None = None
    for method in smtp.supported_auth_methods:  # some servers offer what they then refuse
        try:
            await getattr(smtp, f"auth_{method.replace('-', '')}")(place.login.username, place.login.password)
        except SMTPAuthenticationError as error:
            refused = error
        except SMTPServerDisconnected:
            if refused is None:
                raise
            break  # for the refusal: to come again at once would be as if it had not been said
        else:
            return
    if refused is None:
        raise Lost("cannot log in: it offers no AUTH, or none that is known here", "4.3.5")
    kind = LoginRefused if refused.code >= 500 else Lost
    said = _without_password(refused.message, place.login)
    raise kind(f"it refuses the login: {refused.code} {said}"[:LONGEST_TEXT], "4.3.5") from None


def _without_password(text: str, login: Login) -> str:
    """Return what a server says without what it was told, where it repeats a command that it does not know."""
    plain = f"\0{login.username}\0{login.password}"
    for secret in (_base64(plain), _base64(login.password), login.password):
        text = text.replace(secret, "********") if secret else text
    return text


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


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
        return f"it said {error.code} {' '.join(error.message.split())}"[:LONGEST_TEXT]
    cause = error.__cause__
    if isinstance(error, SMTPConnectError) and isinstance(cause, OSError) and not isinstance(cause, SMTPException):
        return f"cannot connect: {_of_system(cause)}"
    # aiosmtplib names the place, which stands in the log already, and for a Unix socket "None on port None".
    return _PLACE.sub("cannot connect: ", str(error)) or type(error).__name__


def _of_system(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text has the address again instead of the reason
    return getattr(error, "strerror", None) or str(error)
