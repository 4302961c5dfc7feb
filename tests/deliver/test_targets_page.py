"""The examples of docs/targets.md are configurations and commands that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pillarbox.cli.config import effective
from pillarbox.cli.serve import serve
from pillarbox.deliver import known_schemes, target_class

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^(?:\$ )?pillarbox (serve .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("content", FILES)
def test_a_configuration(content: str) -> None:
    (route,) = effective("pillarbox.toml", content=content).routes
    assert route.target.url in content


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command: str) -> None:
    words = shlex.split(re.split(r" [|>] ", command)[0])
    context = click.Context(serve)
    serve.parse_args(context, words[1:])
    assert effective(deliver=context.params["deliver"]).routes


@pytest.mark.parametrize("content", FILES)
def test_every_setting_is_explained(content: str) -> None:
    match = re.search(r'^url = "(.*)"', content, re.MULTILINE)
    assert match is not None
    scheme = match[1].partition(":")[0]
    section = PAGE[PAGE.index(f"\n## {scheme.capitalize()}\n") :].split("\n## ")[1]
    for name in target_class(match[1]).Settings.model_fields:
        assert f"`{name}`" in section


@pytest.mark.parametrize("scheme", known_schemes())
def test_every_target_is_listed(scheme: str) -> None:
    table = PAGE[: PAGE.index("\n## ")]
    row = re.search(rf"^\| \[.*`{scheme}:.*\]\(#(.*)\) \|", table, re.MULTILINE)
    assert row is not None
    assert f"\n## {row[1]}\n" in PAGE.lower()
