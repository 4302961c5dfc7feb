"""Who may log in to the program: what users, or none, change at each listener, and what a reload does to them."""

from __future__ import annotations

import os
import signal
import smtplib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pillarbox import ConfigurationError
from pillarbox.cli.config import Configuration, effective
from program import MODULE, WAIT, Program, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

PLAIN = ("--set", "allow_insecure_auth=true", "--set", "auth_failure_delay=0", "--set", "disable_reverse_lookup=true")
HERE = ("--listen", "127.0.0.1:0", *PLAIN)
FUNCTION = """
async def check(auth, session):
    return auth.username if auth.password == "geheim" else None
"""


def add(folder: Path, name: str, password: str, *more: str) -> None:
    """Let somebody log in, as an operator does."""
    command = [*MODULE, "user", "add", "users", name, "--stdin", *more]
    subprocess.run(command, cwd=folder, input=password, text=True, check=True, capture_output=True, timeout=WAIT)


def client_of(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT)


def said(port: int, *commands: str, login: tuple[str, str] | None = None) -> list[int]:
    """Return the codes for commands, behind a login."""
    with client_of(port) as client:
        client.ehlo()
        if login is not None:
            client.login(*login)
        return [client.docmd(command)[0] for command in commands]


MAIL, RCPT, OTHER = "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "RCPT TO:<b@example.net>"


class TestHtpasswd:
    def test_from_pillarbox_user_to_the_message(self, start: Start, tmp_path: Path) -> None:
        add(tmp_path, "alice", "geheim")
        program = start(*HERE, "--users", "htpasswd:users")
        port = program.port()
        assert said(port, MAIL) == [530]
        with pytest.raises(smtplib.SMTPAuthenticationError):
            said(port, login=("alice", "falsch"))
        with client_of(port) as client:
            client.login("alice", "geheim")
            client.sendmail("alice@example.com", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        (path,) = (tmp_path / "Maildir/new").iterdir()
        assert b"(Authenticated sender: alice)" in path.read_bytes()
        assert not [line for line in program.lines if "geheim" in line or "falsch" in line]

    @pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_scram_is_announced_where_all_have_keys(
        self, start: Start, tmp_path: Path, workers: tuple[str, ...]
    ) -> None:
        add(tmp_path, "alice", "geheim", "--scram")
        program = start(*HERE, "--users", "htpasswd:users", *workers)
        with client_of(program.port()) as client:
            client.ehlo()
            assert client.esmtp_features["auth"].split() == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
            client.login("alice", "geheim")

    def test_a_user_who_is_added_while_it_runs(self, start: Start, tmp_path: Path) -> None:
        add(tmp_path, "alice", "geheim")
        program = start(*HERE, "--users", "htpasswd:users")
        port = program.port()
        add(tmp_path, "bob", "auch geheim")
        assert said(port, MAIL, login=("bob", "auch geheim")) == [250]

    def test_a_file_that_is_not_there(self, start: Start) -> None:
        program = start(*HERE, "--users", "htpasswd:users")
        assert program.wait() == 2
        assert (
            "--users: htpasswd:users: no such file or directory: make it with 'pillarbox user add" in program.lines[0]
        )


class TestReload:
    def test_users_come_and_go_and_sessions_stay(self, start: Start, tmp_path: Path) -> None:
        add(tmp_path, "alice", "geheim")
        (tmp_path / "people.py").write_text(FUNCTION)
        file = tmp_path / "pillarbox.toml"
        common = "[server]\nallow_insecure_auth = true\n[[listen]]\naddress = '127.0.0.1:0'\n"
        file.write_text(f"{common}[[users]]\nurl = 'htpasswd:users'\n")
        program = start("--config", str(file))
        port = program.port()
        with client_of(port) as old:
            old.ehlo()
            file.write_text(f"{common}[[users]]\nurl = 'jwt:nothing'\nissuer = 'x'\naudience = 'y'\n")
            os.kill(program.process.pid, signal.SIGHUP)
            program.line(r"^error: not reloaded, all stays as it was: .*\[\[users\]\] 1: jwt:nothing")
            assert said(port, MAIL, login=("alice", "geheim")) == [250]
            file.write_text(common)
            os.kill(program.process.pid, signal.SIGHUP)
            program.line("^reloaded$")
            assert said(port, MAIL) == [250]
            with client_of(port) as new:
                new.ehlo()
                assert "auth" not in new.esmtp_features
            # What was there before goes on with the users that it began with.
            old.login("alice", "geheim")
            assert old.docmd(MAIL)[0] == 250

    @pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_it_announces_what_the_file_of_users_has_come_to(
        self, start: Start, tmp_path: Path, workers: tuple[str, ...]
    ) -> None:
        (tmp_path / "users").write_text("")
        (tmp_path / "pillarbox.toml").write_text("[[users]]\nurl = 'htpasswd:users'\n")
        program = start(*HERE, "--config", "pillarbox.toml", *workers)
        port = program.port()

        def announced() -> list[str]:
            with client_of(port) as client:
                client.ehlo()
                return client.esmtp_features["auth"].split()

        def reloaded() -> list[str]:
            os.kill(program.process.pid, signal.SIGHUP)
            program.line("^reloaded$")
            return announced()

        assert announced() == ["PLAIN", "LOGIN"]
        add(tmp_path, "alice", "geheim", "--scram")
        assert announced() == ["PLAIN", "LOGIN"]
        assert reloaded() == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
        with client_of(port) as old:
            old.ehlo()
            add(tmp_path, "bob", "auch geheim")  # who has a hash alone
            assert reloaded() == ["PLAIN", "LOGIN"]
            old.login("alice", "geheim")
        (tmp_path / "users").write_text((tmp_path / "users").read_text() + "wrong\n")
        assert reloaded() == ["PLAIN", "LOGIN"]  # a bad line locks nobody else out
        assert said(port, MAIL, login=("bob", "auch geheim")) == [250]


class TestXCLIENT:
    def test_a_proxy_names_the_user(self, start: Start) -> None:
        program = start(*HERE, "--set", "use_xclient=true", "--set", "auth_optional=false")
        port = program.port()
        assert said(port, MAIL) == [530]
        assert said(port, "XCLIENT LOGIN=alice", "EHLO again.example.org", MAIL) == [220, 250, 250]


class TestWhoIsAsked:
    """What users change, with a rule or without."""

    @pytest.mark.parametrize(
        ("rules", "codes"),
        [
            ("", [530, 530, 530]),
            ("[access]\naccept = ['*@example.com']", [250, 250, 550]),
            ("[access]\nnetworks = ['127.0.0.0/8']", [250, 250, 250]),
            ("[access]\nnetworks = ['192.0.2.0/24']", [250, 550, 550]),
            ("[server]\nauth_optional = true", [250, 250, 250]),
            ("[access]\naccept = ['*@example.com']\n[server]\nauth_optional = false", [530, 530, 530]),
        ],
    )
    def test_without_a_login(self, start: Start, tmp_path: Path, rules: str, codes: list[int]) -> None:
        (tmp_path / "people.py").write_text(FUNCTION)
        (tmp_path / "pillarbox.toml").write_text(f"[[users]]\nurl = 'python:people:check'\n{rules}\n")
        program = self.started(start, tmp_path)
        assert said(program.port(), MAIL, RCPT, OTHER) == codes

    @pytest.mark.parametrize("rules", ["", "[access]\naccept = []", "[access]\nnetworks = ['192.0.2.0/24']"])
    def test_with_a_login(self, start: Start, tmp_path: Path, rules: str) -> None:
        (tmp_path / "people.py").write_text(FUNCTION)
        (tmp_path / "pillarbox.toml").write_text(f"[[users]]\nurl = 'python:people:check'\n{rules}\n")
        program = self.started(start, tmp_path)
        assert said(program.port(), MAIL, RCPT, OTHER, login=("alice", "geheim")) == [250, 250, 250]

    def started(self, start: Start, folder: Path) -> Program:
        with pytest.MonkeyPatch.context() as patch:  # later tests' programs are to be those of this PYTHONPATH too
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
            return start("--config", "pillarbox.toml", *HERE)


class TestConfiguration:
    def configured(self, tmp_path: Path, content: str, users: Sequence[str] = ()) -> Configuration:
        path = tmp_path / "pillarbox.toml"
        path.write_text(content)
        return effective(str(path), users=users)

    def test_nobody_is_told_of_auth_where_nobody_can_log_in(self, tmp_path: Path) -> None:
        found = self.configured(
            tmp_path, "[[listen]]\naddress = ':25'\ndisabled_commands = ['VRFY']\n[[listen]]\naddress = ':26'\n"
        )
        assert [each.overrides["disabled_commands"] for each in found.listeners] == [("VRFY", "AUTH"), ("AUTH",)]

    def test_lmtp_needs_no_login(self, tmp_path: Path) -> None:
        users = "[[users]]\nurl = 'htpasswd:users'\n"
        found = self.configured(
            tmp_path, f"{users}[[listen]]\naddress = 'unix:x'\nlmtp = true\n[[listen]]\naddress = ':587'"
        )
        assert [each.options.must_authenticate for each in found.listeners] == [False, True]

    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ("[server]\nauth_optional = false", r"\[server\]"),
            ("[[listen]]\naddress = ':587'\nauth_optional = false", r"\[\[listen\]\] 1"),
        ],
    )
    def test_a_login_that_nobody_can_make(self, tmp_path: Path, content: str, place: str) -> None:
        with pytest.raises(ConfigurationError, match=place + r": auth_optional = false, but there is nobody who could"):
            self.configured(tmp_path, content)

    def test_arguments_replace_those_of_the_file(self, tmp_path: Path) -> None:
        found = self.configured(tmp_path, "[[users]]\nurl = 'htpasswd:a'\n", users=["htpasswd:b"])
        assert [(each.users.url, each.source) for each in found.users] == [("htpasswd:b", "--users")]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("[[users]]\n", r"\[\[users\]\] 1: url is missing, for example url = \"htpasswd:/etc/pillarbox/users\""),
            ("[[users]]\nurl = 'htpaswd:x'", r"\[\[users\]\] 1: .*unknown scheme 'htpaswd': did you mean 'htpasswd'\?"),
            ("[[users]]\nurl = 'htpasswd:x'\nparalel = 3", r"\[\[users\]\] 1: unknown key 'paralel': did you mean"),
            ("[users]\nurl = 'htpasswd:x'", r"users must be written \[\[users\]\]"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, content: str, problem: str) -> None:
        with pytest.raises(ConfigurationError, match=problem):
            self.configured(tmp_path, content)

    def test_users_without_any_mechanism(self, start: Start, tmp_path: Path) -> None:
        """AUTH would be announced with mechanisms by which nobody could ever log in."""
        (tmp_path / "mute_people.py").write_text(
            "from pillarbox.users import Users\n"
            "class Mute(Users):\n"
            "    def methods(self): return ()\n"
            "    async def authenticate(self, auth, session): return auth.username\n"
        )
        program = start(*HERE, "--users", "python:mute_people:Mute")
        assert program.wait() == 2
        assert program.lines[0] == "Error: --users: none of the users can log in by anything"

    def test_mechanisms_that_no_users_can(self, start: Start, tmp_path: Path) -> None:
        add(tmp_path, "alice", "geheim")
        program = start(*HERE, "--users", "htpasswd:users", "--set", 'auth_methods=["CRAM-MD5", "PLAIN"]')
        assert program.wait() == 2
        assert program.lines[0] == (
            "Error: --set auth_methods: none of the users can log in by CRAM-MD5 (auth_methods), but by PLAIN, LOGIN"
        )
