"""The life of the program: SIGHUP, renewed certificates, another user, and what a service manager says and hears."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from pillarbox import ConfigurationError
from pillarbox.cli.config import effective
from pillarbox.program.privileges import account
from pillarbox.program.run import StopSignals
from pillarbox.program.running import Running
from program import MODULE, WAIT, Configured, Program, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")

ROOT = getattr(os, "geteuid", lambda: 1)() == 0


def client(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT)


def keywords(port: int) -> dict[str, str]:
    with client(port) as smtp:
        smtp.ehlo()
        return dict(smtp.esmtp_features)


def send(smtp: smtplib.SMTP, recipient: str = "b@example.com") -> None:
    smtp.sendmail("a@example.org", [recipient], b"Subject: x\r\n\r\nbody\r\n")


HERE = ("--listen", "127.0.0.1:0")
LISTEN = "[[listen]]\naddress = '127.0.0.1:0'\n"


class TestReload:
    @pytest.mark.promises("The program", "SIGHUP changes the configuration and ends no session.")
    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_changes_what_comes_and_leaves_what_is_there(
        self, start: Start, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        text = LISTEN + "[server]\nsize = 1000\n[[deliver]]\nurl = 'maildir:old'\n"
        run = Configured(start, tmp_path, text, *arguments)
        with client(run.port) as before:
            before.ehlo()
            assert before.esmtp_features["size"] == "1000"
            run.change(text.replace("1000", "2000").replace("old", "new"))
            assert keywords(run.port)["size"] == "2000"
            send(before)
            with client(run.port) as after:
                send(after)
        assert len(list((tmp_path / "old/new").iterdir())) == 1
        assert len(list((tmp_path / "new/new").iterdir())) == 1
        assert run.program.end() == 0

    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_a_mistake_changes_nothing(self, start: Start, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        text = LISTEN + "[server]\nsize = 1000\n"
        run = Configured(start, tmp_path, text, *arguments)
        for wrong, problem in (
            (
                "[server]\nsize = 'big'",
                r"error: not reloaded, all stays as it was: .*\[server\]: option size",
            ),
            ("not TOML", "error: not reloaded, .* is not TOML"),
            (
                text + "[[deliver]]\nurl = 'maildir:pillarbox.toml'",
                r"error: not reloaded, .*\[\[deliver\]\] 1: maildir:",
            ),
            (text + "key = 'x.key'\ncert = 'x.pem'", "error: not reloaded, .*: option key"),
        ):
            run.change(wrong if wrong != text else text, problem)
        assert keywords(run.port)["size"] == "1000"

    def test_listeners_come_and_go(self, start: Start, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        run = Configured(start, tmp_path, LISTEN)
        more = f"[[listen]]\naddress = '127.0.0.1:{port}'\nbanner = 'second'\n"
        run.change(LISTEN + more)
        with client(port) as second, client(run.port) as first:
            run.change(LISTEN)
            with pytest.raises(ConnectionRefusedError):
                client(port)
            assert second.noop()[0] == first.noop()[0] == 250
        run.change(LISTEN + more)
        client(port).close()
        # One that cannot be bound takes nothing with it.
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            wrong = f"[[listen]]\naddress = '127.0.0.1:{number}'\n"
            run.change(
                "[server]\nsize = 5\n" + LISTEN + wrong, "error: not reloaded, .*cannot listen on .*already in use"
            )
        assert "size" not in keywords(run.port)
        client(port).close()

    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_after_users_that_fail_in_their_own_way_it_still_listens(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        (tmp_path / "people.py").write_text(
            "from pillarbox.users import Users\n"
            "class People(Users):\n    methods = authenticate = None\n"
            "    async def start(self):\n        raise OSError('no database')\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        run = Configured(start, tmp_path, LISTEN, *arguments)
        run.change(LISTEN + "[[users]]\nurl = 'python:people:People'\n", "error: not reloaded.*: no database")
        run.change(LISTEN + "[server]\nsize = 2000\n")
        assert keywords(run.port)["size"] == "2000"

    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_a_signal_that_comes_too_early_is_heard_later(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        program = self.starting(start, tmp_path, monkeypatch, *arguments)
        program.process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        program.port()
        program.line("^reloaded$")

    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_it_ends_also_while_it_starts(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        program = self.starting(start, tmp_path, monkeypatch, *arguments)
        assert program.end() == 0
        assert [line for line in program.lines if line] == ["SIGTERM: closing; a second signal ends at once", "closed"]

    def test_users_that_cannot_close_keep_nothing_from_its_end(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "people.py").write_text(
            "import pathlib\nfrom pillarbox.users import Users\n"
            "class First(Users):\n"
            "    authenticate = None\n    def methods(self):\n        return ('PLAIN',)\n"
            "    async def close(self):\n        raise OSError('no database')\n"
            "class Second(First):\n"
            "    async def close(self):\n        pathlib.Path('closed').touch()\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        program = start(*HERE, "--users", "python:people:First", "--users", "python:people:Second")
        program.port()
        assert program.end() == 0
        assert (tmp_path / "closed").exists()
        assert "error: python:people:First: OSError while it closed: no database" in program.lines

    def starting(self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Program:
        """Return a program with users that are not ready before there is a file ``go``."""
        (tmp_path / "people.py").write_text(
            "import asyncio, os, pathlib, signal\nfrom pillarbox.users import Users\n"
            "class People(Users):\n"
            "    authenticate = None\n    def methods(self):\n        return ('PLAIN',)\n"
            "    async def start(self):\n        pathlib.Path(f'begun{os.getpid()}').touch()\n"
            "        while not pathlib.Path('go').exists():\n            await asyncio.sleep(0.01)\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        program = start(*HERE, "--users", "python:people:People", *arguments)
        deadline = time.monotonic() + WAIT
        while not list(tmp_path.glob("begun*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return program

    def test_what_needs_a_restart_is_said(self, start: Start, tmp_path: Path) -> None:
        run = Configured(start, tmp_path, LISTEN)
        new = "[server]\nsize = 2000\n[program]\nworkers = 2\nmetrics = '127.0.0.1:0'\nlog_level = 'info'\n"
        for _ in range(2):
            run.change(
                LISTEN + new, r"^warning: needs a restart, and stays as it was: workers, metrics in \[program\]$"
            )
            run.program.line("^reloaded$")
        assert keywords(run.port)["size"] == "2000"

    def test_what_needs_a_restart_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "pillarbox.toml"
        path.write_text("[program]\nuser = 'nobody'\n")
        before = effective(str(path))
        path.write_text("[program]\nworkers = 2\nlog_level = 'debug'\n[server]\nsize = 1\n")
        new = before.again()
        assert new.fixed_unlike(before) == ["workers", "user"]
        kept = new.with_fixed_of(before)
        assert (kept.program.workers, kept.program.user, kept.program.log_level) == (1, "nobody", "debug")
        # What a worker gets that is started later: it is not to stay root.
        assert effective(**json.loads(json.dumps(kept.snapshot))).program == kept.program
        assert kept.again().program == new.program

    def test_a_wider_address_at_the_same_port_needs_a_restart(self, start: Start, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        text = f"[[listen]]\naddress = '127.0.0.1:{port}'\n"
        run = Configured(start, tmp_path, text)
        said = run.change(text.replace("127.0.0.1", "0.0.0.0"), "error: not reloaded, .*needs a restart$")
        assert "another program" not in said
        client(port).close()

    def test_with_workers_addresses_stay(self, start: Start, tmp_path: Path) -> None:
        run = Configured(start, tmp_path, LISTEN, "--workers", "2")
        run.change(LISTEN.replace("127.0.0.1:0", "127.0.0.1:1"), "not reloaded, .*with workers they need a restart")


async def test_a_signal_while_the_program_ends_by_itself_is_no_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    try:
        stopped = asyncio.create_task(StopSignals().stopped())
        await asyncio.sleep(0)
        stopped.cancel()
        await asyncio.wait([stopped])
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.01)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert errors == []


class TestCertificates:
    @pytest.mark.promises("The program", "Renewed certificates are used as soon as their files have changed.")
    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_are_read_when_their_files_change(self, start: Start, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        authority = trustme.CA()
        self.write(tmp_path, authority, "old.example.com")
        run = Configured(start, tmp_path, LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n", *arguments)
        assert self.name(run.port, authority) == "old.example.com"
        with client(run.port) as before:
            self.write(tmp_path, authority, "new.example.com")
            run.program.line("^certificate files have changed$")
            deadline = time.monotonic() + WAIT
            while self.name(run.port, authority) != "new.example.com":
                assert time.monotonic() < deadline
            assert before.noop()[0] == 250

    async def test_a_renewal_while_the_configuration_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pillarbox.program.running.log_to_stderr", lambda _: None)  # this process is the tests'
        self.write(tmp_path, trustme.CA(), "mx.example.com")
        text = LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\nsize = 1000\n[[deliver]]\nurl = 'discard:'\n"
        path = tmp_path / "pillarbox.toml"
        path.write_text(text)
        running = Running(effective(str(path)), {})
        await running.start([None])
        try:
            path.write_text(text.replace("1000", "2000").replace(LISTEN, LISTEN * 2))
            await asyncio.gather(running.reload(running.configuration.again()), running.renew())
            assert running.server.options.size == running.configuration.options.size == 2000
        finally:
            await running.close()

    def test_a_worker_that_is_started_later_has_the_certificate_of_the_file(self, start: Start, tmp_path: Path) -> None:
        authority = trustme.CA()
        run = Configured(start, tmp_path, LISTEN, "--workers", "2")
        self.write(tmp_path, authority, "mx.example.com")
        run.change(LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n")
        for pid in children(run.program.process.pid):
            os.kill(pid, signal.SIGKILL)
        run.program.line(r"^worker \d \(pid \d+\) is ready$")
        run.program.line(r"^worker \d \(pid \d+\) is ready$")
        assert {self.name(run.port, authority) for _ in range(6)} == {"mx.example.com"}

    def test_a_worker_that_is_started_later_lives_with_files_that_are_broken(
        self, start: Start, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        self.write(tmp_path, authority, "mx.example.com")
        run = Configured(start, tmp_path, LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n", "--workers", "2")
        (tmp_path / "cert.pem").write_text("half of it")
        run.program.line(
            r"^error: not reloaded, all stays as it was: .*\[server\]: option cert: .*cert\.pem: holds nothing"
        )
        for pid in children(run.program.process.pid):
            os.kill(pid, signal.SIGKILL)
        run.program.line(r"^worker \d \(pid \d+\) is ready$")
        run.program.line(r"^worker \d \(pid \d+\) is ready$")
        assert {self.name(run.port, authority) for _ in range(6)} == {"mx.example.com"}

    def test_workers_share_one_certificate_when_the_file_has_none_any_more(self, start: Start, tmp_path: Path) -> None:
        self.write(tmp_path, trustme.CA(), "mx.example.com")
        run = Configured(start, tmp_path, LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n", "--workers", "2")
        run.change(LISTEN)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        seen = set()
        with contextlib.ExitStack() as open_:
            for _ in range(16):  # open at once: both workers have some
                smtp = open_.enter_context(client(run.port))
                smtp.starttls(context=context)
                assert isinstance(smtp.sock, ssl.SSLSocket)
                seen.add(smtp.sock.getpeercert(binary_form=True))
        assert len(seen) == 1

    def test_half_of_them_changes_nothing(self, start: Start, tmp_path: Path) -> None:
        authority = trustme.CA()
        self.write(tmp_path, authority, "old.example.com")
        run = Configured(start, tmp_path, LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n")
        (tmp_path / "key.pem").write_bytes(authority.issue_cert("x.example").private_key_pem.bytes())
        run.program.line("error: not reloaded, all stays as it was: .*key")
        assert self.name(run.port, authority) == "old.example.com"

    def write(self, folder: Path, authority: trustme.CA, name: str) -> None:
        issued = authority.issue_cert(name)
        for path, pem in (("key.pem", issued.private_key_pem), ("cert.pem", issued.cert_chain_pems[0])):
            pem.write_to_path(str(folder / "new"))
            (folder / "new").replace(folder / path)

    def name(self, port: int, authority: trustme.CA) -> str:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.check_hostname = False
        with client(port) as smtp:
            smtp.starttls(context=context)
            assert isinstance(smtp.sock, ssl.SSLSocket)
            certificate = smtp.sock.getpeercert()
            assert certificate is not None
            (name,) = (value for kind, value in certificate["subjectAltName"] if kind == "DNS")  # type: ignore[str-unpack]
            return str(name)


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
class TestUser:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Return a folder of root's in which nobody may write in ``mail`` alone."""
        for parent in (tmp_path, *tmp_path.parents[:-1]):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(0o711)
        mail = tmp_path / "mail"
        mail.mkdir()
        shutil.chown(mail, "nobody")
        return tmp_path

    @pytest.mark.promises("The program", "With user it gives up root for good before it reads a first command.")
    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_gives_up_root(self, start: Start, folder: Path, arguments: tuple[str, ...]) -> None:
        authority = trustme.CA()
        TestCertificates().write(folder, authority, "mx.example.com")
        for name in ("key.pem", "cert.pem"):
            (folder / name).chmod(0o600)  # which only root can read
        text = LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n[[deliver]]\nurl = 'maildir:mail/box'\n"
        run = Configured(start, folder, text, "--user", "nobody", *arguments)
        nobody = pwd.getpwnam("nobody")
        pids = children(run.program.process.pid) or [run.program.process.pid]
        assert len(pids) == (2 if arguments else 1)
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}" in status
            assert f"Gid:\t{nobody.pw_gid}\t{nobody.pw_gid}" in status
            (groups,) = [line.split()[1:] for line in status.splitlines() if line.startswith("Groups:")]
            assert groups == [str(nobody.pw_gid)]
        assert TestCertificates().name(run.port, authority) == "mx.example.com"
        with client(run.port) as smtp:
            send(smtp)
        (stored,) = (folder / "mail/box/new").iterdir()
        assert stored.stat().st_uid == nobody.pw_uid

    def test_a_supervisor_hands_renewed_keys_to_workers_who_may_not_read_them(self, start: Start, folder: Path) -> None:
        authority = trustme.CA()
        TestCertificates().write(folder, authority, "old.example.com")
        text = LISTEN + "[server]\nkey = 'key.pem'\ncert = 'cert.pem'\n[[deliver]]\nurl = 'discard:'\n"
        run = Configured(start, folder, text, "--user", "nobody", "--workers", "2")
        TestCertificates().write(folder, authority, "new.example.com")
        (folder / "key.pem").chmod(0o600)
        run.program.line("^certificate files have changed$")
        deadline = time.monotonic() + WAIT
        while TestCertificates().name(run.port, authority) != "new.example.com":
            assert time.monotonic() < deadline

    def test_unknown(self, start: Start) -> None:
        program = start("--user", "no-such-user")
        assert program.wait() == 2
        assert program.lines[0] == "Error: user: there is no user 'no-such-user' on this host"

    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_root_that_may_not(self, start: Start, arguments: tuple[str, ...]) -> None:
        """A container may have taken the capabilities away."""
        command = ["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid", *MODULE]
        program = start(*HERE, "--deliver", "discard:", "--user", "nobody", *arguments, command=command)
        assert program.wait() == 2
        assert program.lines[0].startswith("Error: user: this process may not become nobody with group ")

    @pytest.mark.parametrize("user", ["99999999999999", "", "a\0b", "nobody:99999999999999", "nobody:no-such-group"])
    def test_what_names_nobody(self, user: str) -> None:
        with pytest.raises(ConfigurationError, match="user: there is no"):
            account(user)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class TestServiceManager:
    @pytest.fixture
    def notified(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(WAIT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        return sock

    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_is_told_when_it_is_ready_reloads_and_ends(
        self, start: Start, tmp_path: Path, notified: socket.socket, arguments: tuple[str, ...]
    ) -> None:
        with notified:
            run = Configured(start, tmp_path, LISTEN, *arguments)
            assert notified.recv(1000) == b"READY=1"
            run.change(LISTEN)
            assert notified.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert notified.recv(1000) == b"READY=1"
            assert run.program.end() == 0
            assert notified.recv(1000) == b"STOPPING=1"
            notified.setblocking(False)
            with pytest.raises(BlockingIOError):
                notified.recv(1000)

    @pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is missing")
    @pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])
    def test_takes_the_sockets_that_it_is_given(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
            ports = [free.getsockname()[1], other.getsockname()[1]]
        activate = ["systemd-socket-activate", "-l", f"127.0.0.1:{ports[0]}", "-l", f"127.0.0.1:{ports[1]}"]
        serve = [*MODULE, "serve", "--listen", "fd:smtp", "--listen", "fd:4", "--deliver", "maildir:box", *arguments]
        paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        setenv = [f"--setenv={name}={value}" for name, value in paths.items() if value]
        process = subprocess.Popen(
            [*activate, "--fdname=smtp:lmtp", *setenv, *serve], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            for port in ports:
                deadline = time.monotonic() + WAIT
                while True:  # it is systemd-socket-activate that listens
                    try:
                        smtp = client(port)
                        break
                    except ConnectionRefusedError:
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                with smtp:
                    send(smtp)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0
            assert len(list((tmp_path / "box/new").iterdir())) == 2
        finally:
            process.kill()
            process.wait(WAIT)
            process.stderr.close()
