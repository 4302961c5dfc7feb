"""Postfix's smtp-source: many sessions at once, SMTP and LMTP, over TCP and Unix sockets."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from interop.peers import BIG, HOST, NOBODY, RECIPIENT, SENDER, TRICKY, Outcome, Server, program, run

shows = partial(pytest.mark.proves, "smtp-source")
PROTOCOLS = [pytest.param("SMTP", marks=shows("HELO")), pytest.param("LMTP", marks=shows("LMTP"))]
NETWORKS = ["tcp", pytest.param("unix", marks=shows("a Unix socket"))]


def deliver(server: Server, protocol: str, network: str, *more: str | Path, to: str = RECIPIENT) -> Outcome:
    smtp_source = program("smtp-source", "postfix")
    lmtp = protocol == "LMTP"
    port, path = (server.lmtp_port, server.lmtp_path) if lmtp else (server.port, server.path)
    place = f"{HOST}:{port}" if network == "tcp" else f"unix:{path}"
    mode = ["-L"] if lmtp else []
    names = ("-M", "client.example.org", "-f", SENDER, "-t", to)
    return run([smtp_source, *mode, *names, *more, place])


def expected_type(protocol: str) -> str:
    return "LMTP" if protocol == "LMTP" else "SMTP"  # it says HELO, never EHLO


@pytest.mark.proves("smtp-source", "8-bit text with dots and long lines unchanged")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_message_arrives_as_it_was_sent(
    server: Server, tmp_path: Path, protocol: str, network: str, content: bytes
) -> None:
    file = tmp_path / "message"
    file.write_bytes(content.replace(b"\r\n", b"\n"))
    deliver(server, protocol, network, "-F", file).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT,))
    assert delivery.content == content + b"\r\n"  # of its own: it ends the file as if it were a line
    assert delivery.transmission_type == expected_type(protocol)


@pytest.mark.proves("smtp-source", "many connections at once", "many messages over one connection")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("reuse", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_many_sessions_and_messages(server: Server, protocol: str, network: str, reuse: tuple[str, ...]) -> None:
    outcome = deliver(server, protocol, network, "-s", "20", "-m", "300", "-l", "3000", "-N", "-c", *reuse)
    outcome.expect_success()
    assert outcome.output.rstrip().endswith("300")  # its running counter
    recipients = [delivery.rcpt_to[0] for delivery in server.deliveries]
    assert len(recipients) == len(set(recipients)) == 300
    assert {delivery.transmission_type for delivery in server.deliveries} == {expected_type(protocol)}
    assert all(len(delivery.content) > 3000 for delivery in server.deliveries)


@pytest.mark.proves("smtp-source", "several recipients")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_several_recipients(server: Server, protocol: str) -> None:
    deliver(server, protocol, "tcp", "-r", "5", "-m", "3").expect_success()
    assert [len(set(delivery.rcpt_to)) for delivery in server.deliveries] == [5, 5, 5]


@pytest.mark.proves("smtp-source", "2 MB")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_big_messages(server: Server, protocol: str, network: str) -> None:
    deliver(server, protocol, network, "-s", "4", "-m", "8", "-l", "2000000").expect_success()
    bodies = [delivery.content.partition(b"\r\n\r\n")[2] for delivery in server.deliveries]
    assert len(bodies) == 8
    assert len(set(bodies)) == 1
    assert len(bodies[0]) >= 2_000_000
    assert re.fullmatch(rb"(?:[0-9]?X+\r\n)+", bodies[0])


@pytest.mark.proves("smtp-source", "a refused recipient")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refused_recipient_is_reported(server: Server, protocol: str) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    deliver(server, protocol, "tcp", to=NOBODY).expect_failure("550 No such user here")
    assert server.deliveries == []


@pytest.mark.proves("smtp-source", "a reply for each recipient")
def test_a_message_refused_for_its_recipient_after_the_data(server: Server) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    deliver(server, "LMTP", "tcp", to="full@example.com").expect_failure("452 Mailbox full")


@pytest.mark.proves("smtp-source", "a refused recipient")
def test_it_goes_on_after_refusals_where_told_to(server: Server) -> None:
    deliver(server, "SMTP", "tcp", "-A", "-m", "5", "-s", "2", to=NOBODY).expect_success()
    assert server.deliveries == []
