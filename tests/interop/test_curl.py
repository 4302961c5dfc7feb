"""curl: smtp:// in plaintext and with STARTTLS, and smtps://."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.conftest import Authority, Serving
from interop.peers import (
    BIG,
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
    TRICKY,
    USER,
    Outcome,
    Server,
    expected_type,
    forms,
    mechanisms,
    program,
    run,
    secret_of,
)
from pillarbox import AuthRequest, HandshakeFailed, Session

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
    token = mechanism in ("XOAUTH2", "OAUTHBEARER")
    option = ("--user", USER, "--oauth2-bearer", secret) if token else ("--user", f"{USER}:{secret}")
    return (*option, "--login-options", f"AUTH={mechanism}")


@pytest.mark.proves("curl", "8-bit text with dots and long lines unchanged", "several recipients")
@pytest.mark.parametrize("form", forms("curl"))
def test_a_message_arrives_as_it_was_sent(server: Server, curl: Curl, form: str) -> None:
    curl.deliver(server, form=form, to=(RECIPIENT, "bob@example.com"), content=TRICKY).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", mechanisms("curl", *MECHANISMS, "OAUTHBEARER"))
@pytest.mark.parametrize("form", forms("curl"))
def test_authentication(serving: Serving, curl: Curl, form: str, mechanism: str, initial_response: bool) -> None:
    more = [*credential(mechanism, secret_of(mechanism)), *(["--sasl-ir"] if initial_response else [])]
    with serving(auth_methods=[mechanism]) as server:
        curl.deliver(server, *more, form=form).expect_success()
        delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.lived_with("curl", "With a token it takes OAUTHBEARER where it can, also if it is told AUTH=XOAUTH2.")
@pytest.mark.parametrize("mechanism", mechanisms("curl", "OAUTHBEARER"))
def test_which_mechanism_it_takes_for_a_token(server: Server, curl: Curl, mechanism: str) -> None:
    curl.deliver(server, *credential("XOAUTH2", secret_of("XOAUTH2"))).expect_success()
    assert server.delivery.method == mechanism


@pytest.mark.proves("curl", "a wrong password")
@pytest.mark.parametrize("mechanism", mechanisms("curl", *MECHANISMS, "OAUTHBEARER"))
def test_a_wrong_password_is_refused(server: Server, curl: Curl, mechanism: str) -> None:
    outcome = curl.deliver(server, *credential(mechanism, "wrong"), form=STARTTLS)
    assert outcome.status == LOGIN_DENIED
    assert server.deliveries == []


@pytest.mark.proves("curl", "a refused recipient")
def test_a_refused_recipient_ends_the_delivery(server: Server, curl: Curl) -> None:
    outcome = curl.deliver(server, to=(RECIPIENT, NOBODY))
    assert outcome.status == SEND_ERROR
    assert "550 No such user here" in outcome.output
    assert server.deliveries == []


@pytest.mark.proves("curl", "a refused recipient")
def test_a_refused_recipient_is_allowed_and_the_others_get_the_message(server: Server, curl: Curl) -> None:
    curl.deliver(server, "--mail-rcpt-allowfails", to=(NOBODY, RECIPIENT)).expect_success()
    assert server.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves("curl", "SMTPUTF8")
def test_addresses_in_utf8(server: Server, curl: Curl) -> None:
    curl.deliver(server, sender="jörg@bücher.example", to=("用户@例え.jp",)).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert delivery.smtp_utf8


@pytest.mark.lived_with("curl", "It sends a file as it is: lines that end in LF alone, if the file has such lines.")
def test_a_file_with_unix_line_ends_arrives_with_crlf(server: Server, curl: Curl) -> None:
    # curl sends a file as it is: line feeds alone, here with a dot line that must not end the message.
    text = HEADER.replace(b"\r\n", b"\n") + b"\nfirst\n.\nsecond\n"
    curl.deliver(server, content=text).expect_success()
    # Where a file does not end with CRLF, curl adds one.
    assert server.delivery.content.removesuffix(b"\r\n") == text.replace(b"\n", b"\r\n")


@pytest.mark.proves("curl", "empty messages")
@pytest.mark.parametrize("content", [b".\r\n", b"..\r\n", b".first\r\n", b""], ids=repr)
def test_a_message_that_begins_with_a_dot_or_is_empty(server: Server, curl: Curl, content: bytes) -> None:
    curl.deliver(server, content=content).expect_success()
    assert server.delivery.content in (content, content + b"\r\n")


@pytest.mark.proves("curl", "4 MB")
@pytest.mark.parametrize("form", forms("curl"))
def test_a_big_message(server: Server, curl: Curl, form: str) -> None:
    curl.deliver(server, form=form, content=BIG).expect_success()
    assert server.delivery.content == BIG


@pytest.mark.proves("curl", "a certificate that does not verify")
@pytest.mark.parametrize("form", forms("curl", STARTTLS, IMPLICIT))
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, curl: Curl, authority: Authority, form: str
) -> None:
    outcome = curl.deliver(server, "--cacert", str(authority.stranger), form=form)
    assert outcome.status == NO_CERTIFICATE
    server.expect_problem(HandshakeFailed)


@pytest.mark.proves("curl", "VRFY")
def test_a_question_about_an_address(server: Server, curl: Curl) -> None:
    url = f"smtp://{HOST}:{server.port}"
    outcome = run([program("curl", "curl"), "--silent", "--show-error", "--mail-rcpt", RECIPIENT, url])
    outcome.expect_success()
    assert outcome.output.startswith("252 ")


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", mechanisms("curl", "EXTERNAL"))
@pytest.mark.parametrize("form", forms("curl", STARTTLS, IMPLICIT))
def test_a_login_with_the_clients_certificate(
    certified: Server, curl: Curl, authority: Authority, form: str, mechanism: str, initial_response: bool
) -> None:
    login = ("--cert", str(authority.client), "--user", f"{USER}:", "--login-options", f"AUTH={mechanism}")
    curl.deliver(certified, *login, *(["--sasl-ir"] if initial_response else []), form=form).expect_success()
    assert (certified.delivery.user, certified.delivery.method) == (USER, mechanism)


@pytest.mark.proves("curl", "an authorization identity")
def test_to_act_for_another(serving: Serving, curl: Curl) -> None:
    asked: list[tuple[str, str, str]] = []

    def on_auth(auth: AuthRequest, session: Session) -> bool:
        asked.append((auth.authcid, auth.authzid, auth.password))
        return True

    with serving(on_auth=on_auth) as server:
        login = (*credential("PLAIN", PASSWORD), "--sasl-authzid", "bob")
        curl.deliver(server, *login, form=STARTTLS).expect_success()
        assert len(server.deliveries) == 1
    assert asked == [(USER, "bob", PASSWORD)]


@pytest.mark.proves("curl", "AUTH= on MAIL (RFC 4954 5)", "SIZE")
@pytest.mark.lived_with("curl", "It writes AUTH=<address> on MAIL, where RFC 4954 has the address without brackets.")
def test_who_submitted_it_and_how_big_it_is(serving: Serving, curl: Curl) -> None:
    with serving(size=100_000) as server:
        curl.deliver(server, *credential("PLAIN", PASSWORD), "--mail-auth", "bob@example.org").expect_success()
        sender = server.delivery.envelope.mail_from
        assert sender is not None
        assert sender.args == {"AUTH": "<bob@example.org>", "SIZE": str(len(SIMPLE))}
        curl.deliver(server, content=BIG).expect_failure("552 Error: message exceeds fixed maximum message size")
        assert len(server.deliveries) == 1


@pytest.mark.proves("curl", "PROXY v1")
@pytest.mark.parametrize("form", forms("curl"))
def test_behind_its_own_proxy_header(serving: Serving, curl: Curl, form: str) -> None:
    with serving(use_proxy=[HOST]) as server:
        curl.deliver(server, "--haproxy-protocol", form=form).expect_success()
        assert server.delivery.transmission_type == expected_type(form)


@pytest.mark.proves("curl", "HELP", "EXPN")
def test_a_command_of_ones_choice(serving: Serving) -> None:
    def on_expn(name: str, session: Session) -> list[str]:
        return [f"<ann@{name}.example>", f"<bob@{name}.example>"]

    with serving(on_expn=on_expn) as server:
        ask = [program("curl", "curl"), "--silent", "--show-error", f"smtp://{HOST}:{server.port}"]
        assert "\r\n250 <bob@friends.example>" in run([*ask, "-X", "EXPN", "--mail-rcpt", "friends"]).output
        assert run([*ask, "-X", "HELP"]).output.startswith("214")
