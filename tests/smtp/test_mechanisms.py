"""OAUTHBEARER, EXTERNAL, ANONYMOUS and mechanisms of an application's own, as transcripts."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from pillarbox import (
    AuthRequest,
    ConfigurationError,
    InvalidCredential,
    Mechanism,
    Options,
    Reject,
    ScramKeys,
    Session,
    SMTPServer,
    TLSInfo,
)
from pillarbox.optioncheck import AUTH_METHODS
from pillarbox.smtp.sasl import built_in
from support import issued
from transcript import Replay, replay, replay_every_way

QUIT = "C: QUIT\nS: 221 Bye\nX"
OK, FAILED = "S: 235 Authentication successful\n", "S: 535 Invalid username or password\n"
INVALID = "S: 500 Error: invalid userdata\n"
UNKNOWN = "S: 504 Error: Unrecognized authentication type\n"


def b64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode() or "="


def hello(*mechanisms: str, tls: bool = False) -> str:
    auth = [f"AUTH {' '.join(mechanisms)}"] if mechanisms else []
    lines = ["", "PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING", "LIMITS RCPTMAX=1000", *auth, *([] if tls else ["STARTTLS"])]
    said = "".join(f"S: 250{'-' if line != lines[-1] else ' '}{line}\n" for line in lines)
    return "S: 220 mx.test ESMTP\nC: EHLO x\n" + said


class Accounts:
    """An ``on_auth`` that keeps what it was asked, and knows a token."""

    def __init__(self, user: Any = True) -> None:
        self.requests: list[AuthRequest] = []
        self.user = user

    def __call__(self, auth: AuthRequest, session: Session) -> Any:
        self.requests.append(auth)
        return self.user if auth.access_token in ("", "token") else None


def options(*methods: str | Mechanism, **more: Any) -> dict[str, Any]:
    return {"auth_methods": methods, "allow_insecure_auth": True, **more}


def test_each_name_that_the_option_takes_has_its_mechanism() -> None:
    for name in AUTH_METHODS:
        mechanism = built_in(name)
        assert mechanism.name == name
        assert mechanism is built_in(name)


# --- OAUTHBEARER


def bearer(fields: str, header: str = "n,a=user@example.com,") -> str:
    return b64(header + "\x01" + fields.replace("^A", "\x01") + "\x01")


EXAMPLE = bearer("host=server.example.com^Aport=587^Aauth=Bearer token^A")  # the form of RFC 7628 4.3


@pytest.mark.parametrize("at_once", [True, False])
async def test_oauthbearer_at_every_split(at_once: bool) -> None:
    accounts = Accounts()
    begin = f"C: AUTH OAUTHBEARER {EXAMPLE}\n" if at_once else f"C: AUTH OAUTHBEARER\nS: 334 \nC: {EXAMPLE}\n"

    def check(replayed: Replay) -> None:
        assert replayed.session.user == replayed.session.username == "user@example.com"

    await replay_every_way(hello("OAUTHBEARER") + begin + OK + QUIT, check, **options("OAUTHBEARER", on_auth=accounts))
    auth = accounts.requests[0]
    assert (auth.method, auth.username, auth.access_token) == ("OAUTHBEARER", "user@example.com", "token")
    assert auth.properties == {"host": "server.example.com", "port": "587"}
    assert auth.authzid == "user@example.com"
    assert not auth.verified
    assert "token" not in repr(auth)


@pytest.mark.parametrize("answer", ["AQ==", "", "*", "no base64"])
async def test_a_refused_token_is_told_as_json_and_then_as_535(answer: str) -> None:
    told = json.dumps({"status": "invalid_token"})
    text = f"C: AUTH OAUTHBEARER {bearer('auth=bearer  old^A')}\nS: 334 {b64(told)}\nC: {answer}\n{FAILED}"
    await replay(hello("OAUTHBEARER") + text + QUIT, **options("OAUTHBEARER", on_auth=Accounts()))
    own = {"status": "insufficient_scope", "scope": "mail"}

    def on_auth(auth: AuthRequest, session: Session) -> Any:
        raise Reject(535, "Ask for more", data=own)

    text = text.replace(b64(told), b64(json.dumps(own))).replace(FAILED, "S: 535 Ask for more\n")
    await replay(hello("OAUTHBEARER") + text + QUIT, **options("OAUTHBEARER", on_auth=on_auth))
    later = f"C: AUTH OAUTHBEARER {EXAMPLE}\nS: 454 Later\n"
    await replay(hello("OAUTHBEARER") + later + QUIT, **options("OAUTHBEARER", on_auth=lambda *_: Reject(454, "Later")))


async def test_a_token_that_says_itself_whose_it_is() -> None:
    text = f"C: AUTH OAUTHBEARER {bearer('auth=Bearer token^A', 'y,,')}\n"
    accounts = Accounts("ann")
    done = await replay(hello("OAUTHBEARER") + text + OK + QUIT, **options("OAUTHBEARER", on_auth=accounts))
    assert (done.session.user, done.session.username) == ("ann", "ann")
    assert (accounts.requests[0].username, accounts.requests[0].authzid) == ("", "")
    done = await replay(hello("OAUTHBEARER") + text + OK + QUIT, **options("OAUTHBEARER", on_auth=Accounts(7)))
    assert (done.session.user, done.session.username) == (7, None)
    # True means the user name that was sent, and none was.
    failed = "S: 454 Temporary authentication failure\n"
    await replay(hello("OAUTHBEARER") + text + failed + QUIT, **options("OAUTHBEARER", on_auth=Accounts()))


@pytest.mark.parametrize(
    "message",
    [
        b64("\x01"), b64(""), b64("n,,"), b64("n,,\x01\x01"), bearer(""), bearer("auth=^A"), bearer("auth=Basic x^A"),
        bearer("auth=Bearer ^A"), bearer("auth=Bearer token^A", "p=tls-unique,,"), bearer("auth=Bearer token^A", ""),
        b64("n,,\x01auth=Bearer token"), b64("n,,\x01auth=Bearer token\x01"),
        bearer("auth=Bearer a^Aauth=Bearer token^A"),
        bearer("auth=Bearer token^A", "n,a=us=er,"), bearer("auth=Bearer token^A", "n,a=us\x07er,"),
        b64(b"n,,\x01auth=Bearer \xff\x01\x01"), bearer("Auth=Bearer a^AAUTH=Bearer token^A"),
    ],
)  # fmt: skip
async def test_what_is_no_message_of_oauthbearer(message: str) -> None:
    text = f"C: AUTH OAUTHBEARER {message}\n{INVALID}C: AUTH OAUTHBEARER\nS: 334 \nC: *\nS: 501\n"
    await replay(hello("OAUTHBEARER") + text + QUIT, **options("OAUTHBEARER", on_auth=Accounts()))


# --- ANONYMOUS


@pytest.mark.parametrize("trace", ["", "sirhc", "jo@example.com", "jörg", "x" * 255])
async def test_anonymous(trace: str) -> None:
    accounts = Accounts()
    text = f"C: AUTH ANONYMOUS {b64(trace)}\n{OK}"
    done = await replay(hello("ANONYMOUS") + text + QUIT, **options("ANONYMOUS", on_auth=accounts))
    assert done.session.user == "anonymous"
    [auth] = accounts.requests
    assert (auth.method, auth.username, auth.trace, auth.verified) == ("ANONYMOUS", "anonymous", trace, False)
    assert (auth.authcid, auth.authzid, auth.validate_password("")) == ("", "", False)
    text = f"C: AUTH ANONYMOUS\nS: 334 \nC: {b64(trace) if trace else ''}\n{OK}"
    await replay_every_way(hello("ANONYMOUS") + text + QUIT, **options("ANONYMOUS", on_auth=accounts))


@pytest.mark.parametrize("trace", ["x" * 256, "a\0b", "a\nb", b"\xff", "x" * 320 + "@"])
async def test_a_trace_that_is_none(trace: str | bytes) -> None:
    text = f"C: AUTH ANONYMOUS {b64(trace)}\n{INVALID}C: AUTH ANONYMOUS\nS: 334 \nC: *\nS: 501\n"
    await replay(hello("ANONYMOUS") + text + QUIT, **options("ANONYMOUS", on_auth=Accounts()))


async def test_anonymous_and_external_need_on_auth() -> None:
    text = "C: AUTH ANONYMOUS =\nS: 535 Authentication not implemented\n"
    await replay(hello("ANONYMOUS") + text + QUIT, **options("ANONYMOUS"))


# --- EXTERNAL


def certificate(*names: str, common_name: str | None = None) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from support import ca

    leaf = ca("clients").issue_cert(*names, common_name=common_name) if names or common_name else issued("a.example")
    found = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    return found.public_bytes(Encoding.DER)


async def external(text: str, accounts: Any, der: bytes | None, *offered: str, **facts: Any) -> Replay:
    session = Session(remote_address="192.0.2.1", secure=True)
    session.tls = TLSInfo("TLSv1.3", "x", peer_certificate=der, authorized=der is not None)
    session.x_client.update(facts)
    return await replay(
        hello(*offered, tls=True) + text + QUIT, session=session, **options("EXTERNAL", "PLAIN", on_auth=accounts)
    )


BOTH = ("EXTERNAL", "PLAIN")


@pytest.mark.parametrize(
    ("der", "name"),
    [
        (certificate("ann@example.com", "bob@example.com", common_name="Ann"), "ann@example.com"),
        (certificate("host.example.com", common_name="Ann"), "Ann"),
        (certificate("host.example.com", common_name="Jörg"), "Jörg"),
    ],
)
async def test_external_takes_the_name_of_the_certificate(der: bytes, name: str) -> None:
    accounts = Accounts()
    done = await external(f"C: AUTH EXTERNAL =\n{OK}", accounts, der, *BOTH)
    assert done.session.user == done.session.username == name
    await external(f"C: AUTH EXTERNAL\nS: 334 \nC: \n{OK}", accounts, der, *BOTH)
    for auth in accounts.requests:
        assert (auth.method, auth.username, auth.authcid, auth.authzid) == ("EXTERNAL", name, name, "")
        assert (auth.verified, auth.validate_password("")) == (False, False)


async def test_external_as_another() -> None:
    accounts = Accounts()
    done = await external(f"C: AUTH EXTERNAL {b64('other')}\n{OK}", accounts, certificate(common_name="Ann"), *BOTH)
    assert done.session.user == "other"
    [auth] = accounts.requests
    assert (auth.username, auth.authcid, auth.authzid) == ("other", "Ann", "other")


async def test_external_with_a_certificate_that_names_nobody() -> None:
    der = certificate()
    done = await external(f"C: AUTH EXTERNAL =\n{OK}", Accounts("the printer"), der, *BOTH)
    assert (done.session.user, done.session.username) == ("the printer", "the printer")
    await external("C: AUTH EXTERNAL =\nS: 454 Temporary authentication failure\n", Accounts(), der, *BOTH)
    await external(f"C: AUTH EXTERNAL =\n{OK}", Accounts("it"), b"odd, but it verified", *BOTH)


async def test_external_is_offered_where_a_certificate_verified() -> None:
    refused = f"C: AUTH EXTERNAL =\n{UNKNOWN}C: AUTH EXTERNAL\n{UNKNOWN}"
    await external(refused, Accounts(), None, "PLAIN")
    await replay(hello("PLAIN") + refused + QUIT, **options("EXTERNAL", "PLAIN", on_auth=Accounts()))
    # After XCLIENT the certificate is the proxy's, and not that of the client it speaks for.
    await external(refused, Accounts(), certificate(common_name="Ann"), "PLAIN", ADDR="192.0.2.7")


@pytest.mark.parametrize("message", [b"a\0b", b"a\nb", b"\xff"])
async def test_external_with_a_name_that_is_none(message: bytes) -> None:
    await external(f"C: AUTH EXTERNAL {b64(message)}\n{INVALID}", Accounts(), certificate(common_name="Ann"), *BOTH)


# --- One's own


class Otp(Mechanism):
    """A code behind a colon."""

    name = "X-OTP"

    def offered(self, session: Session) -> bool:
        return session.host_name_appears_as == "x"

    async def authenticate(self, exchange: Any, initial: bytes | None) -> object:
        answer = await exchange.challenge(f"Code for {exchange.host}:".encode()) if initial is None else initial
        name, colon, code = answer.decode().partition(":")
        if not colon:
            raise InvalidCredential("no code")
        if code == "bug":
            raise KeyError(name)
        if code == "none":
            return None
        if code == "self":
            return name
        return await exchange.verify(AuthRequest(self.name, name, authcid=name, verified=code == "123"))


async def test_a_mechanism_of_ones_own_at_every_split() -> None:
    prompt = f"C: AUTH x-otp\nS: 334 {b64('Code for mx.test:')}\n"
    text = f"{prompt}C: *\nS: 501\n{prompt}C: {b64('ann')}\n{INVALID}{prompt}C: {b64('ann:123')}\n{OK}"

    def check(replayed: Replay) -> None:
        assert (replayed.session.user, replayed.session.username) == ("ann", "ann")

    own = options(Otp(), "PLAIN")
    await replay_every_way(hello("X-OTP", "PLAIN") + text + QUIT, check, **own)
    done = await replay(hello("X-OTP", "PLAIN") + f"C: AUTH X-OTP {b64('bob:self')}\n{OK}" + QUIT, **own)
    assert (done.session.user, done.session.username) == ("bob", "bob")
    for wrong in ("ann:", "ann:none"):
        answer = FAILED if wrong == "ann:none" else "S: 535 Authentication not implemented\n"
        await replay(hello("X-OTP", "PLAIN") + f"C: AUTH X-OTP {b64(wrong)}\n{answer}" + QUIT, **own)


async def test_a_mechanism_that_fails_is_a_bug_and_not_the_clients_fault() -> None:
    problems: list[Exception] = []
    text = f"C: AUTH X-OTP {b64('ann:bug')}\nS: 454 Temporary authentication failure\nC: NOOP\nS: 250 OK\n"
    await replay(hello("X-OTP") + text + QUIT, **options(Otp(), on_error=lambda error, _: problems.append(error)))
    assert [type(problem) for problem in problems] == [KeyError]


async def test_a_mechanism_that_is_not_offered_is_unknown() -> None:
    text = hello("X-OTP", "PLAIN").replace("EHLO x", "EHLO y").replace("X-OTP ", "")
    await replay(text + f"C: AUTH X-OTP =\n{UNKNOWN}" + QUIT, **options(Otp(), "PLAIN"))
    await replay(hello().replace("EHLO x", "EHLO y") + f"C: AUTH X-OTP =\n{UNKNOWN}" + QUIT, **options(Otp()))


async def test_offered_that_fails_offers_nothing() -> None:
    class Broken(Otp):
        def offered(self, session: Session) -> bool:
            raise LookupError

    await replay(hello("PLAIN") + f"C: AUTH X-OTP =\n{UNKNOWN}" + QUIT, **options(Broken(), "PLAIN"))


async def test_ones_own_may_take_the_place_of_one_that_there_is() -> None:
    class Plain(Otp):
        name = "PLAIN"

    text = f"C: AUTH PLAIN {b64('ann:self')}\n{OK}"
    await replay(hello("PLAIN") + text + QUIT, **options(Plain()))


class Nameless(Otp):
    name = "has spaces"


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ([Otp], "takes objects, not classes: write Otp()"),
        ([Nameless()], "must be 1 to 20 of A-Z, 0-9, - and _ (RFC 4422 3.1), not 'has spaces'"),
        ([Otp(), Otp()], "has two mechanisms with the name X-OTP"),
        ([7], "must be a list of strings"),
        (["SCRAM-SHA256"], "did you mean 'SCRAM-SHA-256'?"),
        ([], "must name a mechanism"),
    ],
)
def test_mechanisms_that_cannot_be(methods: list[Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match="option auth_methods: ") as raised:
        Options(auth_methods=methods)
    assert problem in str(raised.value)


def test_a_file_names_mechanisms_and_holds_none() -> None:
    assert Options.json_schema()["properties"]["auth_methods"]["items"] == {"type": "string"}
    assert Options(auth_methods=["scram-sha-256-plus"]).auth_methods == ("SCRAM-SHA-256-PLUS",)
    assert Options.from_camel_case({"authMethods": ["oauthbearer"]}).auth_methods == ("OAUTHBEARER",)


# --- The handler that SCRAM needs


async def test_scram_without_on_scram_is_an_error_when_it_listens() -> None:
    async with SMTPServer(auth_methods=["PLAIN", "SCRAM-SHA-256"]) as server:
        with pytest.raises(ConfigurationError, match=r"SCRAM-SHA-256 needs the handler on_scram\(\)") as raised:
            await server.listen(0, "127.0.0.1")
        assert raised.value.option == "auth_methods"
        assert server.addresses == []
        await server.listen(0, "127.0.0.1", on_scram=lambda *_: None)
        server.on_scram = lambda *_: None  # type: ignore[method-assign]
        await server.listen(0, "127.0.0.1")
    async with SMTPServer(auth_methods=["SCRAM-SHA-256"], disabled_commands=["AUTH"]) as server:
        await server.listen(0, "127.0.0.1")


async def test_on_scram_as_a_method() -> None:
    class Own(SMTPServer):
        def on_scram(self, username: str, session: Session) -> Any:
            assert super().on_scram(username, session) is not None  # may be awaited, or left out
            return ScramKeys.of_nobody(username)

    async with Own(auth_methods=["SCRAM-SHA-256"]) as server:
        await server.listen(0, "127.0.0.1")
