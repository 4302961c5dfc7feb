"""swaks, which people test their servers with."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.conftest import Authority, LoopFactory
from interop.peers import (
    BIG,
    FORMS,
    HOST,
    IMPLICIT,
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
    program,
    run,
)
from pillarbox import AuthRequest, HandshakeFailed, ProxyInfo, Session

MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")  # it has no XOAUTH2

# Its exit status says what failed.
NO_RECIPIENT, NO_AUTHENTICATION, NO_TLS = 24, 28, 29


class Swaks:
    """The program, with a file for the message."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self._program = program("swaks", "swaks")
        self._file = folder / "message"
        self._trust = ("--tls-verify", "--tls-ca-path", str(authority.file))

    def deliver(
        self, server: Server, *more: str, form: str = PLAIN, to: str = RECIPIENT, content: bytes = SIMPLE
    ) -> Outcome:
        tls = {PLAIN: (), STARTTLS: ("--tls", *self._trust), IMPLICIT: ("--tls-on-connect", *self._trust)}[form]
        place = ("--server", HOST, "--port", str(server.port_of(form)))
        return self.run(*place, *tls, *more, to=to, content=content)

    def run(self, *more: str, to: str = RECIPIENT, content: bytes = SIMPLE) -> Outcome:
        self._file.write_bytes(content)
        message = ("--from", SENDER, "--to", to, "--data", f"@{self._file}")
        return run([self._program, "--suppress-data", *message, *more])


@pytest.fixture
def swaks(tmp_path: Path, authority: Authority) -> Swaks:
    return Swaks(tmp_path, authority)


@pytest.mark.parametrize("form", FORMS)
def test_a_message_arrives_as_it_was_sent(server: Server, swaks: Swaks, form: str) -> None:
    swaks.deliver(server, form=form, to=f"{RECIPIENT},bob@example.com", content=TRICKY).expect_success()
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content.removesuffix(b"\r\n\r\n") == TRICKY.removesuffix(b"\r\n")  # it may add an empty line
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("form", FORMS)
def test_authentication(server: Server, swaks: Swaks, form: str, mechanism: str) -> None:
    credential = ("--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD)
    swaks.deliver(server, *credential, form=form).expect_success()
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_refused(server: Server, swaks: Swaks, mechanism: str) -> None:
    outcome = swaks.deliver(server, "--auth", mechanism, "--auth-user", USER, "--auth-password", "wrong")
    outcome.expect_failure("535 Invalid username or password")
    assert outcome.status == NO_AUTHENTICATION
    assert server.deliveries == []


def test_a_refused_recipient_is_reported_and_the_others_get_the_message(server: Server, swaks: Swaks) -> None:
    outcome = swaks.deliver(server, to=f"{NOBODY},{RECIPIENT}")
    outcome.expect_success()
    assert "550 No such user here" in outcome.output
    assert server.delivery.rcpt_to == (RECIPIENT,)


def test_refused_recipients_alone_are_an_error(server: Server, swaks: Swaks) -> None:
    outcome = swaks.deliver(server, to=NOBODY)
    outcome.expect_failure("550 No such user here")
    assert outcome.status == NO_RECIPIENT


@pytest.mark.parametrize("form", FORMS)
def test_commands_in_groups(server: Server, swaks: Swaks, form: str) -> None:
    swaks.deliver(server, "--pipeline", form=form, to=f"{RECIPIENT},{NOBODY},bob@example.com").expect_success()
    assert server.delivery.rcpt_to == (RECIPIENT, "bob@example.com")


@pytest.mark.parametrize("form", FORMS)
def test_a_big_message(server: Server, swaks: Swaks, form: str) -> None:
    swaks.deliver(server, form=form, content=BIG).expect_success()
    assert server.delivery.content.removesuffix(b"\r\n\r\n") == BIG.removesuffix(b"\r\n")


def test_helo(server: Server, swaks: Swaks) -> None:
    swaks.deliver(server, "--protocol", "SMTP").expect_success()
    assert server.delivery.transmission_type == "SMTP"


@pytest.mark.parametrize("form", [STARTTLS, IMPLICIT])
def test_a_certificate_that_does_not_verify_is_reported(
    server: Server, swaks: Swaks, authority: Authority, form: str
) -> None:
    outcome = swaks.deliver(server, "--tls-ca-path", str(authority.stranger), form=form)
    assert outcome.status == NO_TLS
    server.expect_problem(HandshakeFailed)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_lmtp_with_a_reply_for_each_recipient(server: Server, swaks: Swaks, unix: bool) -> None:
    place = ("--socket", server.lmtp_path) if unix else ("--server", HOST, "--port", str(server.lmtp_port))
    outcome = swaks.run("--protocol", "LMTP", *place, to=f"{RECIPIENT},full@example.com,bob@example.com")
    assert outcome.output.count("250 OK: message accepted") == 2
    assert outcome.output.count("452 Mailbox full") == 1
    assert server.delivery.transmission_type == "LMTP"


def test_smtp_over_a_unix_socket(server: Server, swaks: Swaks) -> None:
    swaks.run("--socket", server.path).expect_success()
    assert server.delivery.content.startswith(SIMPLE)


# --- What a proxy says of the client

FROM, AT = ("192.0.2.7", 51234), ("198.51.100.1", 25)
FROM6, AT6 = ("2001:db8::7", 51234), ("2001:db8::1", 25)


@pytest.mark.proves("swaks", "PROXY v1", "PROXY v2")
@pytest.mark.parametrize(
    ("version", "family", "source", "destination"),
    [
        ("1", "TCP4", FROM, AT),
        ("1", "TCP6", FROM6, AT6),
        ("2", "AF_INET", FROM, AT),
        ("2", "AF_INET6", FROM6, AT6),
    ],
)
def test_a_proxy_header(
    authority: Authority,
    loop_factory: LoopFactory,
    swaks: Swaks,
    version: str,
    family: str,
    source: tuple[str, int],
    destination: tuple[str, int],
) -> None:
    sessions: list[Session] = []
    places = zip(("source", "dest"), (source, destination), strict=True)
    ends = [
        word
        for end, (address, port) in places
        for word in (f"--proxy-{end}", address, f"--proxy-{end}-port", str(port))
    ]
    with Server(loop_factory, use_proxy=[HOST], on_connect=sessions.append, **authority.options) as server:
        said = ["--proxy-version", version, "--proxy-family", family, *ends]
        swaks.deliver(server, *said).expect_success()
    (session,) = sessions
    assert session.proxy == ProxyInfo(2 if version == "2" else 1)
    assert (session.remote_address, session.remote_port) == source
    assert (session.local_address, session.local_port) == destination


@pytest.mark.proves("swaks", "XCLIENT")
def test_xclient(authority: Authority, loop_factory: LoopFactory, swaks: Swaks) -> None:
    seen: list[tuple[str | None, str | None]] = []
    sessions: list[Session] = []

    def on_connect(session: Session) -> None:
        sessions.append(session)
        seen.append((session.opening_command, session.host_name_appears_as))

    said = [
        "--xclient-helo", "h.example", "--xclient-proto", "SMTP", "--xclient-delim",
        "--xclient-name", "client.example", "--xclient-reverse-name", "r.example", "--xclient-addr", "IPV6:2001:db8::7",
        "--xclient-port", "4711", "--xclient-destaddr", "198.51.100.1", "--xclient-destport", "587",
    ]  # fmt: skip
    with Server(loop_factory, use_xclient=[HOST], on_connect=on_connect, **authority.options) as server:
        swaks.deliver(server, *said).expect_success()
    session = sessions[-1]
    assert seen == [(None, None), ("HELO", "h.example"), (None, None)]
    assert (session.remote_address, session.remote_port) == ("2001:db8::7", 4711)
    assert (session.local_address, session.local_port) == ("198.51.100.1", 587)
    assert session.client_hostname == "client.example"


@pytest.mark.proves("swaks", "XCLIENT LOGIN")
def test_xclient_login(authority: Authority, loop_factory: LoopFactory, swaks: Swaks) -> None:
    def on_auth(auth: AuthRequest, _: Session) -> bool:
        return auth.username == "ann@example.com"

    options = {"use_xclient": [HOST], "auth_optional": False, "on_auth": on_auth}
    with Server(loop_factory, **(options | authority.options)) as server:
        swaks.deliver(server, "--xclient-login", "eve").expect_failure("550")
        swaks.deliver(server, "--xclient-login", "ann@example.com").expect_success()
    assert server.delivery.user == "ann@example.com"
