"""curl: smtp:// in plaintext and with STARTTLS, and smtps://."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.conftest import Authority, ClientCertificate
from interop.peers import (
    BIG,
    FORMS,
    HEADER,
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
from pillarbox import HandshakeFailed

# Its exit status says what failed.
SEND_ERROR, NO_CERTIFICATE, LOGIN_DENIED = 55, 60, 67


class Curl:
    """The program, with a file for the message."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self._program = program("curl", "curl")
        self._file = folder / "message"
        self._authority = authority

    def deliver(
        self,
        server: Server,
        *more: str,
        form: str = PLAIN,
        sender: str = SENDER,
        to: tuple[str, ...] = (RECIPIENT,),
        content: bytes = SIMPLE,
    ) -> Outcome:
        self._file.write_bytes(content)
        scheme = "smtps" if form == IMPLICIT else "smtp"
        tls = () if form == PLAIN else ("--ssl-reqd", "--cacert", str(self._authority.file))
        recipients = [word for address in to for word in ("--mail-rcpt", address)]
        message = ("--mail-from", sender, *recipients, "--upload-file", str(self._file))
        url = f"{scheme}://{HOST}:{server.port_of(form)}/client.example.org"
        return run([self._program, "--silent", "--show-error", "--verbose", *tls, *message, *more, url])


@pytest.fixture
def curl(tmp_path: Path, authority: Authority) -> Curl:
    return Curl(tmp_path, authority)


def credential(mechanism: str, secret: str) -> tuple[str, ...]:
    option = ("--user", USER, "--oauth2-bearer", secret) if mechanism == "XOAUTH2" else ("--user", f"{USER}:{secret}")
    return (*option, "--login-options", f"AUTH={mechanism}")


@pytest.mark.parametrize("form", FORMS)
def test_a_message_arrives_as_it_was_sent(server: Server, curl: Curl, form: str) -> None:
    curl.deliver(server, form=form, to=(RECIPIENT, "bob@example.com"), content=TRICKY).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("form", FORMS)
def test_authentication(server: Server, curl: Curl, form: str, mechanism: str, initial_response: bool) -> None:
    options = credential(mechanism, TOKEN if mechanism == "XOAUTH2" else PASSWORD)
    curl.deliver(server, *options, *(["--sasl-ir"] if initial_response else []), form=form).expect_success()
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_refused(server: Server, curl: Curl, mechanism: str) -> None:
    outcome = curl.deliver(server, *credential(mechanism, "wrong"), form=STARTTLS)
    assert outcome.status == LOGIN_DENIED
    assert server.deliveries == []


@pytest.mark.proves("curl", "AUTH OAUTHBEARER")
@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("form", FORMS)
def test_oauthbearer(sasl_server: Server, curl: Curl, form: str, initial_response: bool) -> None:
    more = ["--sasl-ir"] if initial_response else []
    options = ("--user", USER, "--oauth2-bearer", TOKEN, "--login-options", "AUTH=OAUTHBEARER", *more)
    curl.deliver(sasl_server, *options, form=form).expect_success()
    assert (sasl_server.delivery.user, sasl_server.delivery.method) == (USER, "OAUTHBEARER")


def test_a_wrong_token_is_refused(sasl_server: Server, curl: Curl) -> None:
    options = ("--user", USER, "--oauth2-bearer", "wrong", "--login-options", "AUTH=OAUTHBEARER")
    assert curl.deliver(sasl_server, *options, form=STARTTLS).status == LOGIN_DENIED
    assert sasl_server.deliveries == []


@pytest.mark.proves("curl", "AUTH EXTERNAL")
@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("form", [STARTTLS, IMPLICIT])
def test_a_client_certificate(
    sasl_server: Server, curl: Curl, client_certificate: ClientCertificate, form: str, initial_response: bool
) -> None:
    more = ["--sasl-ir"] if initial_response else []
    options = ("--user", f"{USER}:", "--login-options", "AUTH=EXTERNAL", "--cert", str(client_certificate.file), *more)
    curl.deliver(sasl_server, *options, form=form).expect_success()
    assert (sasl_server.delivery.user, sasl_server.delivery.method) == (USER, "EXTERNAL")


def test_a_refused_recipient_ends_the_delivery(server: Server, curl: Curl) -> None:
    outcome = curl.deliver(server, to=(RECIPIENT, NOBODY))
    assert outcome.status == SEND_ERROR
    assert "550 No such user here" in outcome.output
    assert server.deliveries == []


def test_a_refused_recipient_is_allowed_and_the_others_get_the_message(server: Server, curl: Curl) -> None:
    curl.deliver(server, "--mail-rcpt-allowfails", to=(NOBODY, RECIPIENT)).expect_success()
    assert server.delivery.rcpt_to == (RECIPIENT,)


def test_addresses_in_utf8(server: Server, curl: Curl) -> None:
    curl.deliver(server, sender="jörg@bücher.example", to=("用户@例え.jp",)).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert delivery.smtp_utf8


def test_a_file_with_unix_line_ends_arrives_with_crlf(server: Server, curl: Curl) -> None:
    # curl sends a file as it is: line feeds alone, here with a dot line that must not end the message.
    text = HEADER.replace(b"\r\n", b"\n") + b"\nfirst\n.\nsecond\n"
    curl.deliver(server, content=text).expect_success()
    # Where a file does not end with CRLF, curl adds one.
    assert server.delivery.content.removesuffix(b"\r\n") == text.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("content", [b".\r\n", b"..\r\n", b".first\r\n", b""], ids=repr)
def test_a_message_that_begins_with_a_dot_or_is_empty(server: Server, curl: Curl, content: bytes) -> None:
    curl.deliver(server, content=content).expect_success()
    assert server.delivery.content in (content, content + b"\r\n")


@pytest.mark.parametrize("form", FORMS)
def test_a_big_message(server: Server, curl: Curl, form: str) -> None:
    curl.deliver(server, form=form, content=BIG).expect_success()
    assert server.delivery.content == BIG


@pytest.mark.parametrize("form", [STARTTLS, IMPLICIT])
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, curl: Curl, authority: Authority, form: str
) -> None:
    outcome = curl.deliver(server, "--cacert", str(authority.stranger), form=form)
    assert outcome.status == NO_CERTIFICATE
    server.expect_problem(HandshakeFailed)


def test_a_question_about_an_address(server: Server, curl: Curl) -> None:
    url = f"smtp://{HOST}:{server.port}"
    outcome = run([program("curl", "curl"), "--silent", "--show-error", "--mail-rcpt", RECIPIENT, url])
    outcome.expect_success()
    assert outcome.output.startswith("252 ")
