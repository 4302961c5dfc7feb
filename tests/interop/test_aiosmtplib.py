"""aiosmtplib, the asyncio client: it runs in the test's own loop, the server in its thread."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosmtplib
import pytest

from interop.conftest import Authority, Serving
from interop.peers import (
    BIG,
    FORMS,
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
    secret_of,
)
from pillarbox import HandshakeFailed, Session, TLSInfo


@asynccontextmanager
async def connected(
    server: Server, authority: Authority, form: str, *, own: Path | None = None
) -> AsyncIterator[aiosmtplib.SMTP]:
    context = ssl.create_default_context(cafile=authority.file)
    if own is not None:
        context.load_cert_chain(own)
    client = aiosmtplib.SMTP(
        hostname=HOST,
        port=server.port_of(form),
        use_tls=form == IMPLICIT,
        start_tls=form == STARTTLS,
        tls_context=context,
        timeout=30,
    )
    async with client:
        assert client.transport is not None
        sock = client.transport.get_extra_info("socket")
        yield client
    # The client does not wait for the end of TLS, and has no event for it; the test's loop must not end before.
    async with asyncio.timeout(30):
        while sock.fileno() != -1:
            await asyncio.sleep(0.001)


async def log_in(client: aiosmtplib.SMTP, mechanism: str, secret: str) -> None:
    await client.ehlo()
    exchanges = {
        "PLAIN": client.auth_plain,
        "LOGIN": client.auth_login,
        "CRAM-MD5": client.auth_crammd5,
        "XOAUTH2": client.auth_xoauth2,
    }
    await exchanges[mechanism](USER, secret)


@pytest.mark.proves("aiosmtplib", "8-bit text with dots and long lines unchanged", "several recipients")
@pytest.mark.parametrize("form", forms("aiosmtplib"))
async def test_a_message_arrives_as_it_was_sent(server: Server, authority: Authority, form: str) -> None:
    async with connected(server, authority, form) as client:
        refused, _ = await client.sendmail(SENDER, [RECIPIENT, "bob@example.com"], TRICKY)
    assert refused == {}
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == (SENDER, (RECIPIENT, "bob@example.com"))
    assert delivery.content == TRICKY
    assert (delivery.transmission_type, delivery.user) == (expected_type(form), None)


@pytest.mark.parametrize("mechanism", mechanisms("aiosmtplib"))
@pytest.mark.parametrize("form", forms("aiosmtplib"))
async def test_authentication(server: Server, authority: Authority, form: str, mechanism: str) -> None:
    async with connected(server, authority, form) as client:
        await log_in(client, mechanism, secret_of(mechanism))
        await client.sendmail(SENDER, RECIPIENT, SIMPLE)
    delivery = server.delivery
    assert (delivery.user, delivery.method) == (USER, mechanism)
    assert delivery.transmission_type == expected_type(form, authenticated=True)
    assert delivery.content == SIMPLE


@pytest.mark.proves("aiosmtplib", "a wrong password")
@pytest.mark.parametrize("mechanism", mechanisms("aiosmtplib"))
async def test_a_wrong_password_is_refused(server: Server, authority: Authority, mechanism: str) -> None:
    async with connected(server, authority, STARTTLS) as client:
        with pytest.raises(aiosmtplib.SMTPAuthenticationError) as refused:
            await log_in(client, mechanism, "wrong")
        assert refused.value.code == 535
    assert server.deliveries == []


@pytest.mark.proves("aiosmtplib", "a refused recipient")
async def test_a_refused_recipient_is_reported_and_the_others_get_the_message(
    server: Server, authority: Authority
) -> None:
    async with connected(server, authority, PLAIN) as client:
        refused, _ = await client.sendmail(SENDER, [RECIPIENT, NOBODY], SIMPLE)
    assert {address: response.code for address, response in refused.items()} == {NOBODY: 550}
    assert server.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves("aiosmtplib", "SMTPUTF8")
async def test_addresses_in_utf8(server: Server, authority: Authority) -> None:
    async with connected(server, authority, PLAIN) as client:
        await client.sendmail(
            "jörg@bücher.example", ["用户@例え.jp"], TRICKY, mail_options=["SMTPUTF8", "BODY=8BITMIME"]
        )
    delivery = server.delivery
    assert (delivery.mail_from, delivery.rcpt_to) == ("jörg@bücher.example", ("用户@例え.jp",))
    assert (delivery.smtp_utf8, delivery.content) == (True, TRICKY)


@pytest.mark.proves("aiosmtplib", "4 MB")
@pytest.mark.parametrize("form", forms("aiosmtplib"))
async def test_a_big_message(server: Server, authority: Authority, form: str) -> None:
    async with connected(server, authority, form) as client:
        await client.sendmail(SENDER, RECIPIENT, BIG)
    assert server.delivery.content == BIG


@pytest.mark.proves("aiosmtplib", "many connections at once")
async def test_many_connections_at_once(server: Server, authority: Authority) -> None:
    async def deliver(number: int) -> None:
        async with connected(server, authority, FORMS[number % 3]) as client:
            await client.sendmail(SENDER, f"{number}@example.com", SIMPLE + b"number %d\r\n" % number)

    await asyncio.gather(*map(deliver, range(30)))
    received = {delivery.rcpt_to[0]: delivery.content for delivery in server.deliveries}
    assert received == {f"{number}@example.com": SIMPLE + b"number %d\r\n" % number for number in range(30)}


@pytest.mark.proves("aiosmtplib", "a certificate that does not verify")
async def test_a_certificate_that_does_not_verify_ends_the_connection(server: Server, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.stranger)
    client = aiosmtplib.SMTP(hostname=HOST, port=server.tls_port, use_tls=True, tls_context=context, timeout=30)
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await client.connect()
    await asyncio.to_thread(server.expect_problem, HandshakeFailed)


@pytest.mark.proves("aiosmtplib", "DSN", "8BITMIME", "SIZE")
async def test_wishes_for_reports_and_what_the_message_is(serving: Serving, authority: Authority) -> None:
    wishes, reports = ["RET=FULL", "ENVID=QQ314", "BODY=8BITMIME"], ["NOTIFY=NEVER", "ORCPT=rfc822;b@c.example"]
    with serving(hide_dsn=False, size=100_000) as server:
        async with connected(server, authority, PLAIN) as client:
            await client.sendmail(SENDER, RECIPIENT, TRICKY, mail_options=wishes, rcpt_options=reports)
        envelope = server.delivery.envelope
    assert envelope.mail_from is not None
    assert envelope.mail_from.args["SIZE"] == str(len(TRICKY))
    assert (envelope.dsn.ret, envelope.dsn.envid, envelope.body_type) == ("FULL", "QQ314", "8bitmime")
    assert envelope.rcpt_to[0].dsn.notify == ("NEVER",)
    assert envelope.rcpt_to[0].dsn.orcpt == ("rfc822", "b@c.example")


@pytest.mark.proves("aiosmtplib", "a client's certificate")
@pytest.mark.parametrize("form", forms("aiosmtplib", STARTTLS, IMPLICIT))
async def test_a_clients_certificate(serving: Serving, authority: Authority, form: str) -> None:
    shown: list[bool] = []

    def on_secure(tls: TLSInfo, session: Session) -> None:
        shown.append(tls.authorized)

    with serving(request_cert=True, ca=authority.file.read_bytes(), on_secure=on_secure) as server:
        async with connected(server, authority, form, own=authority.client) as client:
            await client.sendmail(SENDER, RECIPIENT, SIMPLE)
        assert len(server.deliveries) == 1
    assert shown == [True]
