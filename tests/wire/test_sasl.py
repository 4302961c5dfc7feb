"""Logins that depend on the connection: channel binding, client certificates, and what a log says of any login."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from pillarbox import AuthRequest, Mechanism, ScramKeys, Session, SMTPServer
from scram_client import ScramClient
from support import (
    Client,
    Served,
    b64,
    ca,
    ca_pem,
    careless,
    issued,
    on_both_loops,
    pem,
    recorded,
    serving,
    trusting,
)

KEYS = ScramKeys.from_password("pencil", iterations=4096)
PLUS: dict[str, Any] = {
    "auth_methods": ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"],
    "on_scram": lambda name, _: {"ann": KEYS}.get(name),
}
MODES = pytest.mark.parametrize("secure", [False, True], ids=["starttls", "implicit"])


async def under_tls(served: Served, context: ssl.SSLContext, name: str = "localhost") -> tuple[Client, list[str]]:
    """Return a client under TLS, and the mechanisms that it is offered."""
    if served.server.options.secure:
        client = await served.client(context, name)
    else:
        client = await served.hello()
        await client.starttls(context, name)
    return client, (await client.ehlo()).get("AUTH", "").split()


def at_most(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = careless()
    context.maximum_version = version
    return context


def sent_hash(client: Client) -> bytes:
    """Return RFC 5929's hash of the certificate that the client was shown."""
    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    certificate = x509.load_der_x509_certificate(der)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    return certificate.fingerprint(hashes.SHA256())


async def log_in(client: Client, scram: ScramClient, mechanism: str) -> str:
    challenge = await client.command(f"AUTH {mechanism} {scram.first()}")
    if challenge.code != 334:
        return str(challenge)
    signature = await client.command(scram.final(challenge.lines[0]))
    if signature.code != 334 or not scram.believes(signature.lines[0]):
        await client.send(b"\r\n")
        return f"{signature} {await client.hear()}"
    return await client.say("")


def bound(kind: str, data: bytes, password: str = "pencil") -> ScramClient:
    return ScramClient("ann", password, header=f"p={kind},,", binding=data)


# --- SCRAM


async def test_on_scram_gives_the_keys_of_a_user() -> None:
    asked = []

    class Own(SMTPServer):
        async def on_scram(self, username: str, session: Session) -> Any:
            asked.append(username)
            return await super().on_scram(username, session) or ([str(KEYS)] if username == "ann" else None)

    async with serving(Own, allow_insecure_auth=True, auth_methods=["SCRAM-SHA-256", "SCRAM-SHA-1"]) as served:
        client = await served.client()
        assert (await client.ehlo())["AUTH"] == "SCRAM-SHA-256 SCRAM-SHA-1"
        assert (await log_in(client, ScramClient("ann", "wrong"), "SCRAM-SHA-256")).endswith(
            " 535 Invalid username or password"
        )
        assert (await log_in(client, ScramClient("bob", "pencil"), "SCRAM-SHA-256")).endswith(
            " 535 Invalid username or password"
        )
        assert await log_in(client, ScramClient("ann", "pencil"), "SCRAM-SHA-256") == "235 Authentication successful"
        assert served.server.connections[0].user == "ann"
        assert await client.deliver() == "250 OK: message queued"
    assert asked == ["ann", "bob", "ann"]


@pytest.mark.promises("Logins", "An exchange of SCRAM cannot be said again.")
async def test_each_exchange_has_a_nonce_of_its_own() -> None:
    async with serving(allow_insecure_auth=True, **PLUS) as served:
        client = await served.hello()
        challenges = set()
        for _ in range(5):
            challenges.add(str(await client.command(f"AUTH SCRAM-SHA-256 {ScramClient('ann', 'x').first()}")))
            assert (await client.command("*")).code == 501
        assert len(challenges) == 5


@MODES
@on_both_loops
async def test_a_login_is_bound_to_the_certificate_that_was_sent(secure: bool) -> None:
    hosts = {"a.example.net": pem("a.example.net"), "*.b.example.net": pem("x.b.example.net")}
    async with serving(secure=secure, sni_options=hosts, **pem(), **PLUS) as served:
        for name in ("localhost", "a.example.net", "x.b.example.net"):
            client, offered = await under_tls(served, trusting(), name)
            assert offered == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
            other = hashes.Hash(hashes.SHA256()).finalize()
            answer = await log_in(client, bound("tls-server-end-point", other), "SCRAM-SHA-256-PLUS")
            assert answer == f"334 {b64('e=channel-bindings-dont-match')} 535 Invalid username or password"
            scram = bound("tls-server-end-point", sent_hash(client))
            assert await log_in(client, scram, "SCRAM-SHA-256-PLUS") == "235 Authentication successful"
            assert "AUTH" not in await client.ehlo()


@on_both_loops
async def test_the_certificate_made_for_want_of_one_and_a_new_one() -> None:
    async with serving(**PLUS) as served:
        client, _ = await under_tls(served, careless())
        scram = bound("tls-server-end-point", sent_hash(client))
        assert await log_in(client, scram, "SCRAM-SHA-256-PLUS") == "235 Authentication successful"
        served.server.update_secure_context(**pem("localhost"))
        client, _ = await under_tls(served, trusting())
        assert sent_hash(client) != scram.binding
        scram = bound("tls-server-end-point", sent_hash(client))
        assert await log_in(client, scram, "SCRAM-SHA-256-PLUS") == "235 Authentication successful"


@on_both_loops
async def test_tls_unique_under_tls_1_2_alone() -> None:
    async with serving(**pem(), **PLUS) as served:
        for version, end in ((ssl.TLSVersion.TLSv1_2, "235 Authentication successful"), (ssl.TLSVersion.TLSv1_3, "")):
            client, _ = await under_tls(served, at_most(version))
            data = client.writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
            answer = await client.command(f"AUTH SCRAM-SHA-256-PLUS {bound('tls-unique', data).first()}")
            if not end:
                assert answer.lines == [b64("e=unsupported-channel-binding-type")]
                continue
            assert (await client.command("*")).code == 501
            assert await log_in(client, bound("tls-unique", data), "SCRAM-SHA-256-PLUS") == end
            assert set(_tls(served).channel_bindings) == {"tls-unique", "tls-server-end-point"}
            assert "binding" not in repr(_tls(served))


def _tls(served: Served) -> Any:
    return served.server.connections[0].tls


@on_both_loops
async def test_where_nobody_knows_which_certificate_was_sent() -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued("localhost").configure_cert(own)
    other = ca("server").issue_cert("localhost", key_type=trustme.KeyType.RSA)
    several = {
        "key": [pem()["key"], other.private_key_pem.bytes()],
        "cert": [pem()["cert"], other.cert_chain_pems[0].bytes()],
    }
    for options in ({"ssl_context": own}, several):
        async with serving(**PLUS, **options) as served:
            client, offered = await under_tls(served, careless())
            assert offered == ["SCRAM-SHA-256"]
            assert await client.say("AUTH SCRAM-SHA-256-PLUS") == "504 Error: Unrecognized authentication type"
            # So "y" is no downgrade.
            scram = ScramClient("ann", "pencil", header="y,,")
            assert await log_in(client, scram, "SCRAM-SHA-256") == "235 Authentication successful"
            client, offered = await under_tls(served, at_most(ssl.TLSVersion.TLSv1_2))
            assert offered == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]  # by tls-unique
            bindings = [set(session.tls.channel_bindings) for session in served.server.connections if session.tls]
            assert sorted(bindings, key=len) == [set(), {"tls-unique"}]


async def test_a_downgrade_is_noticed() -> None:
    async with serving(**pem(), **PLUS) as served:
        client, _ = await under_tls(served, trusting())
        first = ScramClient("ann", "pencil", header="y,,").first()
        answer = await client.command(f"AUTH SCRAM-SHA-256 {first}")
        assert answer.lines == [b64("e=server-does-support-channel-binding")]
        assert await client.say("AA==") == "535 Invalid username or password"


# --- EXTERNAL


def presenting(*names: str, common_name: str | None = None) -> ssl.SSLContext:
    context = trusting()
    ca("clients").issue_cert(*names, common_name=common_name).configure_cert(context)
    return context


@MODES
@on_both_loops
async def test_external_with_a_client_certificate(secure: bool) -> None:
    requests: list[AuthRequest] = []

    def on_auth(auth: AuthRequest, session: Session) -> bool:
        requests.append(auth)
        return True

    options = {"request_cert": True, "reject_unauthorized": False, "ca": ca_pem("clients"), "on_auth": on_auth}
    async with serving(secure=secure, auth_methods=["EXTERNAL", "PLAIN"], **options, **pem()) as served:
        client, offered = await under_tls(served, presenting("ann@example.com"))
        assert offered == ["EXTERNAL", "PLAIN"]
        assert await client.say("AUTH EXTERNAL =") == "235 Authentication successful"
        assert served.server.connections[0].user == "ann@example.com"
        client, offered = await under_tls(served, presenting("host.example.com", common_name="Ann"))
        assert (await client.command("AUTH EXTERNAL")).code == 334
        assert await client.say(b64("bob")) == "235 Authentication successful"
        client, offered = await under_tls(served, trusting())
        assert offered == ["PLAIN"]
        assert await client.say("AUTH EXTERNAL =") == "504 Error: Unrecognized authentication type"
    seen = [(auth.method, auth.username, auth.authcid, auth.authzid) for auth in requests]
    assert seen == [("EXTERNAL", "ann@example.com", "ann@example.com", ""), ("EXTERNAL", "Ann", "Ann", "bob")]


async def test_after_xclient_the_connection_is_not_the_clients() -> None:
    options = {"request_cert": True, "ca": ca_pem("clients"), "use_xclient": ["127.0.0.1"], "on_auth": lambda *_: True}
    methods = {"auth_methods": ["EXTERNAL", *PLUS["auth_methods"]], "on_scram": PLUS["on_scram"]}
    async with serving(**methods, **options, **pem()) as served:
        client, offered = await under_tls(served, presenting("ann@example.com"))
        assert offered == ["EXTERNAL", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
        assert (await client.command("XCLIENT ADDR=192.0.2.7")).code == 220
        assert (await client.ehlo())["AUTH"] == "SCRAM-SHA-256"
        scram = ScramClient("ann", "pencil", header="y,,")
        assert await log_in(client, scram, "SCRAM-SHA-256") == "235 Authentication successful"


# --- One's own


class Cancelled(Mechanism):
    """Awaits something that was cancelled, which is a failure of its own and not the end of the connection."""

    name = "X-CANCELLED"

    async def authenticate(self, exchange: Any, initial: bytes | None) -> object:
        raise asyncio.CancelledError


@on_both_loops
async def test_a_mechanism_that_was_cancelled_leaves_the_connection_alone() -> None:
    problems = []
    options = {"auth_methods": [Cancelled()], "on_error": lambda error, _: problems.append(error)}
    async with serving(allow_insecure_auth=True, **options) as served:
        client = await served.hello()
        assert await client.say("AUTH X-CANCELLED") == "454 Temporary authentication failure"
        assert await client.say("NOOP") == "250 OK"
    assert [type(problem) for problem in problems] == [asyncio.CancelledError]


# --- What a log says


class Secretive(Mechanism):
    name = "X-OWN"

    async def authenticate(self, exchange: Any, initial: bytes | None) -> object:
        await exchange.challenge(b"a secret of the server's")
        return "ann"


@pytest.mark.promises(
    "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
)
@pytest.mark.parametrize("password", ["pencil", "wrong"])
async def test_no_log_holds_what_a_password_could_be_tried_on(password: str) -> None:
    token = b64("n,a=ann,\1auth=Bearer t0ken\1\1")
    methods = [*PLUS["auth_methods"], "OAUTHBEARER", Secretive()]
    scram = ScramClient("ann", password)
    with recorded(logging.DEBUG) as records:
        async with serving(allow_insecure_auth=True, auth_methods=methods, on_scram=PLUS["on_scram"]) as served:
            client = await served.hello()
            await log_in(client, scram, "SCRAM-SHA-256")
            client = await served.hello()
            assert (await client.command(f"AUTH OAUTHBEARER {token}")).code == 334
            await client.close()
            client = await served.hello()
            await client.command("AUTH X-OWN")
            assert await client.say("") == "235 Authentication successful"
    text = "\n".join(logging.Formatter().format(record) + repr(record.__dict__) for record in records)
    said = ["t0ken", token, b64(scram.expected), b64(KEYS.salt)[:-2], b64("a secret of the server's"), scram.first()]
    assert [secret for secret in said if secret in text] == []
    assert repr(KEYS.stored_key) not in text
    # That it failed, and who it was, is told also of a client that hangs up as soon as it knows.
    messages = [record.getMessage() for record in records]
    assert messages.count("authentication failed for ann") == (1 if password == "pencil" else 2)
