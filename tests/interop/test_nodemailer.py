"""nodemailer, the client of Node.js: ``npm ci --prefix tests/interop`` installs it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import Authority, Serving
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
from pillarbox import Address, Reject, Session, TLSInfo

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
        message: dict[str, Any] | None = None,
        envelope: dict[str, Any] | None = None,
        times: int = 1,
        **transport: Any,
    ) -> dict[str, Any]:
        """Return what nodemailer reports of the last message, or under "error" why it failed.

        ``message`` and ``envelope`` are more of its options.
        """
        settings = {
            "host": HOST,
            "port": server.port_of(form),
            "name": "client.example.org",
            "secure": form == IMPLICIT,
            "requireTLS": form == STARTTLS,
            "ignoreTLS": form == PLAIN,
            "tls": {"ca": self._authority.file.read_text()},
        }
        order = {
            "transport": settings | transport,
            "message": {"envelope": {"from": sender, "to": to} | (envelope or {})} | (message or {}),
            "raw": b64encode(content).decode(),
            "times": times,
        }
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


@pytest.mark.proves("nodemailer", "8-bit text with dots and long lines unchanged", "several recipients")
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


@pytest.mark.proves("nodemailer", "a wrong password")
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


@pytest.mark.proves("nodemailer", "PIPELINING")
def test_the_envelope_comes_in_one_group(serving: Serving, nodemailer: Nodemailer) -> None:
    def on_mail_from(_: Address, session: Session) -> None:
        raise Reject(550, "not from there")

    with serving(on_mail_from=on_mail_from) as server:
        error = nodemailer.deliver(server, to=(RECIPIENT, "bob@example.com"))["error"]
        # The rest was under way when MAIL was refused.
        assert server.verbs()[-4:] == ["MAIL", "RCPT", "RCPT", "DATA"]
    assert (error["code"], error["responseCode"]) == ("EENVELOPE", 550)


@pytest.mark.proves("nodemailer", "DSN")
def test_wishes_for_reports(serving: Serving, nodemailer: Nodemailer) -> None:
    wishes = {"id": "QQ+314", "return": "headers", "notify": ["success", "delay"], "recipient": "b@c.example"}
    with serving(hide_dsn=False) as server:
        assert nodemailer.deliver(server, message={"dsn": wishes})["accepted"] == [RECIPIENT]
        envelope = server.delivery.envelope
    assert (envelope.dsn.ret, envelope.dsn.envid) == ("HDRS", "QQ+314")
    assert envelope.rcpt_to[0].dsn.notify == ("SUCCESS", "DELAY")
    assert envelope.rcpt_to[0].dsn.orcpt == ("rfc822", "b@c.example")


@pytest.mark.proves("nodemailer", "8BITMIME", "SIZE")
def test_what_the_message_is(serving: Serving, nodemailer: Nodemailer) -> None:
    with serving(size=100_000, hide_size=True) as server:  # or the client would refuse what is too large
        nodemailer.deliver(server, content=TRICKY, envelope={"use8BitMime": True, "size": len(TRICKY)})
        envelope = server.delivery.envelope
        error = nodemailer.deliver(server, content=BIG, envelope={"size": len(BIG)})["error"]
    assert envelope.mail_from is not None
    assert (envelope.body_type, envelope.mail_from.args["SIZE"]) == ("8bitmime", str(len(TRICKY)))
    assert (error["code"], error["responseCode"]) == ("EENVELOPE", 552)


@pytest.mark.proves("nodemailer", "REQUIRETLS")
@pytest.mark.parametrize("form", forms("nodemailer", STARTTLS, IMPLICIT))
def test_only_over_tls(serving: Serving, nodemailer: Nodemailer, form: str) -> None:
    with serving(hide_requiretls=False) as server:
        report = nodemailer.deliver(server, form=form, message={"requireTLSExtensionEnabled": True})
        assert report.get("accepted") == [RECIPIENT], report
        assert server.delivery.envelope.require_tls


@pytest.mark.proves("nodemailer", "many messages over one connection")
def test_a_pool_keeps_its_connections(server: Server, nodemailer: Nodemailer) -> None:
    nodemailer.deliver(server, form=STARTTLS, times=30, pool=True, maxConnections=2)
    assert [delivery.content for delivery in server.deliveries] == [SIMPLE] * 30
    assert server.verbs().count("STARTTLS") <= 2


@pytest.mark.proves("nodemailer", "a client's certificate")
@pytest.mark.parametrize("form", forms("nodemailer", STARTTLS, IMPLICIT))
def test_a_clients_certificate(serving: Serving, nodemailer: Nodemailer, authority: Authority, form: str) -> None:
    shown: list[bool] = []

    def on_secure(tls: TLSInfo, session: Session) -> None:
        shown.append(tls.authorized)

    pem = authority.client.read_text()
    with serving(request_cert=True, ca=authority.file.read_bytes(), on_secure=on_secure) as server:
        tls = {"ca": authority.file.read_text(), "cert": pem, "key": pem}
        assert nodemailer.deliver(server, form=form, tls=tls)["accepted"] == [RECIPIENT]
    assert shown == [True]
