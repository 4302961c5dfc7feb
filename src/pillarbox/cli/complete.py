"""What each kind of argument is completed to, and how bash is told.

For zsh and fish click does that. For bash the words are taken from the line itself: bash breaks them at ``:`` and
``=``, which stand in every address and URL here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click

    Items = list[CompletionItem]

# --- bash

_BASH = """\
%(complete_func)s() {
    local type value response
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                [[ $value == *[:=@/] ]] && compopt -o nospace
                ;;
        esac
    done <<< "$response"
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Completion for bash, of words that bash has broken."""

    source_template = _BASH
    _behind = ""  # the part of the word that bash takes for words before it

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and what there is of the one under it."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        breaks = "".join(set(":=") & set(os.environ.get("COMP_WORDBREAKS", ":=")))
        value = incomplete.partition("=")[2] if incomplete.startswith("-") else incomplete
        self._behind = re.sub(f"[^{breaks}]*$", "", value) if breaks else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line for the script."""
        return f"{item.type},{str(item.value).removeprefix(self._behind)}"


add_completion_class(Bash)


# --- What arguments are completed to


def urls(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Complete ``--deliver``: schemes, and behind the scheme of a path files."""
    from pillarbox.deliver import known_schemes

    scheme, colon, rest = incomplete.partition(":")
    if colon:
        no_path = scheme in ("discard", "http", "https", "python", "stdout") or rest.startswith("//")
        return [] if no_path else [CompletionItem(incomplete, type="file")]
    return _beginning(incomplete, (f"{name}:" for name in known_schemes()))


def users(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Complete ``--users``."""
    from pillarbox.users import known_schemes

    scheme, colon, rest = incomplete.partition(":")
    if colon:
        is_path = scheme in ("dovecot", "htpasswd", "jwt") and not rest.startswith(("//", "http"))
        return [CompletionItem(incomplete, type="file")] if is_path else []
    return _beginning(incomplete, (f"{name}:" for name in known_schemes()))


def addresses(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Complete ``--listen``."""
    if incomplete.startswith("unix:"):
        return [CompletionItem(incomplete, type="file")]
    return _beginning(incomplete, ("127.0.0.1:2525", "[::1]:2525", ":25", ":587", "unix:", "fd:3"))


def servers(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Complete ``--server``."""
    if incomplete.startswith(("unix:", "lmtp+unix:", "lmtp:/")):
        return [CompletionItem(incomplete, type="file")]
    return _beginning(incomplete, ("smtp://", "smtps://", "lmtp://", "lmtp:", "unix:"))


def settings(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Complete ``--set``: the options' names, and the values of those that have only some."""
    from pillarbox import Options

    name, equals, _ = incomplete.partition("=")
    if equals:
        return _beginning(incomplete, (f"{name}={each}" for each in _values(name)))
    names = (field.name for field in dataclasses.fields(Options) if not field.metadata["option"].in_code_only)
    return _beginning(incomplete, (f"{each}=" for each in names))


def _values(name: str) -> Iterable[str]:
    from pillarbox import Options

    schema = Options.json_schema()["properties"].get(name, {})
    kinds = [schema, *schema.get("anyOf", [])]
    booleans = ("true", "false") if any(kind.get("type") == "boolean" for kind in kinds) else ()
    return (*booleans, *(str(each) for kind in kinds for each in kind.get("enum", [])))


def _beginning(incomplete: str, values: Iterable[str]) -> Items:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]
