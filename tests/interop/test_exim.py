"""Exim, which delivers to us by its smtp transport (SMTP and LMTP) and its lmtp transport (a Unix socket).

Debian's exim4-daemon-light is built without gsasl, so that it has no SCRAM.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import trustme

from interop.conftest import Authority, LoopFactory
from interop.exim import Exim
from interop.mta import FULL, LATER, LMTP, LMTP_UNIX, QUOTA, SMTP, TRANSPORTS, Mail, Relayed, relayed, transcript, verbs
from interop.peers import BIG, NOBODY, PASSWORD, RECIPIENT, SENDER, SIMPLE, TRICKY, USER
from pillarbox import MessageStream, Reject, Session

BOB = "bob@example.com"
GREEK = "θ@example.com"
LOGIN_NEEDED = {"auth_optional": False, "allow_insecure_auth": False}


@dataclass
class Relay:
    """An Exim and the server it relays to."""

    server: Relayed
    exim: Exim
    records: list[logging.LogRecord]

    def verbs(self, mail: Mail) -> list[str]:
        self.server.gone(mail)
        return verbs(self.records, mail.session)

    def transcript(self, mail: Mail) -> list[str]:
        self.server.gone(mail)
        return transcript(self.records, mail.session)


class Start(Protocol):
    def __call__(self, transport: str = SMTP, *, options: dict[str, Any] | None = None, **more: Any) -> Relay: ...


@pytest.fixture
def relay(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[Start]:
    """Start a server (``options`` are its own) and an Exim that relays to it."""
    with ExitStack() as stack:

        def start(transport: str = SMTP, *, options: dict[str, Any] | None = None, **more: Any) -> Relay:
            server = stack.enter_context(relayed(loop_factory, caplog, **authority.options, **(options or {})))
            exim = stack.enter_context(Exim(server, transport, **more))
            return Relay(server, exim, caplog.get_records("call"))

        yield start


def trusting(authority: Authority) -> dict[str, Any]:
    """Return what makes Exim insist on TLS with a server whose certificate verifies."""
    return {
        "hosts_require_tls": "*",
        "tls_verify_certificates": authority.file,
        "tls_verify_hosts": "*",
        "tls_verify_cert_hostnames": "*",
    }


# --- Messages


@pytest.mark.proves("Exim", "a message arrives octet for octet")
@pytest.mark.proves("Exim (lmtp transport)", "a message arrives octet for octet")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_arrives_as_it_was_sent(relay: Start, transport: str, content: bytes) -> None:
    mta = relay(transport)
    mta.exim.send(RECIPIENT, BOB, content=content)
    mail = mta.server.next()
    assert (mail.mail_from, sorted(mail.rcpt_to)) == (SENDER, [RECIPIENT, BOB])
    assert mail.body == content.partition(b"\r\n\r\n")[2]
    assert mail.transmission_type == {SMTP: "ESMTPS", LMTP: "LMTPS", LMTP_UNIX: "LMTP"}[transport]
    for recipient in (RECIPIENT, BOB):
        assert 'C="250 2.6.0 OK: message ' in mta.exim.outcome(recipient)
    assert mta.exim.queue() == []


@pytest.mark.proves("Exim", "CHUNKING")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_chunking(relay: Start, transport: str, content: bytes) -> None:
    mta = relay(transport)
    mta.exim.send(content=content)
    mail = mta.server.next()
    said = mta.verbs(mail)
    assert ("BDAT" in said, "DATA" in said) == (True, False)
    assert " K " in mta.exim.outcome(RECIPIENT)  # "CHUNKING was used", in Exim's log


@pytest.mark.proves("Exim", "DATA where CHUNKING is not offered")
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_without_chunking(relay: Start, transport: str) -> None:
    mta = relay(transport, options={"hide_chunking": True})
    mta.exim.send(content=TRICKY)
    mail = mta.server.next()
    assert mail.body == TRICKY.partition(b"\r\n\r\n")[2]
    assert "BDAT" not in mta.verbs(mail)
    assert " K " not in mta.exim.outcome(RECIPIENT)


@pytest.mark.proves("Exim", "PIPELINING")
@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not offered"])
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_pipelining(relay: Start, transport: str, offered: bool) -> None:
    mta = relay(transport, options={"hide_pipelining": not offered})
    recipients = [f"user{number}@example.com" for number in range(50)]
    mta.exim.send(*recipients)
    assert sorted(mta.server.next().rcpt_to) == sorted(recipients)
    assert (" L " in mta.exim.outcome(recipients[0])) is offered


@pytest.mark.proves("Exim", "several messages in one connection")
@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
def test_a_connection_is_used_again(relay: Start, tls: bool) -> None:
    mta = relay(remote={} if tls else {"hosts_avoid_tls": "*"})
    for number in range(3):
        mta.exim.send(content=SIMPLE + b"%d\r\n" % number, deliver=False)
    mta.exim.exim("-qqff")
    mails = [mta.server.next() for _ in range(3)]
    assert sorted(mail.body for mail in mails) == [b"Hello.\r\n%d\r\n" % number for number in range(3)]
    assert len({mail.session for mail in mails}) == 1


# --- Extensions


@pytest.mark.proves("Exim", "SMTPUTF8")
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_smtputf8(relay: Start, transport: str) -> None:
    mta = relay(transport)
    content = "From: λ@example.org\r\nTo: θ@example.com\r\nSubject: Grüße\r\n\r\nΓειά\r\n".encode()
    mta.exim.send(GREEK, content=content, sender="λ@example.org", options="SMTPUTF8 BODY=8BITMIME")
    mail = mta.server.next()
    assert (mail.mail_from, mail.rcpt_to, mail.smtp_utf8) == ("λ@example.org", (GREEK,), True)
    assert mail.message["Subject"] == "Grüße"
    assert mail.body.decode() == "Γειά\r\n"


@pytest.mark.proves("Exim", "DSN")
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_dsn(relay: Start, transport: str) -> None:
    mta = relay(transport)
    mta.exim.send(
        options="RET=HDRS ENVID=QQ+2B314159",
        rcpt_options="NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2Bnews@example.com",
    )
    mail = mta.server.next()
    assert (mail.dsn.ret, mail.dsn.envid) == ("HDRS", "QQ+314159")
    ann = mail.recipient_dsn[RECIPIENT]
    assert (set(ann.notify), ann.orcpt) == ({"SUCCESS", "DELAY"}, ("rfc822", "Ann+news@example.com"))


@pytest.mark.proves("Exim", "where DSN is not offered it reports itself, as delivered what was relayed")
def test_without_dsn_it_reports_itself_that_the_mail_was_delivered(relay: Start) -> None:
    mta = relay(options={"hide_dsn": True})
    mta.exim.send(rcpt_options="NOTIFY=SUCCESS")
    mail, report = mta.server.next(), mta.server.next()
    assert mail.mail_from == SENDER
    assert (report.mail_from, report.rcpt_to) == ("", (SENDER,))
    assert report.reported() == {RECIPIENT: ("delivered", "2.0.0")}  # RFC 3464 2.3.3 has "relayed" for that


@pytest.mark.proves("Exim", "SIZE: too large a message is not even sent")
def test_size(relay: Start) -> None:
    mta = relay(options={"size": 1_000_000})
    mta.exim.send(content=BIG)
    bounce = mta.server.next()
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert "552 5.3.4" in mta.exim.outcome(RECIPIENT)


# --- TLS and AUTH


@pytest.mark.proves("Exim", "STARTTLS, with a verified certificate")
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_starttls(relay: Start, authority: Authority, transport: str) -> None:
    mta = relay(transport, remote=trusting(authority))
    mta.exim.send(content=BIG)
    mail = mta.server.next()
    assert mail.transmission_type == ("ESMTPS" if transport == SMTP else "LMTPS")
    assert mail.tls is not None
    assert mail.tls.version == "TLSv1.3"
    assert mail.body == BIG.partition(b"\r\n\r\n")[2]
    assert "X=TLS1.3" in mta.exim.outcome(RECIPIENT)
    assert "CV=yes" in mta.exim.outcome(RECIPIENT)


@pytest.mark.proves("Exim", "implicit TLS")
def test_implicit_tls(relay: Start, authority: Authority) -> None:
    mta = relay(options={"secure": True}, remote=trusting(authority) | {"protocol": "smtps"})
    mta.exim.send(content=BIG)
    mail = mta.server.next()
    assert mail.transmission_type == "ESMTPS"
    assert "STARTTLS" not in mta.verbs(mail)
    assert "CV=yes" in mta.exim.outcome(RECIPIENT)


@pytest.mark.proves("Exim", "TLS with a client certificate")
def test_a_client_certificate(relay: Start, authority: Authority, tmp_path: Path) -> None:
    ours = trustme.CA()
    file = tmp_path / "client.pem"
    ours.issue_cert("mta.example.org").private_key_and_cert_chain_pem.write_to_path(file)
    asks = {"request_cert": True, "ca": ours.cert_pem.bytes()}
    mta = relay(options=asks, remote=trusting(authority) | {"tls_certificate": file})
    mta.exim.send()
    mail = mta.server.next()
    assert mail.tls is not None
    assert mail.tls.authorized


@pytest.mark.proves("Exim", "mail waits where the certificate does not verify")
def test_a_certificate_that_does_not_verify(relay: Start, authority: Authority) -> None:
    mta = relay(remote=trusting(authority) | {"tls_verify_certificates": authority.stranger})
    mta.exim.send()
    assert mta.exim.queue() == [RECIPIENT]
    assert "certificate verification failed" in mta.exim.outcome(RECIPIENT)
    assert mta.server.mails.empty()


AUTHENTICATORS = {
    "PLAIN": "driver = plaintext\n  client_send = ^{user}^{password}",
    "LOGIN": "driver = plaintext\n  client_send = : {user} : {password}",
    "CRAM-MD5": "driver = cram_md5\n  client_name = {user}\n  client_secret = {password}",
}


def name_of(mechanism: str) -> str:
    return mechanism.lower().replace("-", "_")


def authenticator(mechanism: str, password: str) -> str:
    settings = AUTHENTICATORS[mechanism].format(user=USER, password=password)
    return f"{name_of(mechanism)}:\n  public_name = {mechanism}\n  {settings}\n"


@pytest.mark.proves("Exim", "AUTH PLAIN, LOGIN, CRAM-MD5 under TLS")
@pytest.mark.parametrize("mechanism", AUTHENTICATORS)
def test_authentication(relay: Start, authority: Authority, mechanism: str) -> None:
    remote = trusting(authority) | {"hosts_require_auth": "*"}
    mta = relay(options=LOGIN_NEEDED, remote=remote, authenticators=authenticator(mechanism, PASSWORD))
    mta.exim.send()
    mail = mta.server.next()
    assert (mail.transmission_type, mail.method) == ("ESMTPSA", mechanism)
    assert f"A={name_of(mechanism)}" in mta.exim.outcome(RECIPIENT)


@pytest.mark.proves("Exim", "mail waits where AUTH fails")
@pytest.mark.parametrize("mechanism", AUTHENTICATORS)
def test_a_wrong_password(relay: Start, authority: Authority, mechanism: str) -> None:
    remote = trusting(authority) | {"hosts_require_auth": "*"}
    mta = relay(options=LOGIN_NEEDED, remote=remote, authenticators=authenticator(mechanism, "wrong"))
    mta.exim.send()
    assert mta.exim.queue() == [RECIPIENT]
    assert "535 5.7.8" in mta.exim.log()
    assert mta.server.mails.empty()


# --- What becomes of mail that is not accepted


@pytest.mark.proves("Exim", "each recipient's reply to LMTP data: sent, bounced, or kept for later")
@pytest.mark.proves("Exim (lmtp transport)", "each recipient's reply after the data: sent, bounced, or kept for later")
@pytest.mark.parametrize("transport", [LMTP, LMTP_UNIX])
def test_lmtp_replies_for_each_recipient(relay: Start, transport: str) -> None:
    mta = relay(transport)
    mta.exim.send(RECIPIENT, QUOTA, FULL, NOBODY, LATER, BOB)
    mail, bounce = mta.server.next(), mta.server.next()
    assert sorted(mail.rcpt_to) == sorted([RECIPIENT, QUOTA, FULL, BOB])
    for recipient in (RECIPIENT, BOB):
        assert 'C="250 2.6.0 OK: message accepted"' in mta.exim.outcome(recipient)
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert {to: action for to, (action, _) in bounce.reported().items()} == {QUOTA: "failed", NOBODY: "failed"}
    assert b"552 5.2.2 Over quota" in bounce.content
    assert b"550 5.1.1 No such user here" in bounce.content
    assert sorted(mta.exim.queue()) == sorted([FULL, LATER])
    assert "452 4.2.2 Mailbox full" in mta.exim.outcome(FULL)
    assert "451 4.3.0 Try again later" in mta.exim.outcome(LATER)


@pytest.mark.proves("Exim", "a bounce for a refused recipient, a second attempt for a deferred one")
def test_smtp_replies_for_each_recipient(relay: Start) -> None:
    mta = relay()
    mta.exim.send(RECIPIENT, NOBODY, LATER)
    mail, bounce = mta.server.next(), mta.server.next()
    assert mail.rcpt_to == (RECIPIENT,)
    assert b"550 5.1.1 No such user here" in bounce.content
    assert mta.exim.queue() == [LATER]
    mta.server.recovers = True
    mta.exim.exim("-qff")
    assert mta.server.next().rcpt_to == (LATER,)


@pytest.mark.proves("Exim", "a chunk that it sent with recipients who were all refused")
def test_a_chunk_without_recipients(relay: Start) -> None:
    mta = relay()
    mta.exim.send(NOBODY)
    bounce = mta.server.next()
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert "550 5.1.1 No such user here" in mta.exim.outcome(NOBODY)
    dialogue = [record.getMessage() for record in mta.records if record.getMessage()[:2] in ("C:", "S:")]
    chunk = next(number for number, line in enumerate(dialogue) if line.startswith("C: BDAT"))
    assert dialogue[chunk - 1] == "S: 550 5.1.1 No such user here"
    assert dialogue[chunk + 1 : chunk + 3] == ["S: 503 5.5.1 Error: need RCPT command", "C: QUIT "]


@pytest.mark.proves("Exim", "a message refused after its data bounces")
@pytest.mark.parametrize("chunking", [True, False], ids=["BDAT", "DATA"])
@pytest.mark.parametrize("content", [SIMPLE, BIG], ids=["simple", "big"])
def test_a_message_refused_after_its_data(relay: Start, content: bytes, chunking: bool) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        raise Reject(554, "Looks like spam", enhanced="5.7.1")

    mta = relay(options={"on_data": on_data, "hide_chunking": not chunking})
    mta.exim.send(content=content)
    assert "554 5.7.1 Looks like spam" in mta.exim.outcome(RECIPIENT)


@pytest.mark.proves("Exim", "a refusal in the greeting keeps the mail for later")
def test_a_refusal_in_the_greeting(relay: Start) -> None:
    def on_connect(session: Session) -> None:
        raise Reject(421, "Come back later", enhanced="4.3.2")

    mta = relay(options={"on_connect": on_connect})
    mta.exim.send()
    assert mta.exim.queue() == [RECIPIENT]
    assert "421 4.3.2 Come back later" in mta.exim.log()


@pytest.mark.proves("Exim", "asks whether a recipient exists before it takes mail for it (callout)")
def test_a_callout(relay: Start) -> None:
    mta = relay(rcpt="verified")
    said = mta.exim.dialogue(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{RECIPIENT}>", f"RCPT TO:<{NOBODY}>")
    *_, ann, nobody, reason, _ = said.splitlines()
    assert (ann, nobody) == ("250 Accepted", "550-Callout verification failed:")
    assert reason == "550 550 5.1.1 No such user here"


# --- What it does apart from the RFC


@pytest.mark.lived_with("Exim", "It sends 8-bit text without BODY=8BITMIME, whether that is offered or not.")
@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not offered"])
def test_it_sends_8_bit_text_without_saying_so(relay: Start, offered: bool) -> None:
    """RFC 6152 3 wants BODY=8BITMIME, or a conversion where 8BITMIME is not offered. Exim converts nothing."""
    mta = relay(options={"hide_8bitmime": not offered})
    mta.exim.send(content=TRICKY, options="BODY=8BITMIME")
    mail = mta.server.next()
    assert mail.body_type == "7bit"
    assert not mail.body.isascii()
    assert mail.body == TRICKY.partition(b"\r\n\r\n")[2]
