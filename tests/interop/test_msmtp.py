"""msmtp, with a configuration file as people have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.conftest import Authority, ClientCertificate
from interop.peers import (
    BIG,
    FORMS,
    HOST,
    IMPLICIT,
    MECHANISMS,
    NOBODY,
    PASSWORD,
    PLAIN,
    RECIPIENT,
    SENDER,
    SIMPLE,
    STARTTLS,
    TOKEN,
    TRICKY,
    USER,
    Outcome,
    Server,
    expected_type,
    program,
    run,
)

# Its exit status is one of sysexits.h.
BAD_ADDRESS, TEMPORARY, NO_PERMISSION = 65, 75, 77


class Msmtp:
    """The program, and its configuration file."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self._program = program("msmtp", "msmtp")
        self._file = folder / "msmtprc"
        self._authority = authority

    def deliver(
        self,
        server: Server,
        *,
        form: str = PLAIN,
        account: dict[str, str] | None = None,
        to: tuple[str, ...] = (RECIPIENT,),
        sender: str = SENDER,
        content: bytes = SIMPLE,
    ) -> Outcome:
        settings = {
            "host": HOST,
            "port": str(server.port_of(form)),
            "from": sender,
            "domain": "client.example.org",
            "tls": "off" if form == PLAIN else "on",
            "tls_starttls": "on" if form == STARTTLS else "off",
            "tls_trust_file": str(self._authority.file),
        } | (account or {})
        self._file.touch(mode=0o600)
        self._file.write_text("account default\n" + "".join(f"{name} {value}\n" for name, value in settings.items()))
        # It reads lines as Unix has them, and sends them as SMTP has them.
        return run([self._program, f"--file={self._file}", "--debug", "--", *to], content.replace(b"\r\n", b"\n"))


@pytest.fixture
def msmtp(tmp_path: Path, authority: Authority) -> Msmtp:
    return Msmtp(tmp_path, authority)


def credential(mechanism: str, secret: str) -> dict[str, str]:
    return {"auth": mechanism.lower(), "user": USER, "password": secret}


@pytest.mark.parametrize("form", FORMS)
def test_a_message_arrives_as_it_was_sent(server: Server, msmtp: Msmtp, form: str) -> None:
    msmtp.deliver(server, form=form, to=(RECIPIENT, "bob@example.com"), content=TRICKY).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("form", FORMS)
def test_authentication(server: Server, msmtp: Msmtp, form: str, mechanism: str) -> None:
    account = credential(mechanism, TOKEN if mechanism == "XOAUTH2" else PASSWORD)
    msmtp.deliver(server, form=form, account=account).expect_success()
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_refused(server: Server, msmtp: Msmtp, mechanism: str) -> None:
    outcome = msmtp.deliver(server, form=STARTTLS, account=credential(mechanism, "wrong"))
    assert outcome.status == NO_PERMISSION, outcome.output
    assert "535 Invalid username or password" in outcome.output
    assert server.deliveries == []


BEYOND = ("SCRAM-SHA-256", "SCRAM-SHA-1", "OAUTHBEARER")


@pytest.mark.proves("msmtp", "AUTH SCRAM-SHA-256", "AUTH SCRAM-SHA-1", "AUTH OAUTHBEARER")
@pytest.mark.parametrize("mechanism", BEYOND)
@pytest.mark.parametrize("form", FORMS)
def test_authentication_without_a_password_on_the_wire(
    sasl_server: Server, msmtp: Msmtp, form: str, mechanism: str
) -> None:
    account = credential(mechanism, TOKEN if mechanism == "OAUTHBEARER" else PASSWORD)
    outcome = msmtp.deliver(sasl_server, form=form, account=account)
    outcome.expect_success()
    delivery = sasl_server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)


@pytest.mark.parametrize("mechanism", BEYOND)
def test_a_wrong_secret_is_refused(sasl_server: Server, msmtp: Msmtp, mechanism: str) -> None:
    outcome = msmtp.deliver(sasl_server, form=STARTTLS, account=credential(mechanism, "wrong"))
    outcome.expect_failure()
    assert sasl_server.deliveries == []
    unknown = credential(mechanism, PASSWORD) | {"user": "nobody"}
    msmtp.deliver(sasl_server, form=STARTTLS, account=unknown).expect_failure()


@pytest.mark.proves("msmtp", "AUTH EXTERNAL")
@pytest.mark.parametrize("form", [STARTTLS, IMPLICIT])
def test_a_client_certificate(
    sasl_server: Server, msmtp: Msmtp, client_certificate: ClientCertificate, form: str
) -> None:
    file = str(client_certificate.file)
    # Without a user it sends an empty initial response as nothing at all, and takes the 334 for success.
    account = {"auth": "external", "user": USER, "tls_cert_file": file, "tls_key_file": file}
    msmtp.deliver(sasl_server, form=form, account=account).expect_success()
    assert (sasl_server.delivery.user, sasl_server.delivery.method) == (USER, "EXTERNAL")
    outcome = msmtp.deliver(sasl_server, form=form, account={"auth": "external", "user": USER})
    outcome.expect_failure("EXTERNAL")  # which is then not offered


def test_a_refused_recipient_is_reported(server: Server, msmtp: Msmtp) -> None:
    outcome = msmtp.deliver(server, to=(RECIPIENT, NOBODY))
    assert outcome.status == BAD_ADDRESS
    assert "550 No such user here" in outcome.output
    assert server.deliveries == []


@pytest.mark.parametrize("form", FORMS)
def test_a_big_message(server: Server, msmtp: Msmtp, form: str) -> None:
    msmtp.deliver(server, form=form, content=BIG).expect_success()
    assert server.delivery.content == BIG


@pytest.mark.parametrize("form", [STARTTLS, IMPLICIT])
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, msmtp: Msmtp, authority: Authority, form: str
) -> None:
    server.tolerated = (ConnectionError,)  # TLS 1.3 is complete for the server before this client objects, or not
    outcome = msmtp.deliver(server, form=form, account={"tls_trust_file": str(authority.stranger)})
    outcome.expect_failure("certificate verification failed")
    assert server.deliveries == []


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_lmtp(server: Server, msmtp: Msmtp, unix: bool) -> None:
    account = {"protocol": "lmtp", "port": str(server.lmtp_port)} | ({"socket": server.lmtp_path} if unix else {})
    msmtp.deliver(server, account=account, to=(RECIPIENT, "bob@example.com"), content=TRICKY).expect_success()
    delivery = server.delivery
    assert (delivery.transmission_type, delivery.rcpt_to) == ("LMTP", (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY


def test_lmtp_refuses_one_recipient_after_the_data(server: Server, msmtp: Msmtp) -> None:
    account = {"protocol": "lmtp", "port": str(server.lmtp_port)}
    outcome = msmtp.deliver(server, account=account, to=(RECIPIENT, "full@example.com", "bob@example.com"))
    outcome.expect_failure("250 OK: message accepted", "452 Mailbox full")


def test_it_asks_what_the_server_can(server: Server) -> None:
    place = ("--host", HOST, "--port", str(server.port), "--tls=off", "--serverinfo")
    outcome = run([program("msmtp", "msmtp"), *place])
    outcome.expect_success()
    assert "PIPELINING" in outcome.output
    assert "STARTTLS" in outcome.output
    assert "PLAIN" in outcome.output
