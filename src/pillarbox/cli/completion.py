"""``pillarbox completion``: prints the script with which a shell completes the program's arguments."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_PILLARBOX_COMPLETE"  # click's own, for this program's name

_HELP = """
\b
Print the script with which a shell completes the program's arguments.
Put one of these where your shell starts (~/.bashrc, ~/.zshrc):
  eval "$(pillarbox completion bash)"
  eval "$(pillarbox completion zsh)"
or, for fish, write the script where it is found:
  pillarbox completion fish > ~/.config/fish/completions/pillarbox.fish
"""


@click.command(help=_HELP, short_help="Print the script for a shell's completion.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Run the command."""
    program = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices are those that click has
    click.echo(kind(program.command, {}, program.info_name or "pillarbox", _VARIABLE).source())
