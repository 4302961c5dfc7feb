"""The examples of README and docs work, their configurations are valid, and their links lead somewhere.

Python blocks of a page run in order, in one namespace and an empty folder with keys and certificates, on one event
loop: ``await`` may stand at the top. Servers listen on free ports; ``run`` takes two messages and returns. A block that
is marked ``python fragment`` is only compiled.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from pillarbox import SMTPServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    info: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    found = [Block(m["info"], m["text"], content.count("\n", 0, m.start()) + 2) for m in BLOCK.finditer(content)]
    return [block for block in found if block.info.split()[:1] == [language]]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


# --- Python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder with the files that the examples name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    for name, host in (
        ("server", "mx.example.com"),
        ("new", "mx.example.com"),
        ("org", "mx.example.org"),
        ("net", "*"),
    ):
        issued = authority.issue_cert(f"{host}.example.net" if host == "*" else host)
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.crt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # an example sets it
    return tmp_path


class Failures(logging.Handler):
    """What goes wrong in the examples' handlers, which a client would not be told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture
def failures() -> Iterator[list[str]]:
    before = {name: _settings(name) for name in ("", "pillarbox")}
    handler = Failures()
    logging.getLogger("pillarbox").addHandler(handler)
    yield handler.texts
    for name, (level, handlers, propagate) in before.items():  # the examples configure the real tree
        log = logging.getLogger(name)
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


def _settings(name: str) -> tuple[int, list[logging.Handler], bool]:
    log = logging.getLogger(name)
    return log.level, list(log.handlers), log.propagate


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers of examples listen on free ports and end by themselves."""
    listen = SMTPServer.listen

    async def listen_somewhere(self: SMTPServer, port: int | None = None, host: str | None = None, **more: Any) -> Any:
        return await listen(self, None if port is None else 0, host and "127.0.0.1", **more)

    async def serve_a_moment(self: SMTPServer) -> None:
        await self.close()

    def run(self: SMTPServer, port: int | None = None, host: str | None = None, **more: Any) -> None:
        async def take_messages() -> None:
            async with self:
                bound = await self.listen(port, host, allow_insecure_auth=True, **more)
                if not self.options.secure or self.options.secured:
                    await converse(bound, "LHLO" if self.options.lmtp else "EHLO")

        asyncio.run(take_messages())

    monkeypatch.setattr(SMTPServer, "listen", listen_somewhere)
    monkeypatch.setattr(SMTPServer, "serve_forever", serve_a_moment)
    monkeypatch.setattr(SMTPServer, "run", run)


async def converse(bound: tuple[str, int] | str, hello: str) -> None:
    """Log in and send two messages, whatever the server says to that."""
    assert isinstance(bound, tuple)
    reader, writer = await asyncio.open_connection(*bound)

    async def say(*lines: str) -> int:
        writer.write("".join(f"{line}\r\n" for line in lines).encode())
        while line := await asyncio.wait_for(reader.readline(), 10):
            if line[3:4] == b" ":
                return int(line[:3])
        return 421

    try:
        code = await say()
        for command in (f"{hello} client.example.com", "AUTH PLAIN AGFsaWNlAGNvcnJlY3QgaG9yc2U="):
            code = await say(command) if code != 421 else code
        for number in (1, 2):
            if code != 421:
                code = await send_message(say, number)
    finally:
        writer.close()


async def send_message(say: Any, number: int) -> int:
    for command in ("MAIL FROM:<alice@example.com>", "RCPT TO:<alice@example.com>"):
        if (code := int(await say(command))) >= 400:
            await say("RSET")
            return code
    code = await say("DATA")
    return int(await say(f"Subject: message {number}", "", "Hello.", ".")) if code == 354 else int(code)


@pytest.mark.usefixtures("free_ports", "folder")
@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_run(page: Path, failures: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if "fragment" in block.info:
            continue
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)
        assert not failures, f"{page.name}, line {block.line}: {failures[0]}"


def test_the_smallest_server_is_small() -> None:
    [block] = blocks(ROOT / "README.md", "python")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 10
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_conversation_with_examples_delivers() -> None:
    got = []

    async def on_data(stream: Any, session: Any) -> None:
        got.append((session.user, str(session.envelope.mail_from), await stream.read()))

    async def main() -> None:
        async with SMTPServer(
            on_auth=lambda auth, _: auth.username, allow_insecure_auth=True, on_data=on_data
        ) as server:
            await converse(await server.listen(0, "127.0.0.1"), "EHLO")

    asyncio.run(main())
    assert got == [("alice", "alice@example.com", b"Subject: message %d\r\n\r\nHello.\r\n" % n) for n in (1, 2)]


# --- Configurations


# --- Links


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{page.name}: there is no heading for {target}"


def test_every_page_is_in_the_index() -> None:
    index = prose(ROOT / "docs" / "index.md")
    for page in PAGES:
        assert page.parent == ROOT or page.name == "index.md" or f"]({page.name})" in index
