"""Go: the package net/smtp that comes with it, and the client of emersion's go-smtp, each in a program made here."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Callable
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
from pillarbox import HandshakeFailed

HERE = Path(__file__).parent
GOCODE = Path("/usr/share/gocode")  # where Debian's packages put sources
TO_TWO = (RECIPIENT, "bob@example.com")


class Deliver:
    """A program of ``go/`` that delivers one message."""

    def __init__(self, path: Path, authority: Authority) -> None:
        self._path = path
        self._authority = authority

    def __call__(
        self,
        server: Server,
        *,
        form: str = PLAIN,
        port: int | None = None,
        to: tuple[str, ...] = (RECIPIENT,),
        content: bytes = SIMPLE,
        ca: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Return its report: empty, or "error" and the reply's "code"."""
        order = {
            "Address": f"{HOST}:{port or server.port_of(form)}",
            "Form": form,
            "CA": str(ca or self._authority.file),
            "From": SENDER,
            "To": to,
            "Raw": b64encode(content).decode(),
            "User": USER,
        }
        outcome = run([self._path], json.dumps(order | more).encode())
        outcome.expect_success()
        report: dict[str, Any] = json.loads(outcome.output)
        return report


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build a program of ``go/`` once, with the sources that Debian has and nothing from the network."""
    folder = tmp_path_factory.mktemp("go")

    def build(name: str) -> Path:
        path = folder / name
        if not path.exists():
            command: list[str | Path] = [program("go", "golang-go"), "build", "-o", path, "."]
            offline = {"GO111MODULE": "off", "GOPROXY": "off", "GOPATH": str(GOCODE), "GOFLAGS": ""}
            done = subprocess.run(
                command,
                cwd=HERE / "go" / name,
                env=os.environ | offline,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=110,
                check=False,
            )
            assert done.returncode == 0, done.stdout.decode()
        return path

    return build


@pytest.fixture
def net_smtp(built: Callable[[str], Path], authority: Authority) -> Deliver:
    return Deliver(built("netsmtp"), authority)


@pytest.fixture
def go_smtp(built: Callable[[str], Path], authority: Authority) -> Deliver:
    for name in ("smtp", "sasl"):
        if not (GOCODE / "src/github.com/emersion" / f"go-{name}").is_dir():
            missing(f"go-{name} is not installed (Debian package golang-github-emersion-go-{name}-dev)")
    return Deliver(built("gosmtp"), authority)


# --- net/smtp


@pytest.mark.proves("Go net/smtp", "8-bit text with dots and long lines unchanged", "several recipients", "8BITMIME")
@pytest.mark.parametrize("form", forms("Go net/smtp"))
def test_a_message_of_net_smtp_arrives_as_it_was_sent(server: Server, net_smtp: Deliver, form: str) -> None:
    assert net_smtp(server, form=form, to=TO_TWO, content=TRICKY) == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to, delivery.content) == (SENDER, TO_TWO, TRICKY)
    assert (delivery.transmission_type, delivery.envelope.body_type) == (expected_type(form), "8bitmime")


@pytest.mark.lived_with("Go net/smtp", "It asks for SMTPUTF8 with every message, where the server has it.")
def test_net_smtp_asks_for_smtputf8_without_need(server: Server, net_smtp: Deliver) -> None:
    assert net_smtp(server) == {}
    assert f"MAIL FROM:<{SENDER}> BODY=8BITMIME SMTPUTF8" in server.commands
    assert server.delivery.content == SIMPLE


@pytest.mark.parametrize("mechanism", mechanisms("Go net/smtp"))
@pytest.mark.parametrize("form", forms("Go net/smtp"))
def test_authentication_of_net_smtp(server: Server, net_smtp: Deliver, form: str, mechanism: str) -> None:
    assert net_smtp(server, form=form, Mechanism=mechanism, Secret=secret_of(mechanism)) == {}
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)


@pytest.mark.proves("Go net/smtp", "a wrong password")
@pytest.mark.lived_with("Go net/smtp", 'After a refused AUTH it sends "*" as if the exchange still went on.')
@pytest.mark.parametrize("mechanism", mechanisms("Go net/smtp"))
def test_a_wrong_password_from_net_smtp_is_refused(server: Server, net_smtp: Deliver, mechanism: str) -> None:
    report = net_smtp(server, form=STARTTLS, Mechanism=mechanism, Secret="wrong")
    assert report["code"] == 535, report
    # It is a command to the server, and an unknown one; what follows is still served.
    assert server.commands[-2:] == ["unrecognized command of 1 bytes", "QUIT "]
    assert server.deliveries == []


@pytest.mark.proves("Go net/smtp", "a refused recipient")
def test_a_refused_recipient_ends_the_delivery_of_net_smtp(server: Server, net_smtp: Deliver) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = net_smtp(server, to=(RECIPIENT, NOBODY))
    assert report == {"error": "550 No such user here", "code": 550}
    assert server.deliveries == []


@pytest.mark.proves("Go net/smtp", "SMTPUTF8")
def test_addresses_in_utf8_from_net_smtp(server: Server, net_smtp: Deliver) -> None:
    assert net_smtp(server, From="jörg@bücher.example", to=("用户@例え.jp",), content=TRICKY) == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert (delivery.smtp_utf8, delivery.content) == (True, TRICKY)


@pytest.mark.proves("Go net/smtp", "4 MB")
@pytest.mark.parametrize("form", forms("Go net/smtp"))
def test_a_big_message_of_net_smtp(server: Server, net_smtp: Deliver, form: str) -> None:
    assert net_smtp(server, form=form, content=BIG) == {}
    assert server.delivery.content == BIG


@pytest.mark.proves("Go net/smtp", "a certificate that does not verify")
@pytest.mark.parametrize("form", forms("Go net/smtp", STARTTLS, IMPLICIT))
def test_a_certificate_that_net_smtp_does_not_trust(
    server: Server, net_smtp: Deliver, authority: Authority, form: str
) -> None:
    assert "unknown authority" in net_smtp(server, form=form, ca=authority.stranger)["error"]
    server.expect_problem(HandshakeFailed)


@pytest.mark.proves("Go net/smtp", "NOOP", "VRFY")
@pytest.mark.lived_with("Go net/smtp", "It takes 252, the honest answer to VRFY (RFC 5321 3.5.3), for a failure.")
def test_questions_of_net_smtp(server: Server, net_smtp: Deliver) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = net_smtp(server, Verify=True)
    assert report["code"] == 252
    assert server.verbs()[-3:] == ["EHLO", "NOOP", "VRFY"]


@pytest.mark.proves("Go net/smtp", "SendMail")
def test_send_mail_of_net_smtp_without_tls_on_the_server(serving: Serving, net_smtp: Deliver) -> None:
    # It starts TLS wherever it can, and trusts only the system's authorities: so none is offered.
    with serving(hide_starttls=True) as server:
        assert net_smtp(server, Helper=True, Mechanism="PLAIN", Secret=secret_of("PLAIN"), to=TO_TWO) == {}
        assert (server.delivery.user, server.delivery.rcpt_to) == (USER, TO_TWO)


# --- go-smtp


@pytest.mark.proves("go-smtp", "8-bit text with dots and long lines unchanged", "several recipients", "8BITMIME")
@pytest.mark.parametrize("form", forms("go-smtp"))
def test_a_message_of_go_smtp_arrives_as_it_was_sent(server: Server, go_smtp: Deliver, form: str) -> None:
    assert go_smtp(server, form=form, to=TO_TWO, content=TRICKY) == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to, delivery.content) == (SENDER, TO_TWO, TRICKY)
    assert (delivery.transmission_type, delivery.envelope.body_type) == (expected_type(form), "8bitmime")


@pytest.mark.parametrize("mechanism", mechanisms("go-smtp", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"))
@pytest.mark.parametrize("form", forms("go-smtp"))
def test_authentication_of_go_smtp(server: Server, go_smtp: Deliver, form: str, mechanism: str) -> None:
    assert go_smtp(server, form=form, Mechanism=mechanism, Secret=secret_of(mechanism)) == {}
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)


@pytest.mark.parametrize("mechanism", mechanisms("go-smtp", "ANONYMOUS"))
def test_anonymous_login_of_go_smtp(server: Server, go_smtp: Deliver, mechanism: str) -> None:
    assert go_smtp(server, Mechanism=mechanism) == {}
    assert (server.delivery.user, server.delivery.method) == ("anonymous", mechanism)


@pytest.mark.parametrize("mechanism", mechanisms("go-smtp", "EXTERNAL"))
@pytest.mark.parametrize("form", forms("go-smtp", STARTTLS, IMPLICIT))
def test_go_smtp_logs_in_with_its_certificate(
    certified: Server, go_smtp: Deliver, authority: Authority, form: str, mechanism: str
) -> None:
    assert go_smtp(certified, form=form, Mechanism=mechanism, Certificate=str(authority.client)) == {}
    assert (certified.delivery.user, certified.delivery.method) == (USER, mechanism)


@pytest.mark.proves("go-smtp", "a wrong password")
@pytest.mark.lived_with("go-smtp", 'After a refused AUTH it sends "*" as if the exchange still went on.')
@pytest.mark.parametrize("mechanism", mechanisms("go-smtp", "PLAIN", "LOGIN"))
def test_a_wrong_password_from_go_smtp_is_refused(server: Server, go_smtp: Deliver, mechanism: str) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = go_smtp(server, form=STARTTLS, Mechanism=mechanism, Secret="wrong")
    assert report["code"] == 535, report
    assert server.commands[-1] == "unrecognized command of 1 bytes"
    assert server.deliveries == []


@pytest.mark.proves("go-smtp", "the error of a token is understood")
@pytest.mark.parametrize("mechanism", mechanisms("go-smtp", "XOAUTH2", "OAUTHBEARER"))
def test_a_wrong_token_from_go_smtp_is_refused(server: Server, go_smtp: Deliver, mechanism: str) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = go_smtp(server, form=STARTTLS, Mechanism=mechanism, Secret="wrong")
    assert report["error"].startswith(f"{mechanism} authentication error (")
    assert server.deliveries == []


@pytest.mark.proves("go-smtp", "a refused recipient")
def test_a_refused_recipient_ends_the_delivery_of_go_smtp(server: Server, go_smtp: Deliver) -> None:
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = go_smtp(server, to=(RECIPIENT, NOBODY))
    assert (report["code"], report["error"]) == (550, "No such user here")
    assert server.deliveries == []


@pytest.mark.proves("go-smtp", "SMTPUTF8")
def test_addresses_in_utf8_from_go_smtp(server: Server, go_smtp: Deliver) -> None:
    assert go_smtp(server, From="jörg@bücher.example", to=("用户@例え.jp",), content=TRICKY, UTF8=True) == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert (delivery.smtp_utf8, delivery.content) == (True, TRICKY)


@pytest.mark.proves("go-smtp", "REQUIRETLS", "SIZE", "enhanced status codes")
def test_requiretls_and_size_of_go_smtp(serving: Serving, go_smtp: Deliver) -> None:
    shown = {"size": 10_000, "hide_requiretls": False, "hide_enhanced_status_codes": False}
    with serving(**shown) as server:
        assert go_smtp(server, form=STARTTLS, RequireTLS=True) == {}
        assert server.delivery.envelope.require_tls
        assert f"SIZE={len(SIMPLE)}" in server.commands[-4]
        server.tolerated = (ConnectionError,)  # it ends without QUIT
        report = go_smtp(server, content=BIG)
        assert (report["code"], report["error"]) == (552, "Error: message exceeds fixed maximum message size 10000")


@pytest.mark.proves("go-smtp", "4 MB")
@pytest.mark.parametrize("form", forms("go-smtp"))
def test_a_big_message_of_go_smtp(server: Server, go_smtp: Deliver, form: str) -> None:
    assert go_smtp(server, form=form, content=BIG) == {}
    assert server.delivery.content == BIG


@pytest.mark.proves("go-smtp", "LMTP", "a reply for each recipient")
def test_lmtp_of_go_smtp(server: Server, go_smtp: Deliver) -> None:
    assert go_smtp(server, port=server.lmtp_port, LMTP=True, to=TO_TWO, content=TRICKY) == {}
    assert (server.delivery.transmission_type, server.delivery.content) == ("LMTP", TRICKY)
    server.tolerated = (ConnectionError,)  # it ends without QUIT
    report = go_smtp(server, port=server.lmtp_port, LMTP=True, to=(RECIPIENT, "full@example.com"))
    assert (report["code"], report["error"]) == (452, "Mailbox full")
