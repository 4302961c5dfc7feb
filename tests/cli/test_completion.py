"""Shell completion, asked of a real bash on a terminal, and the help that fits one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.conftest import Run
from interop.peers import missing
from pillarbox.cli import program

BREAK_OFF, BEGIN = b"\x03", b"\x01"


class Bash:
    """An interactive bash in an empty folder, with the program's completion."""

    def __init__(self, folder: Path) -> None:
        bash = shutil.which("bash") or missing("bash is not installed")
        commands = folder / "bin"
        commands.mkdir()
        command = commands / "pillarbox"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pillarbox "$@"\n')
        command.chmod(0o755)
        self._terminal, child = os.openpty()
        environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}
        self.process = subprocess.Popen(
            [bash, "--norc", "--noprofile", "-i"],
            stdin=child, stdout=child, stderr=child, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(child)
        self.say(b"bind 'set enable-bracketed-paste off'; bind 'set bell-style none'; PS1='$ '\n")
        self.say(b'eval "$(pillarbox completion bash)"; echo rea""dy\n')
        self._until(b"ready")

    def say(self, octets: bytes) -> None:
        os.write(self._terminal, octets)

    def completed(self, line: str) -> str:
        """Return what the line has become after the key Tab."""
        # Then it is made an argument of echo: what that prints is the line as bash has it.
        self.say(line.encode() + b"\t" + BEGIN + b"echo '<<'\"\" \x05 '>>'\n")
        said = self._until(b" >>\r\n")
        [found] = re.findall(r"<< (.*?) ?>>\r\n", said.decode())
        return str(found)

    def _until(self, text: bytes) -> bytes:
        said = b""
        while text not in said:
            said += os.read(self._terminal, 4096)
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bash]:
    folder = tmp_path_factory.mktemp("shell")
    (folder / "Maildir").mkdir()
    (folder / "mail.toml").touch()
    shell = Bash(folder)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("pillarbox se", "pillarbox se"),  # serve and send
        ("pillarbox ser", "pillarbox serve"),
        ("pillarbox serve --deliver mai", "pillarbox serve --deliver maildir:"),
        ("pillarbox serve --deliver=mai", "pillarbox serve --deliver=maildir:"),
        ("pillarbox serve --deliver maildir:./M", "pillarbox serve --deliver maildir:./Maildir/"),
        ("pillarbox serve --listen 127", "pillarbox serve --listen 127.0.0.1:2525"),
        ("pillarbox serve --listen 127.0.0.1:2", "pillarbox serve --listen 127.0.0.1:2525"),
        ("pillarbox serve --set hide_start", "pillarbox serve --set hide_starttls="),
        ("pillarbox serve --set hide_starttls=t", "pillarbox serve --set hide_starttls=true"),
        ("pillarbox serve --set bare_newline=rej", "pillarbox serve --set bare_newline=reject"),
        ("pillarbox serve --config m", "pillarbox serve --config mail.toml"),
        ("pillarbox send --server uni", "pillarbox send --server unix:"),
        ("pillarbox send --tls al", "pillarbox send --tls always"),
        ("pillarbox probe smtps", "pillarbox probe smtps://"),
        ("pillarbox completion f", "pillarbox completion fish"),
    ],
)
def test_bash_completes(bash: Bash, line: str, completed: str) -> None:
    assert bash.completed(line) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_PILLARBOX_COMPLETE={shell}_complete" in result.stdout


def test_a_misspelt_shell_and_a_misspelt_command(run: Run) -> None:
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in run("completion", "tcsh").stderr
    result = run("sevre")
    assert result.exit_code == 2
    assert "No such command 'sevre'. (Did you mean one of: 'serve', 'user'?)" in result.stderr


# --- Help


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


@pytest.mark.parametrize("names", [pytest.param(names, id=" ".join(names) or "all") for names in commands(program)])
def test_help_fits_a_terminal(run: Run, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*names, "--help").stdout.rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert [line for line in lines if len(line) > 80] == []
    assert len(names) > 1 or any("pillarbox " in line for line in lines[1:]), "no example"


def test_help_has_a_line_for_each_command(run: Run) -> None:
    lines = run("--help").stdout.splitlines()
    for name in [name for name, command in program.commands.items() if not command.hidden]:
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert not line.endswith("...")
