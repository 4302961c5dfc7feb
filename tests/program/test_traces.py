"""Traces of the real program, taken by a real HTTP server that decodes what OTLP sends."""

from __future__ import annotations

import http.server
import smtplib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from program import WAIT, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")

MESSAGE = b"Subject: hello\r\n\r\nHello\r\n"


@dataclass
class Span:
    """What a span says."""

    name: str
    id: bytes
    parent: bytes
    trace: bytes
    kind: int
    begun: int
    ended: int
    failed: bool
    says: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]


@dataclass
class Collector:
    """What came: the spans, the resource that sent them, the fields of the requests."""

    url: str
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            self.resource |= facts(of_resource.resource.attributes)
            self.spans += [span(each) for scope in of_resource.scope_spans for each in scope.spans]

    def named(self, start: str) -> list[Span]:
        return [span for span in self.spans if span.name.startswith(start)]

    def one(self, start: str) -> Span:
        [found] = self.named(start)
        return found


def facts(attributes: Any) -> dict[str, Any]:
    return {each.key: value(each.value) for each in attributes}


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in any_value.array_value.values]
    return getattr(any_value, kind)


def span(sent: Any) -> Span:
    events = [(event.name, facts(event.attributes)) for event in sent.events]
    return Span(
        sent.name, sent.span_id, sent.parent_span_id, sent.trace_id, sent.kind, sent.start_time_unix_nano,
        sent.end_time_unix_nano, sent.status.code == 2, facts(sent.attributes), events,
    )  # fmt: skip


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.paths.add(self.path)
            found.fields.update(self.headers.items())
            found.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join(WAIT)


LOCAL = ("--listen", "127.0.0.1:0", "--deliver", "maildir:./Mail")


def test_a_message_is_a_span_in_its_session_and_its_deliveries_are_in_it(start: Start, collector: Collector) -> None:
    program = start(*LOCAL, "--deliver", "discard:", "--traces", collector.url)
    port = program.port()
    before = time.time_ns()
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        for _ in range(2):
            client.sendmail("secret-sender@example.org", ["secret-one@b.c", "secret-two@b.c"], MESSAGE)
    logged = [program.line("^message ")[0] and program.lines[-1] for _ in range(2)]
    assert program.end() == 0
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "pillarbox"

    session = collector.one("SMTP session")
    assert session.parent == b""
    assert session.kind == 2  # a server
    assert session.says["client.address"] == "127.0.0.1"
    assert session.says["server.port"] == port
    assert session.says["network.protocol.name"] == "smtp"
    assert session.says["network.transport"] == "tcp"
    assert session.says["tls.established"] is False
    assert session.says["smtp.authenticated"] is False
    assert session.says["smtp.transmission_type"] == "ESMTP"

    transactions = collector.named("SMTP transaction")
    assert [each.parent for each in transactions] == [session.id, session.id]
    for transaction, line in zip(transactions, logged, strict=True):
        assert f"id {transaction.says['smtp.transaction.id']}," in line
        assert transaction.says["smtp.outcome"] == "accepted"
        assert transaction.says["smtp.recipient.count"] == 2
        assert transaction.says["smtp.message.size"] == len(MESSAGE)
        assert transaction.says["smtp.response.status_code"] == 250
        assert before < session.begun <= transaction.begun <= transaction.ended <= session.ended < time.time_ns()

    deliveries = collector.named("deliver ")
    assert sorted(each.says["pillarbox.target"] for each in deliveries) == sorted(["discard:", "maildir:./Mail"] * 2)
    assert {each.parent for each in deliveries} == {each.id for each in transactions}
    assert {each.says["pillarbox.recipients.delivered"] for each in deliveries} == {2}
    by_id = {each.id: each for each in transactions}
    for delivery in deliveries:
        assert by_id[delivery.parent].begun <= delivery.begun + 2_000_000  # two clocks
        assert delivery.begun <= delivery.ended <= by_id[delivery.parent].ended
    assert len({each.trace for each in collector.spans}) == 1
    assert not any(each.failed for each in collector.spans)
    assert "secret" not in repr(collector.spans)


def test_people_are_named_where_that_is_asked_for(start: Start, collector: Collector) -> None:
    program = start(*LOCAL, "--accept", "*@b.c", "--traces", collector.url, "--trace-addresses")
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
        client.sendmail("sender@example.org", ["one@b.c", "else@where.example"], MESSAGE)
    program.end()
    transaction = collector.one("SMTP transaction")
    assert transaction.says["smtp.mail_from"] == "sender@example.org"
    assert transaction.says["smtp.rcpt_to"] == ["one@b.c"]
    refused = {"smtp.response.status_code": 550, "smtp.rcpt_to": "else@where.example"}
    assert transaction.events == [("RCPT refused", refused)]


def test_a_client_that_a_proxy_names_has_one_session(start: Start, collector: Collector) -> None:
    program = start(*LOCAL, "--traces", collector.url, "--set", "use_xclient=true")
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
        client.ehlo()
        client.docmd("MAIL FROM:<a@example.org>")
        client.rset()
        assert client.docmd("XCLIENT ADDR=192.0.2.7 PORT=1234")[0] == 220
        client.ehlo()
        client.sendmail("a@example.org", ["b@c.example"], MESSAGE)
    program.end()
    session = collector.one("SMTP session")
    assert (session.says["client.address"], session.says["client.port"]) == ("192.0.2.7", 1234)
    assert [each.parent for each in collector.named("SMTP transaction")] == [session.id, session.id]


def test_how_transactions_end(start: Start, collector: Collector, tmp_path: Any) -> None:
    program = start(*LOCAL, "--traces", collector.url)
    port = program.port()
    with smtplib.SMTP("127.0.0.1", port, timeout=WAIT) as client:
        client.ehlo()
        for end in ("RSET", "EHLO again"):
            client.docmd("MAIL FROM:<a@example.org>")
            client.docmd(end)
        (tmp_path / "Mail/tmp").rmdir()
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("a@example.org", ["b@b.c"], MESSAGE)
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client_that_goes:
        for line in (b"HELO x\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<a@b.c>\r\n", b"DATA\r\n", b""):
            client_that_goes.recv(4096)
            client_that_goes.sendall(line)
        client_that_goes.sendall(b"half")
    program.end()
    transactions = collector.named("SMTP transaction")
    assert [each.says["smtp.outcome"] for each in transactions] == ["reset", "reset", "deferred", "aborted"]
    assert [each.failed for each in transactions] == [False, False, True, False]
    assert transactions[2].says["smtp.response.status_code"] == 451
    assert collector.one("deliver maildir").failed
    assert [each.says.get("smtp.last_error_code") for each in collector.named("SMTP session")] == [451, None]


def test_tls_and_who_is_ignored(start: Start, collector: Collector) -> None:
    program = start(
        "--listen", "127.0.0.1:0", "--deliver", "discard:", "--traces", collector.url,
        "--set", 'ignored_hosts=["127.0.0.2"]',
    )  # fmt: skip
    port = program.port()
    with smtplib.SMTP("127.0.0.1", port, timeout=WAIT) as client:
        client.starttls()
        client.sendmail("a@example.org", ["b@b.c"], MESSAGE)
    with smtplib.SMTP("127.0.0.1", port, timeout=WAIT, source_address=("127.0.0.2", 0)) as client:
        client.sendmail("a@example.org", ["b@b.c"], MESSAGE)
    program.end()
    session = collector.one("SMTP session")
    assert session.says["tls.protocol.version"] == "1.3"
    assert session.says["smtp.transmission_type"] == "ESMTPS"
    assert session.events == [("TLS", {"tls.protocol.version": "1.3"})]
    assert len(collector.named("SMTP transaction")) == 1


def test_the_environment_of_opentelemetry(start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "inbound")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    program = start(*LOCAL, "--traces", "env:")
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
        client.sendmail("a@example.org", ["b@b.c"], MESSAGE)
    program.end()
    assert collector.resource["service.name"] == "inbound"
    assert collector.resource["deployment.environment"] == "test"
    assert collector.fields["x-key"] == "abc"
    assert collector.one("SMTP transaction").says["smtp.outcome"] == "accepted"


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_BSP_SCHEDULE_DELAY", "0"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1")]
)
def test_a_variable_that_is_wrong(start: Start, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    program = start(*LOCAL, "--traces", "http://127.0.0.1:4318")
    assert program.wait() == 2
    assert program.lines[0].startswith("Error: traces: a variable of OpenTelemetry (OTEL_…) has a value that cannot be")


def test_a_collector_that_is_not_there_harms_nobody(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # takes connections, and never answers
        program = start(*LOCAL, "--traces", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
            client.sendmail("a@example.org", ["b@b.c"], MESSAGE)
        assert program.end() == 0
        assert "closed" in program.lines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--traces", "127.0.0.1:4318"), "traces: write http://HOST:PORT"),
        (("--traces", "http://h"), "pillarbox[traces]"),
    ],
)
def test_what_is_wrong(start: Start, arguments: tuple[str, ...], says: str) -> None:
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from pillarbox.cli import main; main()"
    program = start(*LOCAL, *arguments, command=[sys.executable, "-c", code])
    assert program.wait() == 2
    assert says in "\n".join(program.lines)
