"""``pillarbox serve``: the command's arguments."""

from __future__ import annotations

from typing import Any

import click

from pillarbox import ConfigurationError
from pillarbox.program.logs import FORMATS, LEVELS, log_to_stderr


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
@click.option("--accept", metavar="PATTERN", multiple=True, help="Whom anyone may write to: *@example.com")
@click.option("--workers", metavar="N", callback=_whole_number, help="Processes that share the addresses, or auto.")
@click.option("--user", metavar="USER[:GROUP]", help="What to become once the addresses are bound; for root.")
@click.option(
    "--log-level",
    metavar="LEVEL",
    type=click.Choice(LEVELS, case_sensitive=False),
    help=f"{LEVELS[0]} to {LEVELS[-1]}; info without it.",
)
@click.option("--log-format", type=click.Choice(FORMATS), help="auto: text on a terminal, JSON elsewhere.")
@click.option("--transcript", metavar="NETWORK", multiple=True, help="Show all that these clients say; or all.")
@click.option("--metrics", metavar="ADDRESS", help="Where to serve metrics and health checks.")
@click.option("--traces", metavar="URL", help="Where to send OpenTelemetry traces (OTLP).")
@click.option("--trace-addresses", is_flag=True, default=None, hidden=True)  # the help is to fit a screen
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
    from pillarbox.program.run import ProgramFailed, run

    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in program.items()
        if value not in (None, ())
    }
    try:
        configuration = effective(
            config, settings=settings, listen=listen, deliver=deliver, accept=accept, program=given
        )
        log_to_stderr(configuration.program)
        run(configuration)
    except ConfigurationError as error:
        raise Failure(str(error)) from error
    except ProgramFailed as error:
        raise click.ClickException(str(error)) from error
