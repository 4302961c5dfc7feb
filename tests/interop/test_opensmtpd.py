"""OpenSMTPD, which relays to us, and the two clients that come with it: smtp and mail.lmtp."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import Authority, LoopFactory
from interop.jail import beside
from interop.mta import FULL, LATER, QUOTA, Relayed, relayed, transcript, verbs
from interop.opensmtpd import OpenSMTPD
from interop.peers import BIG, HOST, NOBODY, PASSWORD, RECIPIENT, SENDER, SIMPLE, TRICKY, USER, Outcome, run

BOB = "bob@example.com"
PLAIN, STARTTLS, IMPLICIT, LMTP = "smtp+notls", "smtp+tls", "smtps", "lmtp"
TYPES = {PLAIN: "ESMTP", STARTTLS: "ESMTPS", IMPLICIT: "ESMTPS", LMTP: "LMTP"}
LOGIN_NEEDED = {"auth_optional": False, "allow_insecure_auth": False}


def port_of(server: Relayed, protocol: str) -> int:
    return {IMPLICIT: server.tls_port, LMTP: server.lmtp_port}.get(protocol.removesuffix("+notls"), server.port)


@dataclass
class Relay:
    """An OpenSMTPD and the server it relays to."""

    server: Relayed
    mta: OpenSMTPD
    records: list[logging.LogRecord]


Start = Callable[..., Relay]


@pytest.fixture
def relay(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[Start]:
    """Start a server (``options`` are its own) and an OpenSMTPD that relays to it by a protocol."""
    with ExitStack() as stack:

        def start(
            protocol: str,
            *,
            options: dict[str, Any] | None = None,
            trusted: Path = authority.file,
            credential: str = "",
        ) -> Relay:
            server = stack.enter_context(relayed(loop_factory, caplog, **authority.options, **(options or {})))
            label = "me@" if credential else ""
            url = f"{protocol}://{label}{HOST}:{port_of(server, protocol)}"
            mta = stack.enter_context(OpenSMTPD(url, server.port, trusted, credential=credential))
            stack.callback(server.settle)  # before it is killed, and with it the connections that it keeps
            return Relay(server, mta, caplog.get_records("call"))

        yield start


@pytest.mark.proves("OpenSMTPD", "a message arrives octet for octet", "plaintext, STARTTLS, implicit TLS, LMTP")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
@pytest.mark.parametrize("protocol", [PLAIN, STARTTLS, IMPLICIT, LMTP])
def test_a_message_arrives_as_it_was_sent(relay: Start, protocol: str, content: bytes) -> None:
    here = relay(protocol)
    recipients = (RECIPIENT,) if protocol == LMTP else (RECIPIENT, BOB)  # see below
    here.mta.sendmail(*recipients, content=content)
    mail = here.server.next()
    assert (mail.mail_from, sorted(mail.rcpt_to)) == (SENDER, list(recipients))
    assert mail.body == content.partition(b"\r\n\r\n")[2]
    assert mail.transmission_type == TYPES[protocol]
    reply = "250 2.6.0 OK: message " + ("accepted" if protocol == LMTP else "queued")
    assert [here.mta.outcome(to) for to in recipients] == [("Ok", reply)] * len(recipients)


@pytest.mark.proves("OpenSMTPD", "DSN")
def test_dsn(relay: Start) -> None:
    here = relay(PLAIN)
    here.mta.sendmail(content=SIMPLE, options=("-N", "success,delay", "-R", "hdrs", "-V", "QQ314159"))
    mail = here.server.next()
    assert (mail.dsn.ret, mail.dsn.envid) == ("HDRS", "QQ314159")
    assert set(mail.recipient_dsn[RECIPIENT].notify) == {"SUCCESS", "DELAY"}


@pytest.mark.proves("OpenSMTPD", "AUTH under TLS")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("protocol", [STARTTLS, IMPLICIT])
def test_authentication(relay: Start, protocol: str, mechanism: str) -> None:
    here = relay(protocol, options=LOGIN_NEEDED | {"auth_methods": [mechanism]}, credential=f"{USER}:{PASSWORD}")
    here.mta.sendmail(content=SIMPLE)
    mail = here.server.next()
    assert (mail.transmission_type, mail.method) == ("ESMTPSA", mechanism)


@pytest.mark.proves("OpenSMTPD", "nothing is sent where the certificate does not verify")
def test_a_certificate_that_does_not_verify(relay: Start, authority: Authority) -> None:
    here = relay(STARTTLS, trusted=authority.stranger)
    here.mta.sendmail(content=SIMPLE)
    here.mta.log.find("certificate verification failed|SSL certificate check failed|cert-check")
    assert here.server.mails.empty()


@pytest.mark.proves("OpenSMTPD", "a bounce for a refused recipient; a deferred one is kept")
def test_smtp_replies_for_each_recipient(relay: Start) -> None:
    here = relay(PLAIN)
    here.mta.sendmail(RECIPIENT, NOBODY, LATER, content=SIMPLE)
    mail, bounce = here.server.next(), here.server.next()
    assert mail.rcpt_to == (RECIPIENT,)
    assert here.mta.outcome(LATER) == ("TempFail", "451 4.3.0 Try again later")
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert bounce.reported() == {NOBODY: ("failed", "5.0.0")}
    assert b"550 5.1.1 No such user here" in bounce.content


@pytest.mark.proves("OpenSMTPD", "LMTP: the reply after the data, to a message for one recipient")
@pytest.mark.parametrize(
    ("recipient", "outcome"),
    [
        (RECIPIENT, ("Ok", "250 2.6.0 OK: message accepted")),
        (QUOTA, ("PermFail", "552 5.2.2 Over quota")),
        (FULL, ("TempFail", "452 4.2.2 Mailbox full")),
    ],
)
def test_the_reply_of_lmtp(relay: Start, recipient: str, outcome: tuple[str, str]) -> None:
    here = relay(LMTP)
    here.mta.sendmail(recipient, content=SIMPLE)
    assert here.server.next().rcpt_to == (recipient,)
    assert here.mta.outcome(recipient) == outcome


@pytest.mark.lived_with(
    "OpenSMTPD", "By LMTP it takes more than one reply after the data for an error: it keeps recipients for later."
)
def test_the_replies_of_lmtp_are_too_many_for_it(relay: Start) -> None:
    """RFC 2033 4.2: the server sends one reply for each recipient that it accepted.

    OpenSMTPD reads the first; where others came with it, it gives up (mta_session.c, mta_io) and keeps their
    recipients for another attempt. Messages for one recipient each are the way to live with it.
    """
    here = relay(LMTP)
    here.mta.sendmail(RECIPIENT, BOB, content=SIMPLE)
    mail = here.server.next()
    first, second = mail.rcpt_to
    assert {first, second} == {RECIPIENT, BOB}
    outcomes = [here.mta.outcome(first)[0], here.mta.outcome(second)[0]]
    assert outcomes.count("TempFail") >= 1
    here.mta.log.find("Remote host sent too much data")
    said = transcript(here.records, mail.session)
    assert said.count("S: 250 2.6.0 OK: message accepted") == 2


# --- Its clients


@pytest.fixture
def server(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[Relayed]:
    with relayed(loop_factory, caplog, **authority.options) as running:
        yield running


def smtp(server: Relayed, protocol: str, *more: str, to: str = RECIPIENT, user: str = "") -> Outcome:
    url = f"{protocol}://{user}{HOST}:{port_of(server, protocol)}"
    program = beside("smtp", "opensmtpd")
    return run([program, "-C", "-H", "client.example.org", "-F", SENDER, *more, "-s", url, to], SIMPLE)


@pytest.mark.proves("OpenSMTPD smtp", "plaintext, STARTTLS, implicit TLS")
@pytest.mark.parametrize("protocol", [PLAIN, STARTTLS, IMPLICIT])
def test_the_client_smtp(server: Relayed, protocol: str) -> None:
    smtp(server, protocol).expect_success()
    mail = server.next()
    assert (mail.mail_from, mail.rcpt_to, mail.body) == (SENDER, (RECIPIENT,), b"Hello.\r\n")
    assert mail.transmission_type == TYPES[protocol]


@pytest.mark.proves("OpenSMTPD smtp", "AUTH")
def test_the_client_smtp_with_a_login(server: Relayed) -> None:
    smtp(server, STARTTLS, user=f"{USER}:{PASSWORD}@").expect_success()
    assert server.next().transmission_type == "ESMTPSA"


@pytest.mark.proves("OpenSMTPD smtp", "LMTP")
def test_the_client_smtp_with_lmtp(server: Relayed) -> None:
    smtp(server, "lmtp+notls").expect_success()
    assert server.next().transmission_type == "LMTP"


@pytest.mark.proves("OpenSMTPD smtp", "a refused recipient is reported")
def test_the_client_smtp_reports_a_refusal(server: Relayed) -> None:
    assert smtp(server, PLAIN, to=NOBODY).output == f"{NOBODY}: RCPT: 550 5.1.1 No such user here\n"


@pytest.mark.proves("OpenSMTPD mail.lmtp", "a Unix socket, TCP")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_the_client_mail_lmtp(server: Relayed, caplog: pytest.LogCaptureFixture, unix: bool) -> None:
    place = server.lmtp_path if unix else f"{HOST}:{server.lmtp_port}"
    program = shutil.copy(beside("mail.lmtp", "opensmtpd"), Path(server.path).parent)  # where another user can read it
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]  # it refuses to run as root
    variables = ["env", f"SENDER={SENDER}", f"RECIPIENT={RECIPIENT}"]
    arguments = [*variables, *(as_nobody if os.geteuid() == 0 else []), program, "-d", place, "-r"]
    run(arguments, SIMPLE.replace(b"\r\n", b"\n")).expect_success()
    mail = server.next()
    assert (mail.mail_from, mail.rcpt_to, mail.body) == (SENDER, (RECIPIENT,), b"Hello.\r\n")
    assert verbs(caplog.get_records("call"), mail.session)[:4] == ["LHLO", "MAIL", "RCPT", "DATA"]
