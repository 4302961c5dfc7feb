"""``pillarbox serve``: the command's arguments, and the life of the server they describe.

All that is heavy is imported inside the functions that need it: the program is to listen 400 ms after its start.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from pillarbox import ConfigurationError, Reject, log_fields

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from pillarbox import MessageStream, Session, SMTPServer
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.deliver import Target

LEVELS = ("debug", "info", "warning", "error", "critical")
SHOWN_RECIPIENTS = 10

_log = logging.getLogger("pillarbox.program")

# What the reader of `cannot listen on …` can do about it, by the error's symbol.
_ADVICE = {
    "EADDRINUSE": "another program listens there: stop it, or choose another address",
    "EADDRNOTAVAIL": "no interface of this host has that address",
    "EACCES": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EPERM": "choose a port above 1023 or a folder you may write to, or let the service manager open it (fd:N)",
    "EBADF": "nothing was handed over on that descriptor",
    "ENOTSOCK": "what was handed over on that descriptor is no socket",
    "ENOENT": "make the folder first",
}


class Failure(click.ClickException):
    """A configuration that cannot work: one message, and status 2."""

    exit_code = 2


_HELP = """Receive mail until SIGINT or SIGTERM.

Without arguments it listens on 127.0.0.1:2525 and stores every message in the Maildir ./Maildir.
--listen, --deliver and --set can be repeated.

\b
Examples:
  pillarbox serve --listen :25 --listen unix:/run/pillarbox/smtp
  pillarbox serve --deliver maildir:/var/mail/in --set size=26214400
  pillarbox serve --config /etc/pillarbox.toml
"""


@click.command(help=_HELP)
@click.option("--listen", metavar="ADDRESS", multiple=True, help="host:port, [IPv6]:port, unix:PATH or fd:N.")
@click.option("--deliver", metavar="URL", multiple=True, help="maildir:PATH or discard:")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="Any option of the server; TOML or text.")
@click.option("--config", metavar="FILE", help="A TOML file; the arguments beat it.")
@click.option(
    "--log-level", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True, help="On stderr."
)
def serve(
    listen: tuple[str, ...], deliver: tuple[str, ...], settings: tuple[str, ...], config: str | None, log_level: str
) -> None:
    """Run the command; what is wrong with its configuration becomes one message."""
    from pillarbox.cli.config import effective

    log_to_stderr(log_level)
    try:
        run(effective(config, settings=settings, listen=listen, deliver=deliver))
    except ConfigurationError as error:
        raise Failure(str(error)) from error


def run(configuration: Configuration) -> None:
    """Serve until a signal says otherwise, on uvloop where it is installed."""
    import asyncio

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(configuration))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# --- From start to end


async def _serve(configuration: Configuration) -> None:
    from pillarbox import SMTPServer

    stopped = _on_signals()
    try:
        # The program shows all records itself: the option would show them twice.
        server = SMTPServer(configuration.options, logger=False)
    except ConfigurationError as error:  # a key that cannot be read
        raise configuration.located(error) from error
    for destination in configuration.destinations:
        await _start(destination.target, destination.source)
    receiver = Receiver([each.target for each in configuration.destinations])
    try:
        await _listen(server, configuration.listeners, receiver)
        _log.info("%s: closing; a second signal ends at once", await stopped)
    finally:
        await server.close()
        await receiver.close()
    _log.info("closed")


async def _start(target: Target, source: str) -> None:
    try:
        await target.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}" if source else str(error)) from error


async def _listen(server: SMTPServer, listeners: tuple[Listener, ...], receiver: Receiver) -> None:
    from pillarbox.cli.addresses import address_text

    for listener in listeners:
        await _listen_on(server, listener, receiver)
    # Only now: of a start that fails there is one message to read.
    for address in server.addresses:
        _log.info("listening on %s", address_text(address))


async def _listen_on(server: SMTPServer, listener: Listener, receiver: Receiver) -> None:
    overrides = {**listener.overrides, "logger": False, "on_data": receiver.on_data(listener.options.name)}
    place = f"{listener.source}: " if listener.source else ""
    try:
        await server.listen(**listener.arguments, **overrides)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}{error}") from error
    except (OSError, ValueError) as error:  # ValueError: a descriptor that is no stream socket
        raise ConfigurationError(f"{place}cannot listen on {listener.address}: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    """Say what the system said, and what to do about it."""
    import errno
    import os

    number = getattr(error, "errno", None) or 0
    reason = getattr(error, "strerror", None) or str(error)
    system = os.strerror(number)
    advised = ""
    if reason.lower().endswith(system.lower()):  # asyncio puts the address, and since 3.13 the number, in front
        reason = system
        advice = _ADVICE.get(errno.errorcode.get(number, ""))
        advised = f" ({advice})" if advice else ""
    first = reason[:2].capitalize() == reason[:2]  # a word, and no abbreviation
    return f"{reason[:1].lower() if first else reason[:1]}{reason[1:]}{advised}"


def _on_signals() -> asyncio.Future[str]:
    """Return what the first SIGINT or SIGTERM fulfils; a second one ends the program at once."""
    import asyncio

    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # the loop is closed: the program ends anyway
            loop.call_soon_threadsafe(stopped.set_result, signal.Signals(number).name)

    # Not add_signal_handler: Windows has none, and a second signal must also end a loop that hangs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped


# --- One message


class Receiver:
    """Gives each message its trace header fields and hands it to the targets."""

    def __init__(self, targets: list[Target]) -> None:
        from pillarbox import DNSResolver, HostNames

        self._targets = targets
        self._resolver = DNSResolver()
        self._host_names = HostNames(self._resolver)

    def on_data(self, name: str) -> Callable[[MessageStream, Session], Awaitable[None]]:
        """Return the handler for a listener that calls itself ``name``."""

        async def on_data(stream: MessageStream, session: Session) -> None:
            await self._receive(stream, session, name)

        return on_data

    async def close(self) -> None:
        """Give up the lookups under way."""
        await self._host_names.close()
        await self._resolver.close()

    async def _receive(self, stream: MessageStream, session: Session, name: str) -> None:
        from pillarbox import received_header, return_path_header
        from pillarbox.deliver import deliver

        trace = received_header(session, by=name, confirmed_name=await self._confirmed_name(session))
        try:
            places = await deliver(self._targets, session, stream, head=return_path_header(session) + trace)
        except Reject as refusal:
            _log_message(session, stream, "refused: %s", str(refusal))
            raise
        _log_message(session, stream, "in %s", ", ".join(places))

    async def _confirmed_name(self, session: Session) -> str | None:
        name, address = session.client_hostname, session.remote_address
        if not address or name == f"[{address}]":
            return None
        return name if await self._host_names.confirms(name, address) else None


def _log_message(session: Session, stream: MessageStream, outcome: str, *parts: str) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    fields = log_fields(session, "program", "message")
    _log.info(
        f"message from <%s> to %s, %d bytes, id %s.%d, {outcome}",
        session.envelope.mail_from or "",
        _recipients([recipient.address for recipient in session.envelope.rcpt_to]),
        stream.byte_length,
        session.id,
        session.transaction,
        *parts,
        extra=fields,
    )


def _recipients(addresses: list[str]) -> str:
    shown = " ".join(f"<{address}>" for address in addresses[:SHOWN_RECIPIENTS])
    more = len(addresses) - SHOWN_RECIPIENTS
    return f"{shown} and {more} more" if more > 0 else shown


# --- The log


class LineFormatter(logging.Formatter):
    """One line a record: the level in front unless it is INFO, the client behind; a traceback follows."""

    _CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line; nothing that came from outside can begin another."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + self._CONTROL.sub("?", record.message + self._client(record))

    def _client(self, record: logging.LogRecord) -> str:
        session = getattr(record, "cid", "")
        if not session or session in record.message:
            return ""
        return f" [{getattr(record, 'address', '')} {session}]".replace("[ ", "[")


# The library's events that the program reports in its own words.
_REPORTED = ("listen", "message", "close")


def _is_not_reported(record: logging.LogRecord) -> bool:
    from_library = record.name != _log.name and record.levelno == logging.INFO
    return not (from_library and getattr(record, "tnx", "") in _REPORTED)


def _note_unraisable(found: sys.UnraisableHookArgs) -> None:
    """Log what CPython prints past every log: of a server name outside ASCII, which any client may send, a line."""
    if isinstance(found.exc_value, UnicodeDecodeError):
        _log.info("a server name (SNI) outside ASCII: the handshake ends", extra=log_fields(None, "program", "tls"))
    else:
        sys.__unraisablehook__(found)


def log_to_stderr(level: str) -> None:
    """Show the library's and the program's records from ``level`` up, and everyone else's warnings."""
    sys.unraisablehook = _note_unraisable
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    handler.addFilter(_is_not_reported)
    logging.getLogger().addHandler(handler)
    logging.getLogger("pillarbox").setLevel(level.upper())
