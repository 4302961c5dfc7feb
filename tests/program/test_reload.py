"""A reload that is hard: sessions that are none yet, targets and workers that hang, and an end in the middle of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import smtplib
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pillarbox.cli.config import effective
from pillarbox.program.running import Running
from program import WAIT, Configured, Start
from support import on_both_loops

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

LISTEN = "[[listen]]\naddress = '127.0.0.1:0'\n"
TARGET = "[[deliver]]\nurl = 'python:places:{}'\n"
BOTH = pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["alone", "workers"])

# What takes messages until it is closed; what starts when there is a file `go`; what hangs when it is closed.
PLACES = """
import asyncio, pathlib, threading, time
from pillarbox import ConfigurationError
from pillarbox.deliver import Target
from pillarbox.program import parts

parts.START_TIME = 0.5
parts.CLOSE_TIME = 0.5
parts._PATIENCE = 0.2


class Place(Target):
    closed = False

    async def deliver(self, message):
        async for _ in message:
            pass
        if self.closed:
            raise OSError("it is closed")
        return self.url

    async def close(self):
        self.closed = True
        with open("closed", "a") as file:
            file.write("closed ")


class Slow(Place):
    async def start(self):
        pathlib.Path("begun").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)


class HangsInThread(Place):
    async def close(self):
        await asyncio.to_thread(time.sleep, 3600)


class Fails(Place):
    async def start(self):
        raise ConfigurationError("no database")


class LeavesThread(Place):
    async def close(self):
        threading.Thread(target=time.sleep, args=(3600,)).start()


class Hangs(Place):
    async def close(self):
        pathlib.Path("closing").touch()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "places.py").write_text(PLACES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def until(condition: Callable[[], object]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def banner(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as sock:
        return sock.recv(1000).decode()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def supervisor(constant: str) -> list[str]:
    """Return a command for which one of the constants of the supervisor is another."""
    start = "from pillarbox.program import workers; from pillarbox.cli import main"
    return [sys.executable, "-c", f"{start}; workers.{constant}; main()"]


def in_state(pid: int, state: str) -> bool:
    return re.search(rf"^State:\s+{state}", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None


class TestTargetsOfOldSessions:
    """What a connection began with stays until it has ended, also where it is no session that the server shows."""

    def speak(self, sock: socket.socket) -> None:
        """Send a message, and hear that it is taken."""
        with smtplib.SMTP() as smtp:
            smtp.sock = sock
            assert smtp.getreply()[0] == 220
            smtp.helo("client.example.org")
            smtp.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")

    @pytest.mark.promises("The program", "SIGHUP changes the configuration and ends no session.")
    @pytest.mark.parametrize(
        ("options", "header"),
        [
            ("use_proxy = ['127.0.0.1']", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"),
            ("ignored_hosts = ['127.0.0.1']", b""),
            ("secure = true", b""),
        ],
        ids=["proxy", "ignored", "handshake"],
    )
    def test_stay(self, start: Start, tmp_path: Path, options: str, header: bytes) -> None:
        text = f"{LISTEN}[server]\n{options}\n"
        run = Configured(start, tmp_path, text + TARGET.format("Place"))
        with socket.create_connection(("127.0.0.1", run.port), timeout=WAIT) as sock:
            time.sleep(0.1)  # until it is accepted, which shows nowhere
            run.change(text + "[[deliver]]\nurl = 'discard:'\n")
            time.sleep(0.1)
            assert not (tmp_path / "closed").exists()
            sock.sendall(header)
            if "secure" in options:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(sock) as secured:
                    self.speak(secured)
            else:
                self.speak(sock)
        until((tmp_path / "closed").exists)
        assert not [line for line in run.program.lines if "error" in line]

    def test_a_second_reload_closes_nothing_twice(self, start: Start, tmp_path: Path) -> None:
        run = Configured(start, tmp_path, LISTEN + TARGET.format("Place"))
        with smtplib.SMTP("127.0.0.1", run.port, "client.example.org", timeout=WAIT) as smtp:
            for size in (1000, 2000):
                run.change(f"{LISTEN}[server]\nsize = {size}\n[[deliver]]\nurl = 'discard:'\n")
            smtp.noop()
        until((tmp_path / "closed").exists)
        time.sleep(0.1)
        assert run.program.end() == 0
        assert (tmp_path / "closed").read_text() == "closed "


class TestListeners:
    def test_one_that_cannot_be_takes_nothing_with_it_even_if_the_old_keys_are_gone(
        self, start: Start, tmp_path: Path
    ) -> None:
        from pillarbox import self_signed_certificate

        for name in ("old", "new"):
            key, cert = self_signed_certificate()
            (tmp_path / f"{name}.key").write_bytes(key)
            (tmp_path / f"{name}.pem").write_bytes(cert)
        text = LISTEN + TARGET.format("Place") + "[server]\nkey = 'old.key'\ncert = 'old.pem'\n"
        run = Configured(start, tmp_path, text)
        (tmp_path / "old.key").unlink()
        (tmp_path / "go").touch()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            more = f"[[listen]]\naddress = '127.0.0.1:{taken.getsockname()[1]}'\n"
            run.change(more + text.replace("old", "new").replace("Place", "Slow"), "error: not reloaded.*in use")
        (tmp_path / "closed").unlink()  # the new one is
        with smtplib.SMTP("127.0.0.1", run.port, "client.example.org", timeout=WAIT) as smtp:
            smtp.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        run.program.line("in python:places:Place$")

    def test_whose_own_key_cannot_be_read_changes_nothing(self, start: Start, tmp_path: Path) -> None:
        run = Configured(start, tmp_path, LISTEN)
        more = "[[listen]]\naddress = '127.0.0.1:0'\nkey = 'none.key'\ncert = 'none.pem'\n"
        run.change(LISTEN + more + "[server]\nbanner = 'new'\n", r"error: not reloaded.*\[\[listen\]\] 2: .*key")
        assert "new" not in banner(run.port)

    def test_a_unix_sockets_path_goes_with_its_listener(self, start: Start, tmp_path: Path) -> None:
        more = "[[listen]]\naddress = 'unix:here'\n"
        run = Configured(start, tmp_path, LISTEN + more)
        for _ in range(2):
            assert (tmp_path / "here").exists()
            run.change(LISTEN)
            assert not (tmp_path / "here").exists()
            run.change(LISTEN + more)
        assert run.program.end() == 0
        assert not (tmp_path / "here").exists()
        assert run.program.lines.count("listening on unix:here") == 3

    def test_a_descriptor_that_was_closed_is_not_taken_again(self, start: Start, tmp_path: Path) -> None:
        """Its number may be a client's by now, who would lose the connection."""
        with socket.create_server(("127.0.0.1", 0)) as handed_over:
            more = f"[[listen]]\naddress = 'fd:{handed_over.fileno()}'\n"
            run = Configured(start, tmp_path, LISTEN + more, fds=(handed_over.fileno(),))
            run.change(LISTEN)
            clients = [smtplib.SMTP("127.0.0.1", run.port, "client.example.org", timeout=WAIT) for _ in range(20)]
            run.change(LISTEN + more, "error: not reloaded.* it was closed when its listener went: .* a restart$")
            for smtp in clients:
                with smtp:
                    assert smtp.noop()[0] == 250


class TestWhatHangs:
    @BOTH
    def test_a_target_that_does_not_start(self, start: Start, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        text = LISTEN + TARGET.format("Place")
        run = Configured(start, tmp_path, text, *arguments)
        new = LISTEN.replace(":0'", ":0'\nbanner = 'new'") + TARGET.format("Slow")
        problem = r"\[\[deliver\]\] 1: python:places:Slow did not start within 0.5 seconds$"
        run.change(new, f"^error: not reloaded, all stays as it was: .*{problem}")
        assert "new" not in banner(run.port)
        (tmp_path / "go").touch()
        run.change(new)
        assert "new" in banner(run.port)
        assert run.program.end() == 0

    @BOTH
    def test_a_target_that_does_not_close(self, start: Start, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        run = Configured(start, tmp_path, LISTEN + TARGET.format("Hangs"), *arguments)
        left = r"^(worker \d: )?error: python:places:Hangs did not close within 0.5 seconds, and is left behind$"
        run.change(LISTEN + TARGET.format("Place"))
        run.program.line(left)
        run.change(LISTEN + TARGET.format("Hangs"))
        run.program.process.send_signal(signal.SIGTERM)
        run.program.line(left)
        assert run.program.wait() == 0
        assert run.program.lines[-2:] == ["closed", ""]

    @pytest.mark.parametrize(
        ("target", "arguments"),
        [("HangsInThread", ()), ("HangsInThread", ("--workers", "2")), ("LeavesThread", ())],
        ids=["alone", "workers", "of its own"],
    )
    def test_a_thread_that_does_not_end(
        self, start: Start, tmp_path: Path, target: str, arguments: tuple[str, ...]
    ) -> None:
        run = Configured(start, tmp_path, LISTEN + TARGET.format(target), *arguments)
        run.program.process.send_signal(signal.SIGTERM)
        run.program.line(
            r"^(worker \d: )?error: a thread did not end within 2 seconds after all else: the process ends without it$"
        )
        assert run.program.wait() == 0

    @BOTH
    def test_a_thread_that_does_not_end_where_another_target_does_not_start(
        self, start: Start, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        (tmp_path / "mail.toml").write_text(LISTEN + TARGET.format("HangsInThread") + TARGET.format("Fails"))
        program = start("--config", "mail.toml", *arguments)
        assert program.wait() == 2
        assert [line for line in program.lines if re.match(r"(E|e)rror: .*\[\[deliver\]\] 2: no database$", line)]

    def test_a_hangup_that_comes_last_does_not_kill(self, start: Start, tmp_path: Path) -> None:
        run = Configured(start, tmp_path, LISTEN + TARGET.format("Place"))
        run.program.process.send_signal(signal.SIGTERM)
        run.program.line("^closed$")
        while run.program.process.poll() is None:
            run.program.process.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        assert run.program.wait() == 0

    def test_a_worker_that_does_not_answer(self, start: Start, tmp_path: Path) -> None:
        """It is stopped; when it goes on it has the configuration that the others have."""
        text = LISTEN + "banner = 'old'\n"
        run = Configured(start, tmp_path, text, "--workers", "2", command=supervisor("ANSWER_TIME = 3.0"))
        stopped, other = children(run.program.process.pid)
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: in_state(stopped, "T"))
        problem = rf"worker \d \(pid {stopped}\) did not answer within 3 seconds$"
        for _ in range(2):  # and so again
            run.change(text.replace("old", "new"), f"^error: not reloaded, all stays as it was: {problem}")
        assert "old" in banner(run.port)
        os.kill(stopped, signal.SIGCONT)
        os.kill(other, signal.SIGSTOP)
        until(lambda: in_state(other, "T"))
        assert "old" in banner(run.port)
        os.kill(other, signal.SIGCONT)
        run.change(text.replace("old", "new"))
        os.kill(other, signal.SIGSTOP)
        until(lambda: in_state(other, "T"))
        assert "new" in banner(run.port)
        os.kill(other, signal.SIGCONT)
        assert run.program.end() == 0

    def test_a_worker_that_does_not_end(self, start: Start, tmp_path: Path) -> None:
        command = supervisor("CLOSING_TIME = 0.5")
        run = Configured(start, tmp_path, LISTEN + "[server]\nclose_timeout = 0.5\n", "--workers", "2", command=command)
        stopped, _ = children(run.program.process.pid)
        os.kill(stopped, signal.SIGSTOP)
        run.program.process.send_signal(signal.SIGTERM)
        run.program.line(rf"^error: worker \d \(pid {stopped}\) did not end within 1 seconds: it is killed$")
        assert run.program.wait() == 0

    def test_a_worker_that_does_not_get_ready(self, start: Start, tmp_path: Path) -> None:
        """It gets the new configuration at its next start, which is now."""
        (tmp_path / "go").touch()
        text = LISTEN + TARGET.format("Slow")
        run = Configured(start, tmp_path, text, "--workers", "2", command=supervisor("START_TIME = 0.1"))
        (tmp_path / "go").unlink()
        (tmp_path / "begun").unlink()
        first, _ = children(run.program.process.pid)
        os.kill(first, signal.SIGKILL)
        until((tmp_path / "begun").exists)  # and now it waits for what does not answer
        run.change(LISTEN + "banner = 'new'\n" + TARGET.format("Place"))
        run.program.line(r"^worker \d \(pid \d+\) has ended; one with the new configuration is started$")
        run.program.line(r"^worker \d \(pid \d+\) is ready$")
        assert {"new" in banner(run.port) for _ in range(8)} == {True}
        assert run.program.end() == 0


class TestTheEnd:
    @BOTH
    def test_in_the_middle_of_a_reload(
        self, start: Start, tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "places.py").write_text(PLACES.replace("START_TIME = 0.5", "START_TIME = 30.0"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(WAIT)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            run = Configured(start, tmp_path, LISTEN, *arguments)
            run.path.write_text(LISTEN + TARGET.format("Slow"))
            run.program.process.send_signal(signal.SIGHUP)
            until((tmp_path / "begun").exists)
            began = time.monotonic()
            run.program.process.send_signal(signal.SIGTERM)
            run.program.line("^SIGTERM: closing")
            run.program.process.send_signal(signal.SIGHUP)  # which is none any more
            assert run.program.wait() == 0
            assert time.monotonic() - began < 10
            said = [manager.recv(1000).partition(b"\n")[0] for _ in range(3)]
            assert said == [b"READY=1", b"RELOADING=1", b"STOPPING=1"]
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(1000)
        assert run.program.lines[-2:] == ["closed", ""]
        assert not [line for line in run.program.lines if "reloaded" in line or "error" in line]


@on_both_loops
async def test_the_end_at_any_moment_of_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.program.running.log_to_stderr", lambda _: None)  # this process is the tests'
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pillarbox.toml"
    old, new = LISTEN + "[[deliver]]\nurl = 'discard:'\n", "[[listen]]\naddress = 'unix:here'\n"
    for turns in range(30):
        path.write_text(old)
        running = Running(effective(str(path)), {})
        await running.start([None])
        path.write_text(new)
        reloading = asyncio.create_task(running.reload(running.configuration.again()))
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(running.close(), WAIT)
        await asyncio.wait([reloading])
        assert reloading.cancelled() or reloading.exception() is None
        assert not running.server.addresses
        assert not (tmp_path / "here").exists()
