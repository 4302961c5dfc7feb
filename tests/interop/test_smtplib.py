"""Python's own client, on both event loops."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest
import uvloop

from interop.conftest import Authority, LoopFactory, Serving
from interop.peers import (
    BIG,
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
    Server,
    expected_type,
    forms,
    mechanisms,
    networks,
    secret_of,
)
from pillarbox import HandshakeFailed


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    factory: LoopFactory = request.param
    return factory


@contextmanager
def connected(server: Server, trusted: Path, form: str) -> Iterator[smtplib.SMTP]:
    context = ssl.create_default_context(cafile=trusted)
    if form == IMPLICIT:
        client: smtplib.SMTP = smtplib.SMTP_SSL(HOST, server.tls_port, timeout=30, context=context)
    else:
        client = smtplib.SMTP(HOST, server.port, timeout=30)
    with client:
        if form == STARTTLS:
            client.starttls(context=context)
        yield client


def xoauth2(token: str) -> Callable[[bytes | None], str]:
    """Return the credential as ``auth()`` asks for it: again, and empty, where the server tells of a failure."""

    def answer(challenge: bytes | None = None) -> str:
        return "" if challenge else f"user={USER}\x01auth=Bearer {token}\x01\x01"

    return answer


def only(text: str) -> Callable[[bytes | None], str]:
    """Return what says the same, whatever the server asks."""

    def answer(_challenge: bytes | None = None) -> str:
        return text

    return answer


def oauthbearer(token: str) -> Callable[[bytes | None], str]:
    """Return the credential in the form of RFC 7628; where the server tells of a failure, what that asks for."""

    def answer(challenge: bytes | None = None) -> str:
        return "\x01" if challenge else f"n,a={USER},\x01host={HOST}\x01auth=Bearer {token}\x01\x01"

    return answer


# The mechanisms that it does not bring, written as auth() takes them: the answer to a challenge, or to none yet.
WRITTEN_HERE: dict[str, Callable[[str], Callable[[bytes | None], str]]] = {
    "XOAUTH2": xoauth2,
    "OAUTHBEARER": oauthbearer,
    "EXTERNAL": lambda _: only(USER),
    "ANONYMOUS": lambda _: only("sunday visitor"),
}


def log_in(client: smtplib.SMTP, mechanism: str, secret: str, *, initial_response: bool = True) -> None:
    client.user, client.password = USER, secret  # as login() does
    client.ehlo_or_helo_if_needed()
    own = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login, "CRAM-MD5": client.auth_cram_md5}
    exchange = own[mechanism] if mechanism in own else WRITTEN_HERE[mechanism](secret)
    client.auth(mechanism, exchange, initial_response_ok=initial_response)  # type: ignore[arg-type]


@pytest.mark.proves("smtplib", "8-bit text with dots and long lines unchanged", "several recipients")
@pytest.mark.parametrize("form", forms("smtplib"))
def test_a_message_arrives_as_it_was_sent(server: Server, authority: Authority, form: str) -> None:
    with connected(server, authority.file, form) as client:
        assert client.sendmail(SENDER, [RECIPIENT, "bob@example.com"], TRICKY) == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", mechanisms("smtplib", *MECHANISMS, "OAUTHBEARER"))
@pytest.mark.parametrize("form", forms("smtplib"))
def test_authentication(
    server: Server, authority: Authority, form: str, mechanism: str, initial_response: bool
) -> None:
    secret = secret_of(mechanism)
    with connected(server, authority.file, form) as client:
        log_in(client, mechanism, secret, initial_response=initial_response)
        client.sendmail(SENDER, RECIPIENT, SIMPLE)
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.proves("smtplib", "AUTH CRAM-MD5 chosen of what is offered")
def test_login_chooses_the_strongest_mechanism(server: Server, authority: Authority) -> None:
    with connected(server, authority.file, STARTTLS) as client:
        client.login(USER, PASSWORD)
        client.sendmail(SENDER, RECIPIENT, SIMPLE)
    assert server.delivery.method == "CRAM-MD5"


@pytest.mark.proves("smtplib", "a wrong password")
@pytest.mark.parametrize("mechanism", mechanisms("smtplib", *MECHANISMS, "OAUTHBEARER"))
def test_a_wrong_password_is_refused_and_another_try_may_follow(
    server: Server, authority: Authority, mechanism: str
) -> None:
    with connected(server, authority.file, STARTTLS) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            log_in(client, mechanism, "wrong")
        assert refused.value.smtp_code == 535
        log_in(client, mechanism, secret_of(mechanism))
        client.sendmail(SENDER, RECIPIENT, SIMPLE)
    assert server.delivery.user == USER


@pytest.mark.proves("smtplib", "a refused recipient")
def test_a_refused_recipient_is_reported_and_the_others_get_the_message(server: Server, authority: Authority) -> None:
    with connected(server, authority.file, PLAIN) as client:
        refused = client.sendmail(SENDER, [NOBODY, RECIPIENT], SIMPLE)
    assert refused == {NOBODY: (550, b"No such user here")}
    assert server.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves("smtplib", "a refused recipient")
def test_refused_recipients_alone_are_an_error_and_the_session_goes_on(server: Server, authority: Authority) -> None:
    with connected(server, authority.file, PLAIN) as client:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail(SENDER, [NOBODY], SIMPLE)
        client.sendmail(SENDER, [RECIPIENT], SIMPLE)
    assert server.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves("smtplib", "SMTPUTF8")
def test_addresses_in_utf8(server: Server, authority: Authority) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "jörg@bücher.example", "用户@例え.jp", "Grüße"
    message.set_content("Hallo")
    with connected(server, authority.file, STARTTLS) as client:
        client.send_message(message)
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert delivery.smtp_utf8
    assert "Subject: Grüße\r\n".encode() in delivery.content


@pytest.mark.proves("smtplib", "4 MB")
@pytest.mark.parametrize("form", forms("smtplib"))
def test_a_big_message(server: Server, authority: Authority, form: str) -> None:
    with connected(server, authority.file, form) as client:
        client.sendmail(SENDER, RECIPIENT, BIG)
    assert server.delivery.content == BIG


@pytest.mark.proves("smtplib", "many messages over one connection")
def test_many_messages_over_one_connection(server: Server, authority: Authority) -> None:
    messages = [SIMPLE + b"number %d\r\n" % n for n in range(50)]
    with connected(server, authority.file, STARTTLS) as client:
        for message in messages:
            client.sendmail(SENDER, RECIPIENT, message)
    assert [delivery.content for delivery in server.deliveries] == messages


@pytest.mark.proves("smtplib", "a certificate that does not verify")
@pytest.mark.parametrize("form", forms("smtplib", STARTTLS, IMPLICIT))
def test_a_certificate_that_does_not_verify_ends_the_connection(
    server: Server, authority: Authority, form: str
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError), connected(server, authority.stranger, form):
        pass
    server.expect_problem(HandshakeFailed)


@pytest.mark.proves("smtplib", "LMTP")
@pytest.mark.parametrize("unix", networks("smtplib"))
def test_lmtp(server: Server, unix: bool) -> None:
    with smtplib.LMTP(server.lmtp_path if unix else HOST, 0 if unix else server.lmtp_port) as client:
        client.sendmail(SENDER, RECIPIENT, TRICKY)
    delivery = server.delivery
    assert (delivery.transmission_type, delivery.content) == ("LMTP", TRICKY)


@pytest.mark.proves("smtplib", "LMTP", "a reply for each recipient")
def test_lmtp_refuses_one_recipient_after_the_data(server: Server) -> None:
    with smtplib.LMTP(HOST, server.lmtp_port) as client:
        client.ehlo()
        client.mail(SENDER)
        assert [client.rcpt(name)[0] for name in ("full@example.com", RECIPIENT)] == [250, 250]
        # The client reads one reply for the data; RFC 2033 has one for each recipient.
        replies = [client.data(SIMPLE), client.getreply()]
    assert replies == [(452, b"Mailbox full"), (250, b"OK: message accepted")]


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", mechanisms("smtplib", "ANONYMOUS"))
def test_an_anonymous_login(server: Server, authority: Authority, mechanism: str, initial_response: bool) -> None:
    with connected(server, authority.file, PLAIN) as client:
        log_in(client, mechanism, "", initial_response=initial_response)
        client.sendmail(SENDER, RECIPIENT, SIMPLE)
    assert (server.delivery.user, server.delivery.method) == ("anonymous", mechanism)


@pytest.mark.parametrize("initial_response", [True, False], ids=["at once", "asked"])
@pytest.mark.parametrize("mechanism", mechanisms("smtplib", "EXTERNAL"))
def test_a_login_with_the_clients_certificate(
    certified: Server, authority: Authority, mechanism: str, initial_response: bool
) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    context.load_cert_chain(authority.client)
    with smtplib.SMTP_SSL(HOST, certified.tls_port, timeout=30, context=context) as client:
        log_in(client, mechanism, "", initial_response=initial_response)
        client.sendmail(SENDER, RECIPIENT, SIMPLE)
    assert (certified.delivery.user, certified.delivery.method) == (USER, mechanism)


@pytest.mark.proves("smtplib", "DSN", "8BITMIME", "SIZE")
def test_wishes_for_reports_and_what_the_message_is(serving: Serving, authority: Authority) -> None:
    wishes, reports = (
        ["RET=HDRS", "ENVID=QQ+2B314", "BODY=8BITMIME"],
        ["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;b@c.example"],
    )
    with serving(hide_dsn=False, size=100_000) as server, connected(server, authority.file, PLAIN) as client:
        client.sendmail(SENDER, RECIPIENT, TRICKY, mail_options=wishes, rcpt_options=reports)
        envelope = server.delivery.envelope
    assert envelope.mail_from is not None
    assert envelope.mail_from.args["SIZE"] == str(len(TRICKY))
    assert (envelope.dsn.ret, envelope.dsn.envid, envelope.body_type) == ("HDRS", "QQ+314", "8bitmime")
    assert envelope.rcpt_to[0].dsn.notify == ("SUCCESS", "DELAY")
    assert envelope.rcpt_to[0].dsn.orcpt == ("rfc822", "b@c.example")


@pytest.mark.proves("smtplib", "NOOP", "RSET", "VRFY", "EXPN", "HELP")
def test_questions(serving: Serving, authority: Authority) -> None:
    answers = serving(on_expn=lambda _name, _session: ["<a@b.example>"])
    with answers as server, connected(server, authority.file, PLAIN) as client:
        codes = [client.noop(), client.rset(), client.vrfy(RECIPIENT), client.expn("friends")]
        assert [code for code, _ in codes] == [250, 250, 252, 250]
        assert client.help()
