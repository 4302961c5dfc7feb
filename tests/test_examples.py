"""The examples run: each is started as its first lines say, and does what they promise."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from interop.peers import BIG, HOST, RECIPIENT, SENDER, SIMPLE, Background
from program import Start

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, folder: Path, *arguments: str | Path) -> Background:
    return Background(sys.executable, EXAMPLES / name, "0", *arguments, folder=folder)


def test_smallest(tmp_path: Path) -> None:
    with example("smallest.py", tmp_path) as running:
        with smtplib.SMTP(HOST, running.port(), timeout=30) as client:
            client.sendmail(SENDER, [RECIPIENT, "bob@example.com"], SIMPLE)
        running.line(re.escape(f"{SENDER} ['{RECIPIENT}', 'bob@example.com'] a test"))
        assert running.stop() == 0


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_authentication(tmp_path: Path, mechanism: str) -> None:
    with example("authentication.py", tmp_path) as running, smtplib.SMTP(HOST, running.port(), timeout=30) as client:
        client.ehlo()
        assert not client.has_extn("auth")  # not before TLS
        client.starttls()
        client.ehlo()
        assert client.mail("alice@example.com")[0] == 530
        client.user, client.password = "alice", "wrong"
        exchange = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login, "CRAM-MD5": client.auth_cram_md5}[mechanism]
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.auth(mechanism, exchange)  # type: ignore[arg-type]
        client.password = "secret"
        client.auth(mechanism, exchange)  # type: ignore[arg-type]
        assert client.mail("bob@example.com") == (553, b"5.7.1 alice may not send as bob@example.com")
        client.mail("alice@example.com")
        client.rcpt(RECIPIENT)
        assert client.data(SIMPLE) == (250, b"2.6.0 OK: %d bytes from alice by ESMTPSA" % len(SIMPLE))


def test_a_user_whom_nobody_knows_is_refused(tmp_path: Path) -> None:
    with example("authentication.py", tmp_path) as running, smtplib.SMTP(HOST, running.port(), timeout=30) as client:
        client.starttls()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("mallory", "")


def test_lmtp_recipients(tmp_path: Path) -> None:
    with example("lmtp_recipients.py", tmp_path) as running, smtplib.LMTP(HOST, running.port()) as client:
        client.ehlo()
        client.mail(SENDER)
        replies = [client.rcpt(f"{name}@example.com")[0] for name in ("ann", "bob", "carol")]
        assert replies == [250, 250, 550]
        first, second = client.data(SIMPLE + b"x" * 900), client.getreply()
        assert first[1].startswith(b"2.6.0 OK: ann@example.com has ")
        assert second == (452, b"4.2.2 The mailbox bob@example.com is full")


def test_stream_to_file(tmp_path: Path) -> None:
    with example("stream_to_file.py", tmp_path, "inbox") as running:
        with smtplib.SMTP(HOST, running.port(), timeout=30) as client:
            client.sendmail(SENDER, RECIPIENT, BIG)
            client.sendmail(SENDER, RECIPIENT, SIMPLE)
        contents = {file.name.partition("-")[2]: file.read_bytes() for file in (tmp_path / "inbox").iterdir()}
    assert contents == {"1.eml": BIG, "2.eml": SIMPLE}


def test_stream_to_file_leaves_nothing_of_a_message_that_breaks_off(tmp_path: Path) -> None:
    with example("stream_to_file.py", tmp_path, "inbox") as running:
        client = smtplib.SMTP(HOST, running.port(), timeout=30)
        client.ehlo()
        client.mail(SENDER)
        client.rcpt(RECIPIENT)
        client.docmd("DATA")
        client.send(BIG)  # and no end
        client.close()
        assert running.stop() == 0  # it has finished with that client
        assert list((tmp_path / "inbox").iterdir()) == []


class NamedSMTP(smtplib.SMTP):
    """Asks for a host by name, and connects to this machine."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return socket.create_connection((HOST, port), timeout)


@pytest.mark.parametrize("name", ["one.example", "two.example"])
def test_sni(tmp_path: Path, name: str) -> None:
    authority = trustme.CA()
    for host in ("one.example", "two.example"):
        issued = authority.issue_cert(host)
        issued.private_key_pem.write_to_path(tmp_path / f"{host}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{host}.crt")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with example("sni.py", tmp_path, tmp_path) as running, NamedSMTP(name, running.port(), timeout=30) as client:
        client.starttls(context=context)  # it verifies the name too
        client.ehlo()
        client.mail(SENDER)
        client.rcpt(f"bob@{name}")
        assert client.data(SIMPLE) == (250, f"OK: taken for {name}".encode())


def test_webhook_receiver(tmp_path: Path, start: Start) -> None:
    text = (EXAMPLES / "webhook.toml").read_text()
    with example("webhook_receiver.py", tmp_path) as receiver:
        (tmp_path / "webhook.toml").write_text(text.replace(":8080/", f":{receiver.port()}/"))
        program = start("--config", "webhook.toml", "--listen", "127.0.0.1:0")
        with closing(smtplib.SMTP(HOST, program.port(), timeout=30)) as client:
            client.sendmail("alice@example.com", "ann@example.com", SIMPLE)
            receiver.line("alice@example.com: a test")
            with pytest.raises(smtplib.SMTPDataError) as refusal:
                client.sendmail("alice@example.com", "nobody@example.com", SIMPLE)
        assert refusal.value.args == (550, b"No such mailbox")
        [stored] = tmp_path.glob("*.eml")
        # Another secret is another sender.
        (tmp_path / "webhook.toml").write_text((tmp_path / "webhook.toml").read_text().replace("Zm9y", "Zm9z"))
        other = start("--config", "webhook.toml", "--listen", "127.0.0.1:0")
        with closing(smtplib.SMTP(HOST, other.port(), timeout=30)) as client, pytest.raises(smtplib.SMTPDataError):
            client.sendmail("alice@example.com", "ann@example.com", SIMPLE)
        other.line(r"cannot hand a message to .*: status 401")
    assert list(tmp_path.glob("*.eml")) == [stored]
    assert stored.read_bytes().endswith(SIMPLE)
