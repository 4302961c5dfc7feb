"""The program ``pillarbox``: its commands are put together here, and each has a file of its own.

The program uses what ``pillarbox`` exports, and ``pillarbox.deliver``, nothing else of the library.
"""

from __future__ import annotations

import click

from pillarbox import __version__
from pillarbox.cli.check import check
from pillarbox.cli.completion import completion
from pillarbox.cli.probe import probe
from pillarbox.cli.schema import schema
from pillarbox.cli.send import send
from pillarbox.cli.serve import serve
from pillarbox.cli.user import user
from pillarbox.cli.worker import worker
from pillarbox.program.standard import hold_standard_descriptors


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Try it: pillarbox serve")
@click.version_option(__version__, message="%(prog)s %(version)s")
def program() -> None:
    """Receive mail by SMTP and LMTP."""


program.add_command(serve)
program.add_command(send)
program.add_command(probe)
program.add_command(check)
program.add_command(schema)
program.add_command(completion)
program.add_command(user)
program.add_command(worker)


def main() -> None:
    """Run the program, by the same name however it was started."""
    hold_standard_descriptors()
    program(prog_name="pillarbox")
