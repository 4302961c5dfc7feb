"""``pillarbox serve --workers``: real processes that are killed, and the limits that hold over all of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from program import WAIT, Program, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers share sockets as Windows cannot")

HERE = "127.0.0.1"
ENVELOPE = (b"HELO x\r\n", b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n")
TWO = ("--workers", "2", "--listen", f"{HERE}:0")


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> str:
    """Run the program once with uvloop, once without: also its workers, which are programs of their own."""
    if request.param == "asyncio":
        folder = tmp_path_factory.mktemp("without")
        (folder / "uvloop.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return str(request.param)


def pids(program: Program) -> list[int]:
    """Return the workers' processes; they are listening then."""
    found = program.line(r"^2 workers: 1 \(pid (\d+)\), 2 \(pid (\d+)\)$")
    return [int(pid) for pid in found.groups()]


def connected(port: int) -> socket.socket:
    return socket.create_connection((HERE, port), timeout=WAIT)


def conversation(port: int, *lines: bytes) -> socket.socket:
    """Send commands one by one and return the socket after the last reply."""
    client = admitted(port)
    for line in lines:
        client.sendall(line)
        assert client.recv(4096)[:1] in b"23"
    return client


def admitted(port: int) -> socket.socket:
    """Connect and return the socket after a greeting; places that were just left may be taken for a moment longer."""
    deadline = time.monotonic() + WAIT
    while (greeting := said(client := connected(port)))[:3] == b"421" and time.monotonic() < deadline:
        client.close()
        time.sleep(0.02)
    assert greeting[:3] == b"220"
    return client


def said(client: socket.socket) -> bytes:
    """Return what the server says next; nothing where it is gone."""
    try:
        return client.recv(4096)
    except ConnectionError:
        return b""


@contextlib.contextmanager
def both_workers(port: int, *lines: bytes, most: int = 40) -> Iterator[list[socket.socket]]:
    """Have so many connections that both workers have some: by the toss of a coin all of them fail once in 10**12."""
    with contextlib.ExitStack() as open_:
        yield [open_.enter_context(conversation(port, *lines)) for _ in range(most)]


def until(condition: Any) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def codes(port: int, number: int) -> list[bytes]:
    """Connect so often, one after the other, and return how each is greeted."""
    found = []
    for _ in range(number):
        with connected(port) as client:
            found.append(said(client)[:3])
    return found


def ended_without_noise(program: Program) -> bool:
    """Nothing but the program's own lines was written, and each of them whole."""
    own = (
        r"\d workers: |listening on |closed$|SIG\w+: closing|warning: worker \d \(pid \d+\) |"
        r"worker \d \(pid \d+\) is ready$|"
        r"worker \d: (message from |warning: new connections|connections are accepted again)|$"
    )
    strange = [line for line in program.lines if not re.match(own, line)]
    assert not strange
    return True


@pytest.mark.promises(
    "Nothing is lost", "A worker that is killed takes no message with it that got 250; the others go on."
)
def test_killed_in_the_middle_of_messages(start: Start, tmp_path: Path, loop: str) -> None:
    program = start(*TWO)
    first, _ = pids(program)
    port = program.port()
    acknowledged: list[int] = []
    lost: list[int] = []
    done = threading.Event()

    def load(first_number: int) -> None:
        number = first_number
        while not done.is_set():
            with contextlib.suppress(smtplib.SMTPException, OSError), smtplib.SMTP(HERE, port, timeout=WAIT) as client:
                while not done.is_set():
                    number += 1
                    body = b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x" * 70 * (number % 50))
                    client.sendmail("a@example.org", ["b@example.com"], body)
                    acknowledged.append(number)
                continue
            lost.append(number)

    threads = [threading.Thread(target=load, args=(1_000_000 * each,)) for each in range(1, 7)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(acknowledged) > 60)
        os.kill(first, signal.SIGKILL)
        program.line(rf"^warning: worker 1 \(pid {first}\) was ended by SIGKILL; it is started again now$")
        before = len(acknowledged)
        program.line(r"^worker 1 \(pid \d+\) is ready$")
        until(lambda: len(acknowledged) > before + 60)
    finally:
        done.set()
        for thread in threads:
            thread.join(WAIT)
    assert program.end() == 0
    assert ended_without_noise(program)
    found = set()
    for path in (tmp_path / "Maildir/new").iterdir():
        head, _, body = path.read_bytes().partition(b"\n\n")
        number = int(head.rpartition(b"Subject: ")[2])
        assert body == b"x" * 70 * (number % 50) + b"\n"
        found.add(number)
    assert found >= set(acknowledged)
    clients = [number // 1_000_000 for number in lost]
    assert len(clients) == len(set(clients))  # each lost the killed worker's connection, and never another


def test_both_take_connections_and_show_one_certificate(start: Start) -> None:
    program = start(*TWO, "--deliver", "discard:")
    first, second = pids(program)
    port = program.port()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    certificates = set()
    with both_workers(port, b"EHLO x\r\n", b"STARTTLS\r\n") as plain:
        clients = [context.wrap_socket(each) for each in plain]
        certificates = {client.getpeercert(binary_form=True) for client in clients}
        # What a terminal and a service manager send to all processes is the supervisor's to obey.
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(second, number)
        os.kill(first, signal.SIGKILL)
        program.line(r"^worker 1 \(pid \d+\) is ready$")
        alive = []
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"NOOP\r\n")
                alive.append(client.recv(4096).startswith(b"250"))
        assert 0 < sum(alive) < len(clients)
        for client in clients:
            client.close()
    assert len(certificates) == 1
    assert program.end() == 0
    assert ended_without_noise(program)


def test_without_its_supervisor_no_worker_stays(start: Start, tmp_path: Path) -> None:
    program = start(*TWO)
    pids(program)
    port = program.port()
    with both_workers(port, *ENVELOPE, most=12) as clients:
        program.process.kill()
        for _ in ("one", "the other"):
            program.line(r"^worker \d: warning: the supervisor is gone: closing$")
        for client in clients:  # what has begun is finished
            client.sendall(b"Subject: x\r\n\r\nbody\r\n.\r\n")
            assert said(client).startswith(b"250 ")
    program.wait()  # for the end of standard error too, which all of them have
    assert len(list((tmp_path / "Maildir/new").iterdir())) == 12
    with pytest.raises(ConnectionRefusedError):
        connected(port)


def test_drains_as_one_process_does(start: Start, tmp_path: Path) -> None:
    program = start(*TWO)
    pids(program)
    port = program.port()
    with both_workers(port, b"HELO x\r\n", most=6) as idle, both_workers(port, *ENVELOPE, most=12) as busy:
        program.process.send_signal(signal.SIGTERM)
        program.line("^SIGTERM: closing; a second signal ends at once$")
        assert {said(client)[:4] for client in idle} == {b"421 "}
        until(lambda: _refused(port))
        for client in busy:
            client.sendall(b"Subject: x\r\n\r\nbody\r\n.\r\n")
            assert said(client).startswith(b"250 ")
    assert program.wait() == 0
    assert ended_without_noise(program)
    assert len(list((tmp_path / "Maildir/new").iterdir())) == 12


def _refused(port: int) -> bool:
    try:
        connected(port).close()
    except OSError:
        return True
    return False


FEW_THREADS = """
import pathlib, threading
from pillarbox.cli import main
start = threading.Thread.start

def started(thread):
    if thread.name.startswith("worker ") and pathlib.Path("full").exists():
        pathlib.Path("full").unlink()
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = started
main()
"""


def test_a_system_without_threads_for_a_moment(start: Start, tmp_path: Path) -> None:
    program = start(*TWO, command=[sys.executable, "-c", FEW_THREADS])
    first, _ = pids(program)
    port = program.port()
    (tmp_path / "full").touch()
    os.kill(first, signal.SIGKILL)
    program.line("warning: worker 1 .* cannot start: can't start new thread; it is started again ")
    program.line("worker 1 .* is ready")
    assert codes(port, 1) == [b"220"]
    assert program.end() == 0


SLOW_CERTIFICATE = """
import pathlib, sys, time
from pillarbox.cli import main
from pillarbox.program import workers

def made():
    print("making", file=sys.stderr, flush=True)
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    return {}

workers._certificate = made
main()
"""


def test_the_end_while_workers_start(start: Start, tmp_path: Path) -> None:
    program = start(*TWO, command=[sys.executable, "-c", SLOW_CERTIFICATE])
    program.line("^making$")
    program.process.send_signal(signal.SIGTERM)
    program.line("^SIGTERM: closing")
    (tmp_path / "go").touch()
    assert program.wait() == 0
    assert program.lines[2:] == ["closed", ""]


def test_a_second_signal_ends_all_at_once(start: Start) -> None:
    program = start(*TWO, "--set", "close_timeout=600", "--set", "socket_timeout=600")
    pids(program)
    with both_workers(program.port(), *ENVELOPE, most=8):
        program.process.send_signal(signal.SIGTERM)
        program.line("^SIGTERM: ")
        assert program.end(signal.SIGINT) == -signal.SIGINT  # and the workers are gone too: they had standard error


@pytest.mark.promises(
    "Limits",
    "With several workers, numbers and rates hold over all of them; what one that dies had counted is given back.",
)
def test_numbers_hold_over_all(start: Start) -> None:
    program = start(*TWO, "--set", "max_clients=3", "--log-level", "info")
    running = pids(program)
    port = program.port()
    with both_workers(port, most=3) as clients:
        assert codes(port, 8) == [b"421"] * 8
        clients[0].sendall(b"QUIT\r\n")
        assert said(clients[0]).startswith(b"221")
        until(lambda: codes(port, 1) == [b"220"])
    with both_workers(port, most=3):
        for pid in running:  # what a worker that dies has counted is given back
            os.kill(pid, signal.SIGKILL)
        for _ in running:
            program.line(r"^worker \d \(pid \d+\) is ready$")
        with both_workers(port, most=3):
            assert codes(port, 8) == [b"421"] * 8


@pytest.mark.promises(
    "Limits",
    "With several workers, numbers and rates hold over all of them; what one that dies had counted is given back.",
)
def test_numbers_of_an_address_and_rates_hold_over_all(start: Start) -> None:
    rate = 'rates_over_all={messages = "5/hour"}'
    program = start(*TWO, "--set", "max_clients_per_address=4", "--set", rate, "--deliver", "discard:")
    pids(program)
    port = program.port()
    with both_workers(port, most=4):
        assert codes(port, 8) == [b"421"] * 8
    until(lambda: codes(port, 1) == [b"220"])
    accepted = 0
    for _ in range(12):
        with conversation(port, b"HELO x\r\n") as client:
            client.sendall(b"MAIL FROM:<a@example.org>\r\n")
            accepted += said(client).startswith(b"250")
            client.sendall(b"QUIT\r\n")
            while said(client):
                pass
    assert accepted == 5


def test_a_unix_socket_outlives_its_workers(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "lmtp"
    program = start("--workers", "2", "--listen", f"unix:{path}", "--set", "lmtp=true")
    running = pids(program)
    program.line(rf"^listening on unix:{path}$")
    for pid in running:  # one that is told to end by itself is replaced as well
        os.kill(pid, signal.SIGTERM)
        program.line(rf"^warning: worker \d \(pid {pid}\) ended with status 0; it is started again now$")
        program.line(r"^worker \d \(pid \d+\) is ready$")
    with smtplib.LMTP(str(path), local_hostname="client.example.org") as client:
        client.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")
    assert program.end() == 0
    assert ended_without_noise(program)
    assert not path.exists()


def test_a_socket_that_was_handed_over(start: Start) -> None:
    with socket.create_server((HERE, 0)) as listening:
        program = start("--workers", "2", "--listen", f"fd:{listening.fileno()}", fds=(listening.fileno(),))
        pids(program)
        assert codes(program.port(), 4) == [b"220"] * 4


def test_what_is_started_again_has_the_configuration_that_was_checked(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "mail.toml"
    file.write_text(f'[program]\nworkers = 2\n[server]\nbanner = "first"\n[[listen]]\naddress = "{HERE}:0"\n')
    program = start("--config", "mail.toml")
    running = pids(program)
    port = program.port()
    file.write_text("this is no TOML")
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    for _ in running:
        program.line(r"^worker \d \(pid \d+\) is ready$")
    with connected(port) as client:
        assert said(client).endswith(b" ESMTP first\r\n")


def test_one_that_cannot_start_again_is_tried_later_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    program = start(*TWO, "--deliver", "maildir:mail/box")
    first, _ = pids(program)
    port = program.port()
    (tmp_path / "mail").rename(tmp_path / "away")
    (tmp_path / "mail").write_text("in the way")
    os.kill(first, signal.SIGKILL)
    program.line(r"^warning: worker 1 \(pid \d+\) was ended by SIGKILL; it is started again now$")
    program.line(r"^warning: worker 1 \(pid \d+\) cannot start: .*mail.*; it is started again in 1 seconds$")
    assert codes(port, 4) == [b"220"] * 4
    (tmp_path / "mail").unlink()
    program.line(r"^worker 1 \(pid \d+\) is ready$")


def test_a_reload_does_not_make_the_log_say_everything_twice(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "mail.toml"
    file.write_text(f'[[listen]]\naddress = "{HERE}:0"\n[[deliver]]\nurl = "discard:"\n')
    program = start("--config", "mail.toml", "--workers", "2")
    pids(program)
    port = program.port()
    for _ in range(2):
        program.process.send_signal(signal.SIGHUP)
        program.line("^reloaded$")
    with smtplib.SMTP(HERE, port, timeout=WAIT) as client:
        client.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")
    assert program.end() == 0
    assert len([line for line in program.lines if re.match(r"worker [12]: message from", line)]) == 1


def test_each_record_says_which_worker_wrote_it(start: Start, tmp_path: Path) -> None:
    program = start(*TWO, "--deliver", "discard:", "--log-format", "json")
    port = int(program.line(r'"listening on 127\.0\.0\.1:(\d+)"')[1])
    with smtplib.SMTP(HERE, port, timeout=WAIT) as client:
        client.sendmail("a@example.org", ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")
    message = json.loads(program.line("message from").string)
    assert program.end() == 0
    first, *others = [json.loads(line) for line in program.lines if line]
    pids = dict(re.findall(r"(\d) \(pid (\d+)\)", first["message"]))
    assert int(pids[str(message["worker"])]) == message["pid"]
    assert all("worker" not in record for record in (first, *others) if record["pid"] == program.process.pid)


class TestFailures:
    @pytest.fixture
    def failed(self, start: Start) -> Any:
        """Return the one line of a program that could not start."""

        def failed(*arguments: str, status: int = 2, **more: Any) -> str:
            program = start(*arguments, **more)
            assert program.wait() == status
            (line,) = [line for line in program.lines if line]
            return line

        return failed

    def test_an_address_that_is_taken_also_by_workers(self, start: Start, failed: Any) -> None:
        program = start(*TWO, "--deliver", "discard:")
        pids(program)
        port = program.port()
        line = failed("--workers", "2", "--listen", f"{HERE}:{port}")
        assert line == (
            f"Error: cannot listen on {HERE}:{port}: address already in use"
            " (another program listens there: stop it, or choose another address)"
        )

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("unix:missing/socket", "cannot listen on unix:missing/socket: no such file or directory (make the folder"),
            ("fd:99", "cannot listen on fd:99: bad file descriptor (nothing was handed over"),
            ("192.0.2.1:2525", "cannot listen on 192.0.2.1:2525: cannot assign requested address (no interface"),
            ("no.such.host.invalid:25", "cannot listen on no.such.host.invalid:25: "),
        ],
    )
    def test_addresses(self, failed: Any, address: str, message: str) -> None:
        assert message in failed("--workers", "2", "--listen", address)

    def test_a_target_that_no_worker_can_use(self, failed: Any, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        line = failed(*TWO, "--deliver", "maildir:file/box")
        assert line.startswith("Error: ")
        assert "file/box" in line

    def test_a_key_that_cannot_be_read(self, failed: Any) -> None:
        line = failed(*TWO, "--set", "key=missing.pem", "--set", "cert=missing.pem")
        assert line.startswith("Error: --set ")
        assert "missing.pem" in line

    def test_workers_that_die_before_they_are_ready(self, failed: Any) -> None:
        false = "import sys; from pillarbox.cli import main; sys.executable = '/bin/false'; main()"
        line = failed(*TWO, "--deliver", "discard:", command=[sys.executable, "-c", false], status=1)
        assert re.fullmatch(
            r"Error: worker \d \(pid \d+\) ended with status 1 before it was ready, as others did before it", line
        )

    @pytest.mark.parametrize("number", ["0", "many"])
    def test_a_number_that_is_none(self, failed: Any, number: str) -> None:
        assert failed("--workers", number).startswith('Error: --workers: must be a whole number above 0, or "auto"')
