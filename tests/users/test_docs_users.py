"""docs/users.md: its configurations are valid, and its programs let in who they say."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.fronts import reserved_port
from interop.peers import HOST
from pillarbox.users import users_from_url
from pillarbox.users.accounts import parse_accounts
from test_docs_examples import ROOT, blocks
from users.logins import WELCOME, WRONG, asking, offered, plain, scram

PAGE = ROOT / "docs" / "users.md"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the page's modules under the names that their first lines say."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for block in blocks(PAGE, "python"):
        found = re.match(r"# (\w+)\.py: ", block.text)
        assert found, block.text
        names.append(found[1])
        (tmp_path / f"{found[1]}.py").write_text(block.text)
    assert names == ["accounts", "people", "company"]
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def tables() -> list[dict[str, Any]]:
    return [table for block in blocks(PAGE, "toml") for table in tomllib.loads(block.text)["users"]]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table["url"])
def test_the_configurations_are_valid(modules: Path, table: dict[str, Any]) -> None:
    assert (
        users_from_url(table["url"], {key: value for key, value in table.items() if key != "url"}).url == table["url"]
    )


def test_the_file_is_one() -> None:
    text = PAGE.read_text("utf-8").split("```\n# the office\n")[1].split("```")[0]
    accounts = parse_accounts(text.encode())
    assert not accounts.problems
    kinds = {name: [secret.kind for secret in account.secrets()] for name, account in accounts.items()}
    assert kinds == {"alice": ["argon2id"], "bob": ["SCRAM-SHA-256"], "carol": ["bcrypt", "SCRAM-SHA-256"]}


async def test_a_function(modules: Path) -> None:
    async with asking(users_from_url("python:people:check")) as served:
        assert await plain(served, "alice", "correct horse") == WELCOME
        assert await plain(served, "alice", "wrong") == WRONG
        assert await plain(served, "nobody", "x") == WRONG


async def test_a_class(modules: Path) -> None:
    async with asking(users_from_url("python:company:Directory", {"domain": "example.com"})) as served:
        assert await offered(served) == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
        assert await scram(served, "alice", "correct horse") == WELCOME
        assert await plain(served, "alice", "correct horse") == WELCOME
        assert await plain(served, "alice", "wrong") == WRONG


async def test_the_endpoint(modules: Path) -> None:
    """As its first line starts it."""
    with reserved_port(HOST) as port:
        command = [sys.executable, "-m", "aiohttp.web", "-H", HOST, "-P", str(port), "accounts:application"]
        process = subprocess.Popen(command, cwd=modules, stdout=subprocess.DEVNULL)
        try:
            for _ in range(1500):
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except ConnectionError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
            [table] = [table for table in tables() if "timeout" in table and table["url"].startswith("https:")]
            users = users_from_url(f"http://{HOST}:{port}/login", {"token": table["token"]})
            async with asking(users) as served:
                assert await plain(served, "alice", "correct horse") == WELCOME
                assert await plain(served, "alice", "wrong") == WRONG
        finally:
            process.terminate()
            process.wait(30)
