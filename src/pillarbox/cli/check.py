"""``pillarbox check``: explains what ``serve`` would do with the same arguments, and touches nothing."""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError
from pillarbox.cli.serve import Command, configured, serve
from pillarbox.cli.status import Failure, Status
from pillarbox.cli.transcript import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pillarbox.cli.config import Configuration

_HELP = """
\b
Explain a configuration: what differs from the defaults and where it stands,
who may send what to whom, and what may be wrong. FILE is a TOML file; all
arguments of 'pillarbox serve' are taken too. For example:
  pillarbox check /etc/pillarbox.toml
  pillarbox check --strict pillarbox.toml --listen :25 --set size=26214400

\b
Nothing is bound, made or changed. Exit status: 0 it can be used; 1 with
--strict: there are warnings; 2 it cannot be used.
"""


@click.command(cls=Command, help=_HELP, short_help="Explain a configuration, and what may be wrong with it.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--strict", is_flag=True, help="Warnings make status 1.")
def check(*, as_json: bool, strict: bool, **arguments: Any) -> None:
    """Run the command."""
    try:
        found = _explained(arguments, arguments["config"] or arguments["file"])
    except ConfigurationError as error:
        if as_json:
            click.echo(json.dumps({"status": int(Status.USAGE), "error": str(error)}, indent=2, ensure_ascii=False))
            sys.exit(Status.USAGE)
        raise Failure(str(error)) from error
    found["status"] = int(Status.WARNINGS if strict and found["warnings"] else Status.DONE)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str) if as_json else "\n".join(_lines(found)))
    sys.exit(found["status"])


def _hidden(parameter: click.Parameter) -> click.Parameter:
    """Return an argument of ``serve`` for this command, whose help has a line for all of them."""
    same = copy.copy(parameter)
    if isinstance(same, click.Option):
        same.hidden = True
    return same


check.params += [_hidden(parameter) for parameter in serve.params]


def _explained(arguments: dict[str, Any], file: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from pillarbox.cli import explain
    from pillarbox.cli.doubts import doubts

    configuration = configured(**arguments)
    _try_keys(configuration)
    return {
        "file": file,
        "listeners": explain.listeners(configuration, arguments),
        "options": [asdict(each) for each in explain.options(configuration)],
        "users": explain.users(configuration),
        "targets": explain.targets(configuration, arguments),
        "program": [asdict(each) for each in explain.program(configuration, arguments, file)],
        "warnings": [asdict(each) for each in doubts(configuration, file)],
    }


def _try_keys(configuration: Configuration) -> None:
    """Raise ConfigurationError for keys and certificates that cannot be used, as ``serve`` would at its start."""
    from pillarbox import SMTPServer
    from pillarbox.program.running import logins

    try:
        SMTPServer(configuration.options, logger=False, **logins(configuration))
    except ConfigurationError as error:
        raise configuration.located(error) from error
    for listener in configuration.listeners:
        if not listener.overrides:
            continue
        try:
            SMTPServer(listener.options, logger=False, **logins(configuration))
        except ConfigurationError as error:
            raise ConfigurationError(f"{listener.source}: {error}", error.option) from error


# --- How it is shown


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield from _section("Listeners", (line for each in found["listeners"] for line in _listener(each)))
    yield from _section("Users", (line for each in found["users"] for line in _users(each)))
    yield from _section("Targets", (line for each in found["targets"] for line in _target(each)))
    yield from _section("Options that differ from the defaults", _values(found["options"]))
    yield from _section("The program's own settings", _values(found["program"]))
    warnings = [f"{', '.join(each['where'])}: {each['text']}  [{each['code']}]" for each in found["warnings"]]
    if warnings:
        yield from _section("Warnings", warnings, colour="yellow")
    else:
        yield click.style("No warnings.", fg="green")


def _section(title: str, lines: Iterable[str], *, colour: str | None = None) -> Iterator[str]:
    listed = list(lines)
    if listed:
        yield click.style(title, bold=True, fg=colour)
        yield from (f"  {plain(line)}" for line in listed)
        yield ""


def _listener(each: dict[str, Any]) -> Iterator[str]:
    yield f"{each['address']}: {each['protocol']}, {each['tls']}, {each['login']}  ({each['source']})"
    for sentence in each["access"]:
        yield f"    {sentence}"
    for option in each["options"]:
        yield f"    {option['name']} = {_toml(option['value'])}"
    if len(each["targets"]) != 1:
        yield f"    delivers to {', '.join(each['targets'])}"


def _users(each: dict[str, Any]) -> Iterator[str]:
    yield f"{each['url']}  ({each['source']})"
    yield from (f"    {name} = {_toml(value)}" for name, value in each["settings"].items())


def _target(each: dict[str, Any]) -> Iterator[str]:
    yield f"{each['url']}  ({each['source']})"
    limits = [
        "" if each["recipients"] == ["*"] else f"for {', '.join(each['recipients'])}",
        f"from {', '.join(each['listeners'])}" if each["listeners"] else "",
        "optional: its failure does not fail the message" if each["optional"] else "",
    ]
    yield from (f"    {limit}" for limit in limits if limit)
    yield from (f"    {name} = {_toml(value)}" for name, value in each["settings"].items())


def _values(values: list[dict[str, Any]]) -> Iterator[str]:
    shown = [(f"{each['name']} = {_toml(each['value'])}", each["source"]) for each in values]
    width = min(max((len(text) for text, _ in shown), default=0), 48)
    for text, source in shown:
        yield f"{text:<{width}}  ({source})"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
