"""The program before real servers: Dovecot stores mail, Postfix and a smarthost send it on, smtp-sink misbehaves."""

from __future__ import annotations

import os
import smtplib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import Authority
from interop.fronts import Backend
from interop.peers import (
    BIG,
    HOST,
    NOBODY,
    PASSWORD,
    RECIPIENT,
    SENDER,
    SIMPLE,
    TRICKY,
    USER,
    Background,
    program,
)
from interop.postfix import Start
from interop.test_dovecot import dovecot
from messages import message
from pillarbox import Reject
from pillarbox.deliver import target_from_url
from program import LINES, MODULE

Edge = Callable[..., smtplib.SMTP]
Started = Callable[..., Background]

LMTP, SMARTHOST = "to Dovecot LMTP", "to Dovecot submission"
MTA, SINK = "to Postfix smtpd", "to smtp-sink"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Started]:
    """What starts the program as an edge: the URL of the next server, and lines of its ``[[deliver]]``."""
    with ExitStack() as stack:

        def started(url: str, *settings: str, listen: str = "") -> Background:
            lines = ["[[listen]]", f'address = "{HOST}:0"', listen, "[[deliver]]", f'url = "{url}"', *settings]
            (tmp_path / "edge.toml").write_text("\n".join(lines))
            command = [*MODULE, "serve", *LINES, "--config", str(tmp_path / "edge.toml")]
            return stack.enter_context(Background(*command, folder=tmp_path))

        yield started


@pytest.fixture
def edge(serve: Started) -> Iterator[Edge]:
    """What starts it, and connects a client."""
    with ExitStack() as stack:

        def started(url: str, *settings: str) -> smtplib.SMTP:
            port = serve(url, *settings).port()
            return stack.enter_context(smtplib.SMTP(HOST, port, local_hostname="client.example.org", timeout=30))

        yield started


def send(client: smtplib.SMTP, *recipients: str, content: bytes = SIMPLE, **more: Any) -> dict[str, Any]:
    return client.sendmail(SENDER, list(recipients or (RECIPIENT,)), content, **more)


# --- Dovecot stores it

_QUOTA = """
protocol lmtp {
    mail_plugins = quota
}
plugin {
    quota = maildir:User quota
    quota_rule = *:bytes=100000
}
"""


def mailbox(mail: Path, user: str = RECIPIENT) -> list[bytes]:
    return [file.read_bytes() for file in (mail / user / "new").glob("*")]


@pytest.mark.proves(LMTP, "a message is stored as it came")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
def test_dovecot_lmtp(edge: Edge, content: bytes) -> None:
    with dovecot() as there:
        client = edge(f"lmtp://{HOST}:{there.lmtp}")
        assert send(client, RECIPIENT, "bob@example.com", content=content, mail_options=["BODY=8BITMIME"]) == {}
        for user in (RECIPIENT, "bob@example.com"):
            [stored] = mailbox(there.mail, user)
            head, _, _ = stored.partition(b"\nSubject: ")
            assert stored.endswith(content.replace(b"\r\n", b"\n"))
            assert head.count(b"Return-Path: <sender@example.org>") == 1
            assert b" (pillarbox) with ESMTP id " in head


@pytest.mark.proves(LMTP, "a Unix socket")
def test_dovecot_lmtp_by_a_unix_socket(edge: Edge, tmp_path: Path) -> None:
    socket = Path("lmtp-of-the-test")
    lines = f"service lmtp {{\n unix_listener {socket} {{\n mode = 0666\n }}\n}}"
    with dovecot(lines) as there:
        client = edge(f"lmtp:{there.mail.parent}/run/{socket}")
        assert send(client) == {}
        assert len(mailbox(there.mail)) == 1


@pytest.mark.proves(LMTP, "an unknown recipient is refused at RCPT")
def test_dovecot_knows_a_recipient_or_not(edge: Edge, tmp_path: Path) -> None:
    with dovecot(known=[RECIPIENT]) as there:
        client = edge(f"lmtp://{HOST}:{there.lmtp}")
        refused = send(client, NOBODY, RECIPIENT)
        code, text = refused[NOBODY]
        assert (list(refused), code) == ([NOBODY], 550)
        assert b"User doesn't exist" in text
        assert len(mailbox(there.mail)) == 1


@pytest.mark.proves(LMTP, "a reply for each recipient: one over quota")
def test_a_mailbox_that_is_full_and_one_that_is_not(serve: Started) -> None:
    with dovecot(_QUOTA) as there:
        port = serve(f"lmtp://{HOST}:{there.lmtp}", listen="lmtp = true").port()
        with smtplib.LMTP(HOST, port, local_hostname="client.example.org") as client:
            client.sendmail(SENDER, [RECIPIENT], SIMPLE + b"x" * 90_000 + b"\r\n")
            assert client.mail(SENDER)[0] == 250
            assert [client.rcpt(recipient)[0] for recipient in (RECIPIENT, "bob@example.com")] == [250, 250]
            first, second = client.data(SIMPLE + b"x" * 20_000 + b"\r\n"), client.getreply()
            assert (first[0], second[0]) == (552, 250)
            assert b"Quota exceeded" in first[1]
        assert [len(mailbox(there.mail, user)) for user in (RECIPIENT, "bob@example.com")] == [1, 1]


@pytest.mark.proves(LMTP, "a client that vanishes leaves nothing there")
def test_a_client_that_vanishes_leaves_nothing_in_dovecot(serve: Started) -> None:
    with dovecot() as there:
        port = serve(f"lmtp://{HOST}:{there.lmtp}").port()
        with smtplib.SMTP(HOST, port, local_hostname="client.example.org", timeout=30) as client:
            client.ehlo()
            client.mail(SENDER)
            client.rcpt(RECIPIENT)
            client.docmd("DATA")
            client.send(BIG)
            client.close()
        with smtplib.SMTP(HOST, port, local_hostname="client.example.org", timeout=30) as client:
            send(client)
        assert [len(stored) < 10_000 for stored in mailbox(there.mail)] == [True]


# --- A smarthost: Dovecot's submission service, with TLS and a login


@contextmanager
def smarthost(backend: Backend, authority: Authority) -> Iterator[int]:
    own = {
        name: b"".join(value) if isinstance(value := authority.options[name], list) else value
        for name in ("key", "cert")
    }
    lines = [
        "auth_failure_delay = 0 secs",
        f"submission_relay_host = {HOST}",
        f"submission_relay_port = {backend.port}",
    ]
    with dovecot(*lines, certified=own) as there:
        yield there.submission


@pytest.mark.proves(SMARTHOST, "STARTTLS with a verified certificate, and AUTH")
def test_a_smarthost(behind: Callable[..., Backend], authority: Authority, edge: Edge, tmp_path: Path) -> None:
    backend = behind()
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with smarthost(backend, authority) as port:
        login = (f'username = "{USER}"', f'password_file = "{tmp_path}/password"')
        tls = ('tls = "required"', f'ca = "{authority.file}"')
        assert send(edge(f"smtp://localhost:{port}", *login, *tls), content=TRICKY) == {}
    assert backend.delivery.content.endswith(TRICKY)
    assert backend.delivery.content.count(b"Received: ") == 2


@pytest.mark.proves(SMARTHOST, "a login or a certificate that is refused is 451")
@pytest.mark.parametrize("wrong", ["password", "authority"])
def test_a_smarthost_that_does_not_let_us_in(
    behind: Callable[..., Backend], authority: Authority, serve: Started, wrong: str
) -> None:
    backend = behind()
    with smarthost(backend, authority) as port:
        password = "wrong-secret" if wrong == "password" else PASSWORD
        ca = authority.file if wrong == "password" else authority.stranger
        login = (f'username = "{USER}"', f'password = "{password}"', 'tls = "required"', f'ca = "{ca}"')
        running = serve(f"smtp://localhost:{port}", *login)
        client = smtplib.SMTP(HOST, running.port(), local_hostname="client.example.org", timeout=30)
        with client, pytest.raises(smtplib.SMTPDataError) as refused:
            send(client)
        assert refused.value.smtp_code == 451
        assert str(port) not in str(refused.value.smtp_error)
        said = running.line("error: .*")[0]
        assert ("refuses the login: 535" if wrong == "password" else "certificate verify failed") in said
        assert "secret" not in said
    assert not backend.deliveries


# --- Postfix sends it on


@pytest.mark.proves(MTA, "8BITMIME", "a refused recipient")
def test_postfix(relay: Start, edge: Edge) -> None:
    behind = relay(smtpd_recipient_restrictions="check_recipient_access inline:{full@example.com=REJECT}")
    client = edge(f"smtp:{behind.postfix.path}", "verify = true")
    refused = send(client, RECIPIENT, "full@example.com", content=TRICKY, mail_options=["BODY=8BITMIME"])
    assert list(refused) == ["full@example.com"]
    code, text = refused["full@example.com"]
    assert (code, text) == (554, b"<full@example.com>: Recipient address rejected: Access denied")
    mail = behind.server.next()
    assert (mail.mail_from, mail.rcpt_to) == (SENDER, (RECIPIENT,))
    assert mail.content.endswith(TRICKY)
    assert mail.body_type == "8bitmime"


@pytest.mark.proves(MTA, "many messages in one connection")
def test_postfix_big_and_many(relay: Start, edge: Edge) -> None:
    behind = relay()
    client = edge(f"smtp:{behind.postfix.path}")
    send(client, content=BIG)
    assert behind.server.next().content.endswith(BIG)
    for number in range(20):
        send(client, f"user{number}@example.com")
    assert {behind.server.next().rcpt_to[0] for _ in range(20)} == {f"user{number}@example.com" for number in range(20)}
    connects = [line for line in behind.postfix.log.lines() if "smtpd[" in line and ": connect from" in line]
    assert len(connects) == 1


@pytest.mark.proves(MTA, "refusals hold where it has enough of them (421)")
def test_postfix_that_ends_a_connection_with_many_errors(relay: Start, serve: Started) -> None:
    reject = "check_recipient_access regexp:{{/^nobody/ REJECT}}"
    behind = relay(smtpd_recipient_restrictions=reject, smtpd_hard_error_limit=3, smtpd_error_sleep_time=0)
    port = serve(f"smtp:{behind.postfix.path}", listen="lmtp = true").port()
    wanted = [RECIPIENT, *(f"nobody{number}@example.com" for number in range(5))]
    refused = 0
    with smtplib.LMTP(HOST, port, local_hostname="client.example.org", timeout=30) as client:
        client.ehlo()
        while wanted:  # as a mail server with a queue, which comes again with those that are left
            client.mail(SENDER)
            assert [client.rcpt(each)[0] for each in wanted] == [250] * len(wanted)
            first = client.data(SIMPLE)[0]
            codes = [first, *(client.getreply()[0] for _ in wanted[1:])]
            refused += codes.count(554)
            left = [each for each, code in zip(wanted, codes, strict=True) if code == 451]
            assert len(left) < len(wanted), "nothing would ever come of it"
            wanted = left
    assert refused == 5
    assert behind.server.next().rcpt_to == (RECIPIENT,)


# --- smtp-sink misbehaves


@contextmanager
def sink(*options: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pb") as folder:  # a Unix socket's path must be short
        path = Path(folder, "sink")
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [program("smtp-sink", "postfix"), *user, *options, f"unix:{path}", "10"]
        with Background(*command, folder=Path(folder)):
            deadline = time.monotonic() + 30
            while not path.exists():
                assert time.monotonic() < deadline, "smtp-sink does not listen"
                time.sleep(0.01)
            yield f"{'lmtp' if '-L' in options else 'smtp'}:{path}"


LOST = "451 4.4.2 "
UNREACHABLE = "451 4.4.1 "


async def handed_on(url: str, *contents: bytes) -> list[str]:
    """Hand messages on, one after the other, without a program around it; return the answers."""
    target = target_from_url(url, {"name": "edge.example.org"})
    await target.start()
    answers: list[str] = []
    for content in contents:
        try:
            answers += map(str, await target.deliver(message(content)))
        except Reject as refusal:
            answers.append(str(refusal))
    await target.close()
    return answers


@pytest.mark.proves(SINK, "whatever it does wrong ends with the right reply")
@pytest.mark.parametrize(
    ("options", "heard"),
    [
        (("-q", "connect"), UNREACHABLE),
        (("-q", "ehlo"), UNREACHABLE),
        (("-q", "mail"), LOST),
        (("-q", "rcpt"), LOST),
        (("-q", "data"), LOST),
        (("-q", "."), LOST),
        (("-Q", "rcpt"), LOST),
        (("-r", "rcpt"), "450 4.3.0 Error: command failed"),
        (("-f", "mail"), "500 5.3.0 Error: command failed"),
        (("-f", "."), "500 5.3.0 Error: command failed"),
        (("-B", "554 5.7.1 Not this", "-f", "."), "554 5.7.1 Not this"),
        (("-A", "0"), "550 This violates SMTP"),
    ],
    ids=str,
)
async def test_what_smtp_sink_does_wrong(options: tuple[str, ...], heard: str) -> None:
    with sink(*options) as url:
        answers = await handed_on(url, SIMPLE, BIG, SIMPLE)
        assert [answer[: len(heard)] for answer in answers] == [heard] * 3


@pytest.mark.proves(SINK, "extensions that it lacks")
@pytest.mark.parametrize("options", [("-e",), ("-p",), ("-8",), ("-L",), ("-P",)], ids=" ".join)
async def test_what_smtp_sink_lacks(options: tuple[str, ...]) -> None:
    with sink(*options) as url:
        ok = "2.2.0" if options == ("-L",) else "2.0.0"
        assert await handed_on(url, SIMPLE, BIG, SIMPLE) == [f"{url} (250 {ok} Ok)"] * 3
