"""TLS and security, each option through a handshake, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from pillarbox import HandshakeFailed, Session, SMTPServer
from support import (
    PLAIN,
    TIMEOUT,
    Client,
    Served,
    ca,
    ca_pem,
    careless,
    issued,
    names_in,
    on_both_loops,
    pem,
    recorded,
    serving,
    trusting,
)

MODES = pytest.mark.parametrize("secure", [False, True], ids=["starttls", "implicit"])


async def under_tls(served: Served, context: ssl.SSLContext, name: str = "localhost") -> Client:
    """Return a client that has said EHLO under TLS, of whichever kind this server has."""
    if served.server.options.secure:
        client = await served.client(context, name)
    else:
        client = await served.hello()
        await client.starttls(context, name)
    await client.ehlo()
    return client


async def refused(served: Served, context: ssl.SSLContext, name: str = "localhost") -> None:
    """The handshake fails, at the latest when the first octets are read (TLS 1.3)."""
    with pytest.raises((OSError, AssertionError)):
        await under_tls(served, context, name)


# --- secure, needs_upgrade, secured


@on_both_loops
async def test_secure_does_the_handshake_before_the_greeting() -> None:
    async with serving(secure=True, name="mx.example.net", **pem()) as served:
        client = await served.connect(trusting())
        assert await client.hear() == "220 mx.example.net ESMTP"
        assert "STARTTLS" not in await client.ehlo()
        assert await client.say("STARTTLS") == "503 Error: TLS already active"
        session = served.server.connections[0]
        assert session.secure
        assert session.transmission_type == "ESMTPS"
        assert await client.deliver() == "250 OK: message queued"
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()


@on_both_loops
async def test_starttls() -> None:
    async with serving(**pem()) as served:
        client = await served.client()
        assert "STARTTLS" in await client.ehlo()
        assert await client.say("STARTTLS now") == "501 Error: syntax: STARTTLS"
        await client.starttls(trusting())
        assert "STARTTLS" not in await client.ehlo()
        assert await client.say("STARTTLS") == "503 Error: TLS already active"
        assert served.server.connections[0].transmission_type == "ESMTPS"
        body = b"x" * 998 + b"\r\n"
        assert await client.deliver(body * 300) == "250 OK: message queued"


@pytest.mark.parametrize("by", ["listen", "serve_socket"])
@on_both_loops
async def test_needs_upgrade(by: str) -> None:
    async with serving(secure=True, needs_upgrade=True, **pem()) as served:
        if by == "listen":
            client = await served.client(trusting())
        else:
            client = await handed_in(served)
            await client.handshake(trusting())
            assert (await client.reply()).code == 220
        await client.ehlo()
        assert served.server.connections[0].transmission_type == "ESMTPS"


async def handed_in(served: Served) -> Client:
    """Accept a connection outside the server and hand it in."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(listening))
        client = await served.connect(address=listening.getsockname())
        accepted, _ = await accepting
    await served.server.serve_socket(accepted)
    return client


async def test_secured_counts_as_secure_without_a_handshake() -> None:
    async with serving(secure=True, secured=True, on_auth=lambda *_: True) as served:
        client = await served.client()
        offered = await client.ehlo()
        assert "STARTTLS" not in offered
        assert "AUTH" in offered
        session = served.server.connections[0]
        assert session.secure
        assert session.tls is None
        assert await client.say("STARTTLS") == "503 Error: TLS already active"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert session.transmission_type == "ESMTPSA"


# --- key, cert, ca, key_password


@MODES
@on_both_loops
async def test_the_self_signed_default(secure: bool) -> None:
    async with serving(secure=secure) as served:
        client = await under_tls(served, careless())
        assert names_in(client) == {"localhost"}
        await refused(served, trusting())


@pytest.mark.parametrize("form", ["text", "bytes", "path", "path text", "list"])
async def test_key_and_cert_in_every_form(form: str, tmp_path: Path) -> None:
    given: dict[str, Any] = dict(pem("mx.example.net"))
    for option, text in list(given.items()):
        path = tmp_path / option
        path.write_text(text)
        forms = {"text": text, "bytes": text.encode(), "path": path, "path text": str(path), "list": [path]}
        given[option] = forms[form]
    async with serving(**given) as served:
        client = await under_tls(served, trusting(), "mx.example.net")
        assert names_in(client) == {"mx.example.net"}


def encrypted(password: str) -> dict[str, Any]:
    """Return key and cert, the key encrypted."""
    plain = pem()
    key = serialization.load_pem_private_key(plain["key"].encode(), None)
    encryption = serialization.BestAvailableEncryption(password.encode())
    octets = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return {"key": octets.decode(), "cert": plain["cert"]}


async def test_key_password_opens_the_key() -> None:
    async with serving(**encrypted("Zesty"), key_password="Zesty") as served:
        await under_tls(served, trusting())
    with pytest.raises(ValueError, match="key_password"):
        SMTPServer(**encrypted("Zesty"), key_password="wrong")


def presenting(*, by: str) -> ssl.SSLContext:
    """Return a client's context with a certificate of its own."""
    context = trusting()
    issued("ann.example.net", by=by).configure_cert(context)
    return context


@MODES
@on_both_loops
async def test_request_cert_requires_one_that_ca_signed(secure: bool) -> None:
    async with serving(secure=secure, request_cert=True, ca=ca_pem("clients"), **pem()) as served:
        await under_tls(served, presenting(by="clients"))
        tls = served.server.connections[-1].tls
        assert tls is not None
        assert tls.authorized
        assert tls.peer_certificate == ssl.PEM_cert_to_DER_cert(
            issued("ann.example.net", by="clients").cert_chain_pems[0].bytes().decode()
        )
        await refused(served, trusting())
        await refused(served, presenting(by="strangers"))


@MODES
@on_both_loops
async def test_reject_unauthorized_false_lets_in_who_has_none(secure: bool) -> None:
    options = {"request_cert": True, "reject_unauthorized": False, "ca": ca_pem("clients")}
    async with serving(secure=secure, **options, **pem()) as served:
        await under_tls(served, trusting())
        tls = served.server.connections[0].tls
        assert tls is not None
        assert (tls.authorized, tls.peer_certificate) == (False, None)
        await refused(served, presenting(by="strangers"))
    async with serving(secure=secure, **options, **pem()) as served:
        await under_tls(served, presenting(by="clients"))
        tls = served.server.connections[0].tls
        assert tls is not None
        assert tls.authorized


async def test_without_request_cert_none_is_asked_for() -> None:
    async with serving(ca=ca_pem("clients"), **pem()) as served:
        await under_tls(served, presenting(by="clients"))
        tls = served.server.connections[0].tls
        assert tls is not None
        assert tls.peer_certificate is None


# --- ciphers, minimum_tls_version, ssl_context


def at_most(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = trusting()
    context.maximum_version = version
    return context


@on_both_loops
async def test_ciphers_choose_the_suite_of_tls_1_2() -> None:
    async with serving(ciphers="ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384", **pem()) as served:
        await under_tls(served, at_most(ssl.TLSVersion.TLSv1_2))
        tls = served.server.connections[0].tls
        assert tls is not None
        assert tls.version == "TLSv1.2"
        assert tls.cipher.endswith("AES256-GCM-SHA384")
        other = at_most(ssl.TLSVersion.TLSv1_2)
        other.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
        await refused(served, other)


async def test_useless_ciphers_are_an_error_at_construction() -> None:
    with pytest.raises(ValueError, match="option ciphers"):
        SMTPServer(ciphers="NONSENSE")


@MODES
@on_both_loops
async def test_minimum_tls_version(secure: bool) -> None:
    async with serving(secure=secure, minimum_tls_version="TLSv1.3", **pem()) as served:
        await refused(served, at_most(ssl.TLSVersion.TLSv1_2))
        await under_tls(served, trusting())
        assert "TLSv1.3" in [session.tls.version for session in served.server.connections if session.tls]


def old(version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return the context of an old printer."""
    context = careless()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    return context


@pytest.mark.promises("TLS", "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_an_old_client_is_let_in_on_purpose_only() -> None:
    async with serving(minimum_tls_version="TLSv1", **pem()) as served:
        await under_tls(served, old(ssl.TLSVersion.TLSv1_1))
        tls = served.server.connections[0].tls
        assert tls is not None
        assert tls.version == "TLSv1.1"
    async with serving(**pem()) as served:
        await refused(served, old(ssl.TLSVersion.TLSv1_1))


@MODES
@on_both_loops
async def test_ssl_context_takes_the_place_of_the_rest(secure: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued("own.example.net").configure_cert(context)
    async with serving(secure=secure, ssl_context=context) as served:
        client = await under_tls(served, trusting(), "own.example.net")
        assert names_in(client) == {"own.example.net"}
        assert served.server.connections[0].servername == "own.example.net"


# --- Server names


@MODES
@on_both_loops
async def test_sni_options_choose_the_certificate(secure: bool) -> None:
    hosts = {"A.example.net": pem("a.example.net"), "bücher.example": pem("xn--bcher-kva.example")}
    async with serving(secure=secure, sni_options=hosts, **pem("default.example.net")) as served:
        for name in ("a.example.net", "xn--bcher-kva.example", "default.example.net"):
            client = await under_tls(served, trusting(), name)
            assert names_in(client) == {name}
        servernames = {session.servername for session in served.server.connections}
        assert servernames == {"a.example.net", "xn--bcher-kva.example", "default.example.net"}
        other = await under_tls(served, careless(), "other.example.net")
        assert names_in(other) == {"default.example.net"}


@MODES
@on_both_loops
async def test_sni_options_with_authorities_of_their_own(secure: bool) -> None:
    hosts = {
        "a.example.net": {**pem("a.example.net"), "ca": ca_pem("clients of a")},
        "b.example.net": pem("b.example.net"),
    }
    async with serving(secure=secure, request_cert=True, ca=ca_pem("clients"), sni_options=hosts, **pem()) as served:
        await under_tls(served, presenting(by="clients of a"), "a.example.net")
        await under_tls(served, presenting(by="clients"), "b.example.net")
        await refused(served, presenting(by="clients"), "a.example.net")
        await refused(served, presenting(by="clients of a"), "b.example.net")


@MODES
@on_both_loops
async def test_sni_callback(secure: bool) -> None:
    chosen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued("a.example.net").configure_cert(chosen)
    asked = []

    def sni_callback(name: str) -> ssl.SSLContext | None:
        asked.append(name)
        if name == "broken.example.net":
            raise LookupError("the table is gone")
        return chosen if name == "a.example.net" else None

    with recorded(logging.ERROR) as records:
        async with serving(secure=secure, sni_callback=sni_callback, **pem("default.example.net")) as served:
            for name in ("A.example.net", "default.example.net", "broken.example.net"):
                client = await under_tls(served, careless(), name)
                expected = "a.example.net" if name == "A.example.net" else "default.example.net"
                assert names_in(client) == {expected}
    assert asked == ["a.example.net", "default.example.net", "broken.example.net"]
    assert len(records) == 1
    assert "broken.example.net" in records[0].getMessage()


async def test_a_client_without_sni_gets_the_default() -> None:
    async with serving(sni_options={"a.example.net": pem("a.example.net")}, **pem()) as served:
        client = await served.hello()
        await client.starttls(careless(), "127.0.0.1")
        await client.ehlo()
        assert names_in(client) == {"localhost"}
        session = served.server.connections[0]
        assert session.servername is None
        assert session.tls is not None
        assert session.tls.servername is None


# --- handshake_timeout, hide_starttls, allow_insecure_auth


@pytest.mark.promises(
    "TLS", "The handshake has a deadline of its own, which a client that sends in drops does not move."
)
@MODES
@on_both_loops
async def test_handshake_timeout(secure: bool) -> None:
    errors: list[Exception] = []

    def on_error(error: Exception, session: Session) -> None:
        errors.append(error)

    async with serving(secure=secure, handshake_timeout=0.2, on_error=on_error) as served:
        if secure:
            client = await served.connect()
        else:
            client = await served.hello()
            assert await client.say("STARTTLS") == "220 Ready to start TLS"
        await client.eof()
    assert len(errors) == 1


@pytest.mark.parametrize("said", [b"", b"EHLO client.example\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
@on_both_loops
async def test_a_client_that_is_gone_before_its_handshake_begins(said: bytes) -> None:
    errors: list[Exception] = []
    reported = asyncio.Event()

    def on_error(error: Exception, session: Session) -> None:
        errors.append(error)
        reported.set()

    async with serving(secure=True, on_error=on_error, **pem()) as served:
        with socket.create_connection(served.address) as client:  # the event loop sees nothing before all is over
            client.sendall(said)
        await asyncio.wait_for(reported.wait(), TIMEOUT)
        await under_tls(served, trusting())
        assert len(served.server.connections) == 1
    assert [type(error) for error in errors] == [HandshakeFailed]


async def test_hide_starttls_hides_it_alone() -> None:
    async with serving(hide_starttls=True, **pem()) as served:
        client = await served.client()
        assert "STARTTLS" not in await client.ehlo()
        await client.starttls(trusting())
        assert "PIPELINING" in await client.ehlo()


@pytest.mark.promises("Logins", "No login before TLS where STARTTLS is announced, unless allow_insecure_auth is on.")
async def test_allow_insecure_auth() -> None:
    async with serving(on_auth=lambda *_: True) as served:
        client = await served.client()
        assert "AUTH" not in await client.ehlo()
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "538 Error: Must issue a STARTTLS command first"
    async with serving(allow_insecure_auth=True, on_auth=lambda *_: True) as served:
        client = await served.client()
        assert (await client.ehlo())["AUTH"] == "LOGIN PLAIN"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert served.server.connections[0].transmission_type == "ESMTPA"


# --- update_secure_context


@MODES
@on_both_loops
async def test_update_secure_context_on_a_running_server(secure: bool) -> None:
    async with serving(secure=secure, **pem("old.example.net")) as served:
        first = await under_tls(served, trusting(), "old.example.net")
        served.server.update_secure_context(
            **pem("new.example.net"), sni_options={"sni.example.net": pem("sni.example.net")}
        )
        assert await first.deliver() == "250 OK: message queued"  # what is open keeps its own
        assert names_in(first) == {"old.example.net"}
        for name in ("new.example.net", "sni.example.net"):
            assert names_in(await under_tls(served, trusting(), name)) == {name}
        await refused(served, trusting(), "old.example.net")
        with pytest.raises(ValueError, match="option key"):
            served.server.update_secure_context(key="-----BEGIN nothing", cert="-----BEGIN nothing")
        with pytest.raises(ValueError, match="did you mean 'cert'"):
            served.server.update_secure_context(certs="x")
        assert names_in(await under_tls(served, trusting(), "new.example.net")) == {"new.example.net"}


async def test_a_plaintext_client_upgrades_with_the_new_certificate() -> None:
    async with serving(**pem("old.example.net")) as served:
        client = await served.hello()
        served.server.update_secure_context(**pem("new.example.net"))
        await client.starttls(trusting(), "new.example.net")
        await client.ehlo()
        assert names_in(client) == {"new.example.net"}


async def test_a_chain_with_an_intermediate() -> None:
    middle = ca("server").create_child_ca()
    leaf = middle.issue_cert("deep.example.net")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    async with serving(key=leaf.private_key_pem.bytes(), cert=chain) as served:
        await under_tls(served, trusting(), "deep.example.net")
