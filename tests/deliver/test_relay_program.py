"""The program as an edge: what arrives behind it, what its clients hear, and how a loop ends."""

from __future__ import annotations

import re
import smtplib
import socket
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

from program import Program, Start

WAIT = 20.0
CONTENT = b"Subject: a test\r\n\r\n.\r\nHello.\r\n"


# The next server: it stores mail for three users, and knows nobody else.
INSIDE = """
    [[listen]]
    address = "unix:smtp"
    name = "inside.example.com"
    accept = ["ann@example.com", "bob@example.com", "full@example.com"]
    [[listen]]
    address = "unix:lmtp"
    lmtp = true
    name = "inside.example.com"
    accept = ["ann@example.com", "bob@example.com", "full@example.com"]
    [[deliver]]
    url = "maildir:mail"
    recipients = ["*", "!full@*"]
    listeners = ["unix:smtp", "unix:lmtp"]
    [[deliver]]
    url = "smtp:nobody-listens-here"
    recipients = ["full@*"]
    listeners = ["unix:smtp", "unix:lmtp"]
"""
# The server before it.
EDGE = """
    [[listen]]
    address = "127.0.0.1:0"
    name = "edge.example.com"
    [[listen]]
    address = "unix:edge-lmtp"
    lmtp = true
    name = "edge.example.com"
    [[deliver]]
    listeners = ["127.0.0.1:0", "unix:edge-lmtp"]
"""
CODES = """
    [server]
    hide_enhanced_status_codes = false
"""


@pytest.fixture
def edge(start: Start, tmp_path: Path) -> Callable[..., Program]:
    """What starts the program: as an edge, and behind its own Unix sockets as the next server."""

    def started(url: str, *settings: str, inside: str = INSIDE) -> Program:
        lines = "\n".join([CODES, inside, EDGE, f'url = "{url}"', *settings])
        (tmp_path / "edge.toml").write_text(lines)
        program = start("--config", "edge.toml")
        program.line("listening on .*edge-lmtp")
        return program

    return started


class Client(smtplib.SMTP):
    """smtplib, also by a Unix socket and in LMTP."""

    def __init__(self, address: str | int, *, lmtp: bool = False) -> None:
        self._address = address
        super().__init__("127.0.0.1", 1, local_hostname="client.example.org", timeout=WAIT)
        if lmtp:
            self.ehlo_msg = "lhlo"
        self.ehlo()

    def _get_socket(self, *_: object) -> socket.socket:
        if isinstance(self._address, int):
            return socket.create_connection(("127.0.0.1", self._address), WAIT)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(WAIT)
        connection.connect(self._address)
        return connection


def port_of(program: Program) -> int:
    return int(next(match[1] for line in program.lines if (match := re.search(r":(\d+)$", line))))


def stored(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "mail/new").iterdir()]


@pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
def test_a_message_arrives(edge: Callable[..., Program], tmp_path: Path, scheme: str) -> None:
    program = edge(f"{scheme}:{scheme}")
    with Client(port_of(program)) as client:
        assert client.sendmail("a@example.org", ["ann@example.com", "bob@example.com"], CONTENT) == {}
    [content] = stored(tmp_path)
    message = message_from_bytes(content)
    assert content.endswith(CONTENT.replace(b"\r\n", b"\n"))
    assert message.get_all("Return-Path") == ["<a@example.org>"], "from where the mailbox is alone"
    hops = [re.sub(r"\s+", " ", hop) for hop in message.get_all("Received", [])]
    kinds = {"smtp": "ESMTP", "lmtp": "LMTP"}
    assert [re.findall(r"by (\S+) \(pillarbox\) with (\S+)", hop) for hop in hops] == [
        [("inside.example.com", kinds[scheme])],
        [("edge.example.com", "ESMTP")],
    ]
    program.line(rf"message from <a@example.org> to .*, in {scheme}:{scheme} \(250 2\.6\.0 OK: message ")


def test_smtputf8_that_only_our_own_field_would_need(edge: Callable[..., Program], tmp_path: Path) -> None:
    """The domain goes on in its ASCII form; a Received field that names it in UTF-8 would have the message refused."""
    inside = INSIDE.replace("ann@example.com", "ann@bücher.example")
    inside = inside.replace("[[listen]]", "[[listen]]\nhide_smtputf8 = true")
    program = edge("smtp:smtp", inside=inside)
    with Client(port_of(program)) as client:
        client.mail("a@example.org", ["SMTPUTF8"])
        client.send("RCPT TO:<ann@bücher.example>\r\n".encode())
        assert client.getreply()[0] == 250
        assert client.data(CONTENT)[0] == 250
    [content] = stored(tmp_path)
    assert content.isascii()


def test_nobody_is_told_at_rcpt(edge: Callable[..., Program]) -> None:
    with Client(port_of(edge("lmtp:lmtp"))) as client:
        assert client.mail("a@example.org")[0] == 250
        assert client.rcpt("ann@example.com")[0] == 250
        code, text = client.rcpt("nobody@example.com")
        assert (code, text[:6]) == (550, b"5.7.1 ")
        assert client.data(CONTENT)[0] == 250


def test_without_verify_all_or_none(edge: Callable[..., Program], tmp_path: Path) -> None:
    with Client(port_of(edge("lmtp:lmtp", "verify = false"))) as client:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("a@example.org", ["ann@example.com", "nobody@example.com"], CONTENT)
        assert refused.value.smtp_code == 550
        assert "5.7.1 <nobody@example.com>: " in str(refused.value.smtp_error)
    assert not stored(tmp_path)


def test_in_lmtp_each_has_its_reply(edge: Callable[..., Program], tmp_path: Path) -> None:
    edge("lmtp:lmtp", "verify = false")
    with Client(str(tmp_path / "edge-lmtp"), lmtp=True) as client:
        assert client.mail("a@example.org")[0] == 250
        for recipient in ("full@example.com", "nobody@example.com", "bob@example.com"):
            assert client.rcpt(recipient)[0] == 250
        answers = [client.data(CONTENT), client.getreply(), client.getreply()]
        assert [(code, text[:6]) for code, text in answers] == [(451, b"4.4.1 "), (550, b"5.7.1 "), (250, b"2.6.0 ")]
    assert len(stored(tmp_path)) == 1


def test_a_next_server_that_is_gone_and_comes_back(edge: Callable[..., Program], start: Start, tmp_path: Path) -> None:
    (tmp_path / "inside.toml").write_text(CODES + INSIDE)
    inside = start("--config", "inside.toml")
    inside.line("listening on .*lmtp")
    with Client(port_of(edge("smtp:smtp", inside=""))) as client:
        client.sendmail("a@example.org", ["ann@example.com"], CONTENT)
        inside.end()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("a@example.org", ["ann@example.com"], CONTENT)
        assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (451, b"4.4.1")
        start("--config", "inside.toml").line("listening on .*lmtp")
        client.sendmail("a@example.org", ["ann@example.com"], CONTENT)
    assert len(stored(tmp_path)) == 2


@pytest.mark.promises("Handing on", "A message that loops ends.")
def test_a_loop_of_the_program_with_itself(start: Start, tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text("""
        [[listen]]
        address = "unix:loop"
        [[deliver]]
        url = "smtp:loop"
        connections = 200
    """)
    program = start("--config", "loop.toml")
    program.line("listening on")
    with Client(str(tmp_path / "loop")) as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail("a@example.org", ["ann@example.com"], CONTENT)
    assert (refused.value.smtp_code, refused.value.smtp_error) == (554, b"Error: too many hops, this is a mail loop")
    program.end()
    assert len([line for line in program.lines if "refused: 554" in line]) == 101
