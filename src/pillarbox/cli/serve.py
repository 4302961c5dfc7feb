"""``pillarbox serve``: the command's arguments."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError
from pillarbox.cli import complete
from pillarbox.cli.status import Failure
from pillarbox.program.logs import FORMATS, LEVELS, log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pillarbox.cli.config import Configuration

__all__ = ["configured", "serve"]


def _whole_number(_context: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else text


# With a line for each option it fits a screen of 24.
_HELP = """
\b
Receive mail until SIGINT or SIGTERM; without arguments on 127.0.0.1:2525,
into the Maildir ./Maildir. --listen, --deliver and --set can be repeated.
  pillarbox serve --listen :25 --deliver maildir:/var/mail/in --set size=10000
  pillarbox serve /etc/pillarbox.toml
"""
_ADDRESS = ("--port", "--host", "--bind", "--address")  # what other servers call it


class Command(click.Command):
    """A command with the arguments of ``serve``, which says how to write what others write otherwise."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise UsageError for what it does not know."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            advice = _instead_of(error.option_name)
            if advice is None:
                raise
            raise click.UsageError(f"{error.option_name}: no such option: write {advice}", ctx) from error


def _instead_of(option: str) -> str | None:
    import dataclasses

    from pillarbox import Options

    name = option.lstrip("-").replace("-", "_")
    if option in _ADDRESS:
        return "--listen HOST:PORT"
    return f"--set {name}=VALUE" if name in (field.name for field in dataclasses.fields(Options)) else None


@click.command(cls=Command, help=_HELP, short_help="Receive mail until SIGINT or SIGTERM.")
@click.argument("file", metavar="[FILE]", type=click.Path(), required=False)
@click.option(
    "--listen",
    metavar="ADDRESS",
    multiple=True,
    shell_complete=complete.addresses,
    help="host:port, [IPv6]:port, unix:PATH or fd:N.",
)
@click.option(
    "--deliver",
    metavar="URL",
    multiple=True,
    shell_complete=complete.urls,
    help="maildir: mbox: sqlite: https: lmtp: smtp: pipe: …",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    shell_complete=complete.settings,
    help="Any option of the server; TOML or text.",
)
@click.option("--config", metavar="FILE", type=click.Path(), help="The same as FILE, in TOML; the arguments beat it.")
@click.option(
    "--users",
    metavar="URL",
    multiple=True,
    shell_complete=complete.users,
    help="Who may log in: htpasswd: dovecot: https: jwt: …",
)
@click.option("--accept", metavar="PATTERN", multiple=True, help="Whom anyone may write to: *@example.com")
@click.option("--workers", metavar="N", callback=_whole_number, help="Processes that share the addresses, or auto.")
@click.option("--user", metavar="USER[:GROUP]", help="What to become once the addresses are bound.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    type=click.Choice(LEVELS, case_sensitive=False),
    help=f"{LEVELS[0]} to {LEVELS[-1]}; info without it.",
)
@click.option("--log-format", metavar="FORM", type=click.Choice(FORMATS), help="text or json; text on a terminal.")
@click.option("--transcript", metavar="NETWORK", multiple=True, help="Log all that these clients say; or all.")
@click.option("--metrics", metavar="ADDRESS", help="Where to serve metrics and health checks.")
@click.option("--traces", metavar="URL", help="Where to send OpenTelemetry traces (OTLP).")
@click.option("--trace-addresses", is_flag=True, default=None, hidden=True)  # the help is to fit a screen
def serve(**arguments: Any) -> None:
    """Run the command; what is wrong with its configuration becomes one message."""
    with _signals_before_the_start():
        from pillarbox.program.run import ProgramFailed, run

        try:
            configuration = configured(**arguments)
            log_to_stderr(configuration.program)
            run(configuration)
        except ConfigurationError as error:
            raise Failure(str(error)) from error
        except ProgramFailed as error:
            raise click.ClickException(str(error)) from error


@contextmanager
def _signals_before_the_start() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the program at once until ``run`` hears them; SIGHUP waits until it is heard.

    Nothing has begun that would have to be finished. A container's first process would not even notice SIGTERM.
    """
    hangup = {signal.SIGHUP} if hasattr(signal, "SIGHUP") else set()
    before = {each: signal.signal(each, lambda *_: os._exit(0)) for each in (signal.SIGINT, signal.SIGTERM)}
    if hangup:
        signal.pthread_sigmask(signal.SIG_BLOCK, hangup)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if hangup:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, hangup)


def configured(
    *,
    file: str | None,
    listen: tuple[str, ...],
    deliver: tuple[str, ...],
    settings: tuple[str, ...],
    users: tuple[str, ...],
    accept: tuple[str, ...],
    config: str | None,
    **program: Any,
) -> Configuration:
    """Return what these arguments and the file come to; raise ConfigurationError."""
    from pillarbox.cli.config import effective

    if file is not None and config is not None:
        raise ConfigurationError("FILE and --config are the same: give one of them")
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in program.items()
        if value not in (None, ())
    }
    return effective(
        config or file, settings=settings, listen=listen, deliver=deliver, users=users, accept=accept, program=given
    )
