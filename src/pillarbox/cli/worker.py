"""``pillarbox worker``: one process of ``pillarbox serve --workers``. Its supervisor starts it; nobody else does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.cli.config import Configuration


@click.command(hidden=True)
@click.argument("number", type=int)
@click.argument("control", type=int)
def worker(number: int, control: int) -> None:
    """Serve what the supervisor on the other end of a socket, this descriptor, says."""
    from pillarbox.program.worker import work

    def log(configuration: Configuration) -> None:
        """Begin to log as the supervisor does."""
        from pillarbox.program.logs import log_to_stderr

        log_to_stderr(configuration.program, worker=number)

    sys.exit(work(number, control, _configured, log))


def _configured(snapshot: Mapping[str, Any]) -> Configuration:
    """Return the configuration that the supervisor has checked."""
    from pillarbox.cli.config import effective

    return effective(**snapshot)
