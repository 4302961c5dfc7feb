"""``pillarbox serve``: the command's arguments."""

from __future__ import annotations

from typing import Any

import click

from pillarbox import ConfigurationError
from pillarbox.program.logs import LEVELS, log_to_stderr


class Failure(click.ClickException):
    """A configuration that cannot work: one message, and status 2."""

    exit_code = 2


def _whole_number(_context: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else text


_HELP = """Receive mail until SIGINT or SIGTERM.

Without arguments it listens on 127.0.0.1:2525 and stores every message in the Maildir ./Maildir.
--listen, --deliver and --set can be repeated.

\b
Examples:
  pillarbox serve --listen :25 --listen unix:/run/pillarbox/smtp
  pillarbox serve --config /etc/pillarbox.toml
"""


@click.command(help=_HELP)
@click.option("--listen", metavar="ADDRESS", multiple=True, help="host:port, [IPv6]:port, unix:PATH or fd:N.")
@click.option("--deliver", metavar="URL", multiple=True, help="maildir:PATH or discard:")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="Any option of the server; TOML or text.")
@click.option("--config", metavar="FILE", help="A TOML file; the arguments beat it.")
@click.option("--accept", metavar="PATTERN", multiple=True, help="Recipients that anyone may write to: *@example.com")
@click.option("--workers", metavar="N", callback=_whole_number, help="Processes that share the addresses, or auto.")
@click.option("--user", metavar="USER[:GROUP]", help="What to become once the addresses are bound; for root.")
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="On stderr.  [default: info]")
def serve(
    listen: tuple[str, ...],
    deliver: tuple[str, ...],
    settings: tuple[str, ...],
    accept: tuple[str, ...],
    config: str | None,
    **program: Any,
) -> None:
    """Run the command; what is wrong with its configuration becomes one message."""
    from pillarbox.cli.config import effective
    from pillarbox.program.run import run

    given = {name: value for name, value in program.items() if value is not None}
    try:
        configuration = effective(
            config, settings=settings, listen=listen, deliver=deliver, accept=accept, program=given
        )
        log_to_stderr(configuration.program.log_level)
        run(configuration)
    except ConfigurationError as error:
        raise Failure(str(error)) from error
