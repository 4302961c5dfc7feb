"""nodemailer, the client of Node.js: ``npm ci --prefix tests/interop`` installs it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import Authority
from interop.peers import (
    BIG,
    HOST,
    IMPLICIT,
    NOBODY,
    PLAIN,
    RECIPIENT,
    SENDER,
    SIMPLE,
    STARTTLS,
    TRICKY,
    USER,
    Server,
    expected_type,
    forms,
    mechanisms,
    missing,
    program,
    run,
    secret_of,
)

HERE = Path(__file__).parent


class Nodemailer:
    """The script that delivers with it."""

    def __init__(self, authority: Authority) -> None:
        self._node = program("node", "nodejs")
        if not (HERE / "node_modules" / "nodemailer").is_dir():
            missing("nodemailer is not installed (npm ci --prefix tests/interop)")
        self._authority = authority

    def deliver(
        self,
        server: Server,
        *,
        form: str = PLAIN,
        sender: str = SENDER,
        to: tuple[str, ...] = (RECIPIENT,),
        content: bytes = SIMPLE,
        **transport: Any,
    ) -> dict[str, Any]:
        """Return what nodemailer reports, or under "error" why it failed."""
        settings = {
            "host": HOST,
            "port": server.port_of(form),
            "name": "client.example.org",
            "secure": form == IMPLICIT,
            "requireTLS": form == STARTTLS,
            "ignoreTLS": form == PLAIN,
            "tls": {"ca": self._authority.file.read_text()},
        }
        envelope = {"from": sender, "to": to}
        order = {"transport": settings | transport, "envelope": envelope, "raw": b64encode(content).decode()}
        outcome = run([self._node, HERE / "nodemailer.mjs"], json.dumps(order).encode())
        outcome.expect_success()
        report: dict[str, Any] = json.loads(outcome.output)
        return report


@pytest.fixture
def nodemailer(authority: Authority) -> Nodemailer:
    return Nodemailer(authority)


def credential(mechanism: str, secret: str) -> dict[str, Any]:
    if mechanism == "XOAUTH2":
        return {"auth": {"type": "OAuth2", "user": USER, "accessToken": secret}}
    return {"authMethod": mechanism, "auth": {"user": USER, "pass": secret}}


@pytest.mark.proves("nodemailer", "8-bit text, dots and long lines as sent", "several recipients")
@pytest.mark.parametrize("form", forms("nodemailer"))
def test_a_message_arrives_as_it_was_sent(server: Server, nodemailer: Nodemailer, form: str) -> None:
    report = nodemailer.deliver(server, form=form, to=(RECIPIENT, "bob@example.com"), content=TRICKY)
    assert report["response"] == "250 OK: message queued"
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("mechanism", mechanisms("nodemailer"))
@pytest.mark.parametrize("form", forms("nodemailer"))
def test_authentication(server: Server, nodemailer: Nodemailer, form: str, mechanism: str) -> None:
    report = nodemailer.deliver(server, form=form, **credential(mechanism, secret_of(mechanism)))
    assert report.get("accepted") == [RECIPIENT], report
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.proves("nodemailer", "535 is understood")
@pytest.mark.parametrize("mechanism", mechanisms("nodemailer"))
def test_a_wrong_password_is_refused(server: Server, nodemailer: Nodemailer, mechanism: str) -> None:
    error = nodemailer.deliver(server, form=STARTTLS, **credential(mechanism, "wrong"))["error"]
    assert (error["code"], error["responseCode"]) == ("EAUTH", 535)
    assert server.deliveries == []


@pytest.mark.proves("nodemailer", "a refused recipient")
def test_a_refused_recipient_is_reported_and_the_others_get_the_message(server: Server, nodemailer: Nodemailer) -> None:
    report = nodemailer.deliver(server, to=(NOBODY, RECIPIENT))
    assert (report["accepted"], report["rejected"]) == ([RECIPIENT], [NOBODY])
    assert report["refusals"] == ["550 No such user here"]
    assert server.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves("nodemailer", "a refused recipient")
def test_refused_recipients_alone_are_an_error(server: Server, nodemailer: Nodemailer) -> None:
    error = nodemailer.deliver(server, to=(NOBODY,))["error"]
    assert (error["code"], error["responseCode"]) == ("EENVELOPE", 550)


@pytest.mark.proves("nodemailer", "SMTPUTF8")
def test_addresses_in_utf8(server: Server, nodemailer: Nodemailer) -> None:
    report = nodemailer.deliver(server, sender="jörg@bücher.example", to=("用户@例え.jp",), content=TRICKY)
    assert report.get("rejected") == [], report
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert (delivery.smtp_utf8, delivery.content) == (True, TRICKY)


@pytest.mark.proves("nodemailer", "4 MB")
@pytest.mark.parametrize("form", forms("nodemailer"))
def test_a_big_message(server: Server, nodemailer: Nodemailer, form: str) -> None:
    assert nodemailer.deliver(server, form=form, content=BIG)["accepted"] == [RECIPIENT]
    assert server.delivery.content == BIG


@pytest.mark.proves("nodemailer", "a certificate that does not verify")
@pytest.mark.parametrize("form", forms("nodemailer", STARTTLS, IMPLICIT))
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, nodemailer: Nodemailer, authority: Authority, form: str
) -> None:
    server.tolerated = (ConnectionError,)  # TLS 1.3 is complete for the server before this client objects, or not
    error = nodemailer.deliver(server, form=form, tls={"ca": authority.stranger.read_text()})["error"]
    assert error["code"] in ("ETLS", "ESOCKET")
    assert server.deliveries == []


@pytest.mark.proves("nodemailer", "LMTP", "a reply for each recipient")
def test_lmtp_with_a_reply_for_each_recipient(server: Server, nodemailer: Nodemailer) -> None:
    to = (RECIPIENT, "full@example.com", "bob@example.com")
    report = nodemailer.deliver(server, lmtp=True, port=server.lmtp_port, to=to, content=TRICKY)
    assert (report["accepted"], report["rejected"]) == ([RECIPIENT, "bob@example.com"], ["full@example.com"])
    assert report["refusals"] == ["452 Mailbox full"]
    delivery = server.delivery
    assert (delivery.transmission_type, delivery.content) == ("LMTP", TRICKY)
