"""``pillarbox serve``: the command's arguments, and the life of the server they describe.

All that is heavy is imported inside the functions that need it: the program is to listen 400 ms after its start.
"""

from __future__ import annotations

import logging
import re
import signal
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pillarbox import Session, SMTPServer
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
    for destination in configuration.destinations:
        await _start(destination.target, destination.source)
    receiver = Receiver([each.target for each in configuration.destinations])
    try:
        # The program shows all records itself: the option would show them twice.
        server = SMTPServer(configuration.options, logger=False)
    except ConfigurationError as error:  # a key that cannot be read
        raise configuration.located(error) from error
    try:
        await _listen(server, configuration.listeners, receiver)
        _log.info("%s: closing", await stopped)
    finally:
        await server.close()
        await receiver.close()


async def _start(target: Target, source: str) -> None:
    try:
        await target.start()
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}" if source else str(error)) from error


async def _listen(server: SMTPServer, listeners: tuple[Listener, ...], receiver: Receiver) -> None:
    from pillarbox.cli.addresses import address_text

    bound = [await _listen_on(server, listener, receiver) for listener in listeners]
    for address in bound:
        _log.info("listening on %s", address_text(address))


async def _listen_on(server: SMTPServer, listener: Listener, receiver: Receiver) -> tuple[str, int] | str:
    overrides = {**listener.overrides, "logger": False, "on_data": receiver.on_data(listener.options.name)}
    try:
        return await server.listen(**listener.arguments, **overrides)
    except ConfigurationError as error:
        raise ConfigurationError(f"{_place(listener)}{error}") from error
    except OSError as error:
        raise ConfigurationError(f"{_place(listener)}cannot listen on {listener.address}: {_reason(error)}") from error


def _place(listener: Listener) -> str:
    return f"{listener.source}: " if listener.source else ""


def _reason(error: OSError) -> str:
    """Say what the system said, and what to do about it."""
    import errno
    import os
    import socket

    if isinstance(error, socket.gaierror) or not error.errno:
        return (error.strerror or str(error)).lower()
    advice = _ADVICE.get(errno.errorcode.get(error.errno, ""))
    reason = os.strerror(error.errno).lower()
    return f"{reason} ({advice})" if advice else reason


def _on_signals() -> asyncio.Future[str]:
    """Return what the first SIGINT or SIGTERM fulfils; a second one ends the program at once."""
    import asyncio

    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
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

    def on_data(self, name: str) -> Callable[[Any, Session], Any]:
        """Return the handler for a listener that calls itself ``name``."""

        async def on_data(stream: Any, session: Session) -> None:
            await self._receive(stream, session, name)

        return on_data

    async def close(self) -> None:
        """Give up the lookups under way."""
        await self._host_names.close()
        await self._resolver.close()

    async def _receive(self, stream: Any, session: Session, name: str) -> None:
        from pillarbox import received_header, return_path_header
        from pillarbox.deliver import deliver

        trace = received_header(session, by=name, confirmed_name=await self._confirmed_name(session))
        places = await deliver(self._targets, session, stream, head=return_path_header(session) + trace)
        _log_message(session, stream.byte_length, places)

    async def _confirmed_name(self, session: Session) -> str | None:
        name, address = session.client_hostname, session.remote_address
        if not address or name == f"[{address}]":
            return None
        return name if await self._host_names.confirms(name, address) else None


def _log_message(session: Session, size: int, places: list[str]) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    fields = {
        "component": "program",
        "tnx": "message",
        "cid": session.id,
        "user": session.user,
        "address": session.remote_address,
    }
    sender = session.envelope.mail_from
    _log.info(
        "message from <%s> to %s, %d bytes, in %s, id %s.%d",
        sender or "",
        _recipients([recipient.address for recipient in session.envelope.rcpt_to]),
        size,
        ", ".join(places),
        session.id,
        session.transaction,
        extra=fields,
    )


def _recipients(addresses: list[str]) -> str:
    shown = " ".join(f"<{address}>" for address in addresses[:SHOWN_RECIPIENTS])
    more = len(addresses) - SHOWN_RECIPIENTS
    return f"{shown} and {more} more" if more > 0 else shown


# --- The log


class LineFormatter(logging.Formatter):
    """One line a record: the message, its level in front unless that is INFO; a traceback follows on its own lines."""

    _CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line; nothing that came from outside can begin another."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + self._CONTROL.sub("?", record.message)


def log_to_stderr(level: str) -> None:
    """Show the library's and the program's records from ``level`` up, and everyone else's warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("pillarbox").setLevel(level.upper())
