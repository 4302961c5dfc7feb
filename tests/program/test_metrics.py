"""The pages of the real program, got by a real HTTP client: metrics, health and readiness."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import smtplib
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed

from pillarbox import BoundSockets, Reject, Session, SMTPServer
from pillarbox.deliver import target_from_url
from pillarbox.program.fanout import Delivered
from pillarbox.program.metrics import Counted, History, Snapshots
from pillarbox.program.page import PROCESS, TABLE, page
from pillarbox.program.routes import Part, Route
from pillarbox.program.status import Status
from program import WAIT, Program, Start
from support import Client, Inbox, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")

Samples = dict[str, float]
LOCAL = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT)
        self.sock.connect(self._path)


def get(where: int | Path, path: str, **fields: str) -> tuple[int, str, str]:
    """Return status, content type and body."""
    connection = (
        http.client.HTTPConnection("127.0.0.1", where, timeout=WAIT)
        if isinstance(where, int)
        else _UnixConnection(where)
    )
    with closing(connection):
        connection.request("GET", path, headers=fields)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read().decode()


def samples(text: str) -> Samples:
    """Return what a page says, each under its name and its labels: ``name{a="b"}``."""
    return {_key(sample): sample.value for family in parsed(text) for sample in family.samples}


def _key(sample: Any) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()) if value)
    return f"{sample.name}{{{labels}}}" if labels else str(sample.name)


def metrics_of(port: int | Path) -> Samples:
    status, _, text = get(port, "/metrics")
    assert status == 200
    return samples(text)


def ports(program: Program) -> tuple[int, int]:
    """Return the port of the pages and that of the server."""
    return int(program.line(r"^metrics on 127\.0\.0\.1:(\d+)$")[1]), program.port()


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        client.sendmail("a@example.org", recipients or ("b@example.com",), b"Subject: hello\r\n\r\nHello\r\n")


class TestTheProgram:
    def test_a_message_is_on_the_page_with_its_delivery(self, start: Start) -> None:
        pages, port = ports(start(*LOCAL, "--deliver", "maildir:./Mail", "--deliver", "discard:"))
        before = metrics_of(pages)
        assert before['pillarbox_messages_total{outcome="accepted"}'] == 0
        assert before['pillarbox_deliveries_total{outcome="delivered",target="maildir:./Mail"}'] == 0
        send(port, "b@example.com", "c@example.com")
        found = metrics_of(pages)
        assert found['pillarbox_messages_total{outcome="accepted"}'] == 1
        assert found["pillarbox_message_bytes_total"] == 25
        assert found["pillarbox_recipients_total"] == 2
        assert found['pillarbox_commands_total{verb="RCPT"}'] == 2
        assert found['pillarbox_replies_total{code="354"}'] == 1
        assert found['pillarbox_message_duration_seconds_bucket{le="+Inf"}'] == 1
        assert found["pillarbox_message_duration_seconds_count"] == 1
        assert 0 < found["pillarbox_message_duration_seconds_sum"] < WAIT
        for target in ("maildir:./Mail", "discard:"):
            assert found[f'pillarbox_deliveries_total{{outcome="delivered",target="{target}"}}'] == 2
            assert found[f'pillarbox_delivery_duration_seconds_count{{target="{target}"}}'] == 1
        assert found["pillarbox_workers"] == 1
        assert any(name.startswith('pillarbox_build_info{python="3.') for name in found)
        if sys.platform == "linux":
            assert {f'{name}{{worker="1"}}' for name in PROCESS} <= set(found)

    def test_a_target_that_fails_is_seen(self, start: Start, tmp_path: Path) -> None:
        pages, port = ports(start(*LOCAL, "--deliver", "maildir:./Mail"))
        (tmp_path / "Mail/tmp").rmdir()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(port)
        assert refused.value.smtp_code == 451
        found = metrics_of(pages)
        assert found['pillarbox_deliveries_total{outcome="deferred",target="maildir:./Mail"}'] == 1
        assert found['pillarbox_messages_total{outcome="deferred"}'] == 1

    def test_no_client_makes_the_page_longer(self, start: Start) -> None:
        pages, port = ports(start(*LOCAL, "--deliver", "discard:", "--set", "max_errors=1000"))

        def misbehave(first: int) -> None:
            with smtplib.SMTP("127.0.0.1", port, timeout=WAIT) as client:
                client.ehlo()
                for number in range(first, first + 20):
                    assert client.docmd(f"X{number}")[0] == 500
                    assert client.docmd(f"AUTH X{number} abc")[0] >= 500
                    assert client.docmd(f"MAIL FROM:<a@b.c> X{number}=1")[0] == 555

        misbehave(0)
        before = metrics_of(pages)
        misbehave(100)
        found = metrics_of(pages)
        assert set(found) == set(before)
        assert found['pillarbox_commands_total{verb="unknown"}'] == 80  # AUTH too: there are no users
        assert found['pillarbox_refusals_total{kind="protocol",reason="unknown_command"}'] == 80

    def test_both_formats_and_what_is_no_page(self, start: Start) -> None:
        pages, _ = ports(start(*LOCAL, "--deliver", "discard:"))
        assert get(pages, "/metrics")[1].startswith("text/plain; version=")
        _, kind, text = get(pages, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text; version=1.0.0")
        families = {family.name for family in openmetrics(text)}  # type: ignore[no-untyped-call]
        assert {entry.name.removesuffix("_total") for entry in TABLE} <= families
        assert get(pages, "/metrics", Accept="application/openmetrics-text; version=x")[0] == 200
        assert get(pages, "/")[0] == 404
        connection = http.client.HTTPConnection("127.0.0.1", pages, timeout=WAIT)
        with closing(connection):
            connection.request("POST", "/metrics", body=b"x")
            assert connection.getresponse().status == 405

    def test_what_is_no_http_leaves_no_traceback(self, start: Start) -> None:
        program = start(*LOCAL)
        metrics, _ = ports(program)
        for rubbish in (b"GET /\0\xff HTTP/9.9\r\n\x1b\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", metrics), timeout=WAIT) as client:
                client.sendall(rubbish)
                assert b" 400 " in client.recv(1000)
        assert program.end() == 0
        assert not [line for line in program.lines if line.startswith(("error", "Traceback", " "))]

    def test_readiness_ends_with_the_signal_and_health_does_not(self, start: Start) -> None:
        program = start(*LOCAL, "--deliver", "discard:")
        pages, port = ports(program)
        assert get(pages, "/readyz")[::2] == (200, "ready\n")
        client = smtplib.SMTP("127.0.0.1", port, timeout=WAIT)
        client.ehlo()
        assert client.docmd("MAIL FROM:<a@example.org>")[0] == 250
        assert client.docmd("RCPT TO:<b@example.com>")[0] == 250
        program.process.terminate()
        program.line("^SIGTERM: closing")
        assert get(pages, "/readyz")[::2] == (503, "not ready: closing\n")
        assert get(pages, "/healthz")[::2] == (200, "ok\n")
        assert metrics_of(pages)["pillarbox_running_transactions"] == 1
        assert client.data(b"Subject: the last\r\n\r\n")[0] == 250
        client.close()
        assert program.wait() == 0
        assert "closed" in program.lines

    def test_a_unix_socket_is_gone_afterwards(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0", "--deliver", "discard:", "--metrics", "unix:pages")
        program.line("^metrics on unix:pages$")
        program.port()
        assert get(tmp_path / "pages", "/readyz")[0] == 200
        assert program.end() == 0
        assert not (tmp_path / "pages").exists()

    def test_the_file_says_where_too(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text('[program]\nmetrics = "127.0.0.1:0"\n[[deliver]]\nurl = "discard:"\n')
        pages, _ = ports(start("--config", "c.toml", "--listen", "127.0.0.1:0"))
        assert get(pages, "/healthz")[0] == 200


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no workers here")
class TestWorkers:
    def test_one_page_for_all_and_no_counter_falls(self, start: Start) -> None:
        program = start(*LOCAL, "--deliver", "discard:", "--workers", "2")
        pages = int(program.line(r"^metrics on 127\.0\.0\.1:(\d+)$")[1])
        workers = [int(pid) for pid in re.findall(r"\(pid (\d+)\)", program.line(r"^2 workers: .*").string)]
        port = program.port()
        assert get(pages, "/readyz")[0] == 200
        clients = [smtplib.SMTP("127.0.0.1", port, timeout=WAIT) for _ in range(8)]
        for client in clients:
            client.sendmail("a@example.org", ["b@example.com"], b"Subject: hello\r\n\r\n")
        before = metrics_of(pages)
        assert before["pillarbox_workers"] == 2
        assert before["pillarbox_open_connections"] == 8
        assert before['pillarbox_messages_total{outcome="accepted"}'] == 8
        assert before['pillarbox_deliveries_total{outcome="delivered",target="discard:"}'] == 8
        if sys.platform == "linux":
            assert {'process_open_fds{worker="1"}', 'process_open_fds{worker="2"}'} <= set(before)
        os.kill(workers[0], signal.SIGKILL)
        program.line("worker 1 .* is ready")
        after = metrics_of(pages)
        assert after["pillarbox_workers"] == 2
        assert after['pillarbox_messages_total{outcome="accepted"}'] == 8
        assert [
            name
            for name in before
            if name.startswith("pillarbox_")
            and name.partition("{")[0].endswith(("_total", "_count", "_bucket", "_sum"))
            and after[name] < before[name]
        ] == []
        for client in clients:
            client.close()
        assert program.end() == 0

    def test_what_a_worker_counted_that_ends_by_itself_is_known_to_the_last(self, start: Start) -> None:
        program = start(*LOCAL, "--deliver", "discard:", "--workers", "2")
        pages = int(program.line(r"^metrics on 127\.0\.0\.1:(\d+)$")[1])
        workers = re.findall(r"\(pid (\d+)\)", program.line(r"^2 workers: .*").string)
        port = program.port()
        for _ in range(3):
            send(port)
        for pid in workers:
            os.kill(int(pid), signal.SIGTERM)
            program.line("worker . .* is ready")
        assert metrics_of(pages)['pillarbox_messages_total{outcome="accepted"}'] == 3


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("address", "says"),
        [
            ("9099", r"metrics: '9099' is no address: write host:port"),
            ("127.0.0.1:70000", r"metrics: .*no port from 0 to 65535"),
            ("192.0.2.7:0", r"metrics: cannot listen on 192\.0\.2\.7:0: .*no interface of this host"),
        ],
    )
    def test_an_address(self, start: Start, address: str, says: str) -> None:
        program = start("--listen", "127.0.0.1:0", "--metrics", address)
        assert program.wait() == 2
        [line] = [line for line in program.lines if line]
        assert re.search(says, line)

    def test_an_address_that_is_taken(self, start: Start) -> None:
        first = start(*LOCAL, "--deliver", "discard:")
        pages, _ = ports(first)
        second = start("--listen", "127.0.0.1:0", "--deliver", "discard:", "--metrics", f"127.0.0.1:{pages}")
        assert second.wait() == 2
        assert any("another program listens there" in line for line in second.lines)

    def test_a_unix_socket_that_is_served(self, start: Start, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "pages"))
            other.listen()
            program = start("--listen", "127.0.0.1:0", "--deliver", "discard:", "--metrics", "unix:pages")
            assert program.wait() == 2
            assert any("another program listens there" in line for line in program.lines)

    @pytest.mark.parametrize("module", ["prometheus_client", "aiohttp"])
    def test_the_extra_is_missing(self, start: Start, module: str) -> None:
        code = f"import sys; sys.modules['{module}'] = None; from pillarbox.cli import main; main()"
        program = start(*LOCAL, command=[sys.executable, "-c", code])
        assert program.wait() == 2
        assert any("pip install 'pillarbox[metrics]'" in line for line in program.lines)


def test_without_metrics_and_traces_nothing_of_them_is_imported(start: Start) -> None:
    code = (
        "import atexit, sys; from pillarbox.cli import main;"
        "atexit.register(lambda: print('loaded:', *sys.modules, file=sys.stderr)); main()"
    )
    program = start("--listen", "127.0.0.1:0", "--deliver", "discard:", command=[sys.executable, "-c", code])
    send(program.port())
    program.end()
    [line] = [line for line in program.lines if line.startswith("loaded:")]
    assert not {"prometheus_client", "aiohttp", "opentelemetry", "requests"} & set(line.split())


# --- Several processes


async def test_before_it_listens_it_is_not_ready() -> None:
    async def nothing() -> Snapshots:
        return Snapshots({})

    why_not = ["starting"]
    status = Status(nothing, lambda: why_not[0])
    sockets = await BoundSockets.bind(0, "127.0.0.1")
    await status.start(sockets)
    try:
        bound = sockets.addresses[0]
        assert isinstance(bound, tuple)
        assert await _get(bound, "/readyz") == (503, "not ready: starting\n")
        assert "pillarbox_workers 0.0" in (await _get(bound, "/metrics"))[1]
        why_not[0] = ""
        assert await _get(bound, "/readyz") == (200, "ready\n")
    finally:
        await status.close()
        sockets.close()


async def _get(bound: tuple[str, int], path: str) -> tuple[int, str]:
    from aiohttp import ClientSession

    async with ClientSession() as session, session.get(f"http://{bound[0]}:{bound[1]}{path}") as response:
        return response.status, await response.text()


def delivered(answers: tuple[str | Reject, ...], url: str = "discard:") -> Delivered:
    return Delivered(Part(Route(target_from_url(url)), ()), answers, 0.5)


async def served(messages: int) -> dict[str, Any]:
    """Return the snapshot of a process that has taken so many messages and has a client."""
    async with serving(on_data=Inbox()) as server:
        counted = Counted(server.server.statistics, ["discard:"])
        client: Client = await server.hello()
        for _ in range(messages):
            await client.deliver()
            counted.deliveries.note(delivered(("discard:", Reject(550))), Session())
        return counted.snapshot()


def shown(snapshots: Snapshots) -> Samples:
    return samples(page(snapshots, "")[0].decode())


async def test_who_does_not_take_answers_keeps_nothing_from_ending() -> None:
    asked, before = 0, -1

    async def collect() -> Snapshots:
        nonlocal asked
        asked += 1
        return Snapshots({})

    status = Status(collect, str)
    with await BoundSockets.bind(0, "127.0.0.1") as bound, socket.socket() as client:
        await status.start(bound)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(bound.addresses[0])
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)  # whose answers no buffer holds
        while asked != before:
            before = asked
            await asyncio.sleep(0.1)
        async with asyncio.timeout(WAIT):
            await status.close()
    assert 0 < asked < 5000


async def test_one_page_tells_of_all_workers() -> None:
    found = shown(Snapshots({"0": await served(1), "1": await served(2)}))
    assert found["pillarbox_workers"] == 2
    assert found["pillarbox_open_connections"] == 2
    assert found['pillarbox_messages_total{outcome="accepted"}'] == 3
    assert found["pillarbox_message_duration_seconds_count"] == 3
    assert found['pillarbox_deliveries_total{outcome="delivered",target="discard:"}'] == 3
    assert found['pillarbox_deliveries_total{outcome="refused",target="discard:"}'] == 3
    assert found['pillarbox_delivery_duration_seconds_sum{target="discard:"}'] == 1.5
    if sys.platform == "linux":
        assert {'process_open_fds{worker="0"}', 'process_open_fds{worker="1"}'} <= set(found)


async def test_no_counter_falls_when_a_worker_is_replaced() -> None:
    history = History()
    for worker, messages in (("0", 1), ("1", 2)):
        history.note(worker, await served(messages))
    before = shown(history.snapshots())
    history.end("1")
    history.end("0")
    history.end("7")  # nobody has asked it
    after = shown(history.snapshots())
    history.note("1", await served(4))
    at_last = shown(history.snapshots())
    for name, value in before.items():
        if not name.startswith(("process_", "pillarbox_open", "pillarbox_running", "pillarbox_workers")):
            assert value == after[name] <= at_last[name]
    assert "pillarbox_open_connections" not in after  # there is nobody to have any
    assert at_last["pillarbox_open_connections"] == 1
    assert at_last['pillarbox_messages_total{outcome="accepted"}'] == 7


def test_the_names_are_as_prometheus_wants_them() -> None:
    for entry in TABLE:
        assert re.fullmatch(r"pillarbox_[a-z_]+", entry.name)
        assert entry.name.endswith("_total") == (entry.kind == "counter")
        assert entry.name.endswith("_seconds") == (entry.kind == "histogram")
        assert entry.help.endswith(".")
    assert len({entry.name for entry in TABLE}) == len(TABLE)


def test_every_number_of_the_server_is_on_the_page() -> None:
    shown = {entry.place[1] for entry in TABLE if entry.place[0] == "server"}
    assert shown == set(SMTPServer().statistics.snapshot())
