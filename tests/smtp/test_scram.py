"""SCRAM as transcripts: the RFCs' own exchanges at every split, and each way in which one fails."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox import InvalidCredential, Reject, ScramKeys, Session, TLSInfo
from pillarbox.smtp.sasl import built_in
from scram_client import ScramClient
from transcript import Replay, replay, replay_every_way

OFFERED = ["SCRAM-SHA-256", "SCRAM-SHA-1"]
NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
KEYS = ScramKeys.from_password("pencil", iterations=4096, salt=b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
SHA1 = ScramKeys.from_password("pencil", hash="sha1", iterations=4096, salt=b64decode("QSXCR+Q6sek8bf92"))
QUIT = "C: QUIT\nS: 221 Bye\nX"
OK, FAILED = "S: 235 Authentication successful\n", "S: 535 Invalid username or password\n"
INVALID = "S: 500 Error: invalid userdata\n"
TLS = TLSInfo("TLSv1.3", "x", channel_bindings={"tls-server-end-point": b"the certificate's hash"})


def b64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def hello(*mechanisms: str, tls: bool = False) -> str:
    lines = [
        "",
        "PIPELINING",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "LIMITS RCPTMAX=1000",
        f"AUTH {' '.join(mechanisms)}",
    ]
    lines += [] if tls else ["STARTTLS"]
    said = "".join(f"S: 250{'-' if line != lines[-1] else ' '}{line}\n" for line in lines)
    return "S: 220 mx.test ESMTP\nC: EHLO x\n" + said


@pytest.fixture(autouse=True)
def server_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server choose the nonce of RFC 7677's example."""
    monkeypatch.setattr(secrets, "token_urlsafe", lambda count: NONCE)


def on_scram(username: str, session: Session) -> Any:
    return {"user": [str(SHA1), KEYS], "sha1": SHA1, "a,b=c": KEYS, "über": KEYS}.get(username)


OPTIONS: dict[str, Any] = {"auth_methods": OFFERED, "allow_insecure_auth": True, "on_scram": on_scram}


def asked(client: ScramClient, keys: ScramKeys = KEYS) -> str:
    """Return the server's first message."""
    return b64(f"r={client.nonce}{NONCE},s={b64(keys.salt)},i={keys.iterations}")


def exchange(client: ScramClient, end: str = OK, mechanism: str = "SCRAM-SHA-256", **altered: Any) -> str:
    """Return a whole exchange as a transcript; ``end`` is what is said in the place of 235, or of the signature."""
    challenge = asked(client, SHA1 if client.hash == "sha1" else KEYS)
    final = client.final(challenge, **altered)
    signature = f"S: 334 {b64(client.expected)}\nC: \n" if end.startswith("S: 235") else ""
    return f"C: AUTH {mechanism} {client.first()}\nS: 334 {challenge}\nC: {final}\n{signature}{end}"


def error(value: str, answer: str = "") -> str:
    return f"S: 334 {b64('e=' + value)}\nC: {answer}\n{FAILED}"


# --- What the RFCs show


RFC_7677 = (
    "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
)
RFC_5802 = (
    "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
    "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
    "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("mechanism", "nonce", "said"),
    [("SCRAM-SHA-256", NONCE, RFC_7677), ("scram-sha-1", "3rfcNHYJY1ZVvWVs7j", RFC_5802)],
)
async def test_the_examples_of_the_rfcs_at_every_split(
    monkeypatch: pytest.MonkeyPatch, mechanism: str, nonce: str, said: tuple[str, ...], at_once: bool
) -> None:
    monkeypatch.setattr(secrets, "token_urlsafe", lambda count: nonce)
    first, challenge, final, signature = map(b64, said)
    begin = f"C: AUTH {mechanism} {first}\n" if at_once else f"C: AUTH {mechanism}\nS: 334 \nC: {first}\n"
    text = f"{begin}S: 334 {challenge}\nC: {final}\nS: 334 {signature}\nC: \n{OK}"

    def check(replayed: Replay) -> None:
        assert (replayed.session.user, replayed.session.username) == ("user", "user")

    await replay_every_way(hello(*OFFERED) + text + QUIT, check, **OPTIONS)


# --- Who it is


@pytest.mark.promises("Logins", "SCRAM does not tell an unknown user from a wrong password.")
async def test_a_wrong_password_an_unknown_user_and_a_refusal_look_the_same() -> None:
    wrong = exchange(ScramClient("user", "pen"), error("invalid-proof"))
    await replay_every_way(hello(*OFFERED) + wrong + QUIT, **OPTIONS)
    refused = exchange(ScramClient("user", "pencil"), error("invalid-proof"))
    for on_auth in (lambda *_: None, lambda *_: Reject()):
        await replay(hello(*OFFERED) + refused + QUIT, on_auth=on_auth, **OPTIONS)
    answers: tuple[Any, ...] = (None, [], SHA1, Reject())
    for keys in answers:
        unknown = ScramClient("user", "pencil")
        nobody = ScramKeys.of_nobody("user")
        final = unknown.final(asked(unknown, nobody))
        text = f"C: AUTH SCRAM-SHA-256 {unknown.first()}\nS: 334 {asked(unknown, nobody)}\nC: {final}\n"
        options = {**OPTIONS, "on_scram": lambda *_, keys=keys: keys}
        await replay(hello(*OFFERED) + text + error("invalid-proof") + QUIT, **options)


async def test_on_auth_hears_of_a_proof_and_says_who_that_is() -> None:
    requests = []

    async def on_auth(auth: Any, session: Session) -> Any:
        requests.append(auth)
        return {"id": 7}.items() if auth.verified and auth.validate_password("pencil") else None

    text = exchange(ScramClient("user", "pencil", hash="sha1"), mechanism="SCRAM-SHA-1")
    done = await replay(hello(*OFFERED) + text + QUIT, on_auth=on_auth, **OPTIONS)
    assert (list(done.session.user), done.session.username) == ([("id", 7)], "user")
    [auth] = requests
    assert (auth.method, auth.username, auth.authcid, auth.authzid) == ("SCRAM-SHA-1", "user", "user", "")
    assert (auth.password, auth.access_token, auth.trace, auth.verified) == ("", "", "", True)
    assert not auth.validate_password("pen")


async def test_on_auth_refuses_with_its_own_words() -> None:
    client = ScramClient("user", "pencil")

    def on_auth(auth: Any, session: Session) -> Any:
        raise Reject(535, "Your account is locked")

    text = exchange(client, error("invalid-proof")).replace(FAILED, "S: 535 Your account is locked\n")
    await replay(hello(*OFFERED) + text + QUIT, on_auth=on_auth, **OPTIONS)
    later = exchange(client, "S: 454 Come back later\n")
    await replay(hello(*OFFERED) + later + QUIT, **OPTIONS, on_auth=lambda *_: Reject(454, "Come back later"))
    broken = exchange(client, "S: 454 Temporary authentication failure\n")
    await replay(hello(*OFFERED) + broken + QUIT, **OPTIONS, on_auth=lambda *_: {"user": 1}, on_error=lambda *_: None)


@pytest.mark.parametrize(("authzid", "end"), [("user", OK), ("other", error("invalid-proof"))])
async def test_to_act_as_another_needs_on_auth(authzid: str, end: str) -> None:
    client = ScramClient("user", "pencil", header=f"n,a={authzid},")
    await replay_every_way(hello(*OFFERED) + exchange(client, end) + QUIT, **OPTIONS)
    requests: list[Any] = []

    def on_auth(auth: Any, session: Session) -> Any:
        requests.append(auth)
        return True

    await replay(hello(*OFFERED) + exchange(client) + QUIT, **OPTIONS, on_auth=on_auth)
    assert (requests[0].username, requests[0].authcid, requests[0].authzid) == ("user", "user", authzid)


async def test_names_are_unescaped_and_prepared() -> None:
    await replay(hello(*OFFERED) + exchange(ScramClient("a,b=c", "pencil")) + QUIT, **OPTIONS)
    done = await replay(hello(*OFFERED) + exchange(ScramClient("u\u0308ber", "pencil")) + QUIT, **OPTIONS)
    assert done.session.user == "über"


async def test_on_scram_that_fails() -> None:
    client = ScramClient("user", "pencil")
    begin = f"C: AUTH SCRAM-SHA-256 {client.first()}\n"
    for answer in (7, "pencil", [KEYS, None], {"user": KEYS}):
        problems: list[Exception] = []
        options = {**OPTIONS, "on_scram": lambda *_, answer=answer: answer}
        text = f"{begin}S: 454 Temporary authentication failure\n"
        await replay(hello(*OFFERED) + text + QUIT, **options, on_error=lambda error, _, to=problems: to.append(error))
        assert len(problems) == 1
        assert "pencil" not in str(problems[0])
    options = {**OPTIONS, "on_scram": lambda *_: Reject(454, "The directory is down")}
    await replay(hello(*OFFERED) + f"{begin}S: 454 The directory is down\n" + QUIT, **options)


# --- Messages that are none


@pytest.mark.parametrize(
    "first",
    [
        "", "n", "n,,", "n,,n=user", "n,,r=abc", "n,,r=abc,n=user", "n,,n=user,r=", "n,,n=,r=abc", "n,,n=us=er,r=abc",
        "n,,n=us=2cer,r=abc", "n,,n=us\0er,r=abc", "n,,n=us\ner,r=abc", "n,,n=user,r=a b", "n,,n=user,r=ä",
        "x,,n=user,r=a",
        "n,b=x,n=user,r=abc", "n,a=,n=user,r=abc", "n,a=a=b,n=user,r=abc", "n,a=a\x07,n=user,r=abc", "p,,n=user,r=abc",
        "p=tls-unique,,n=user,r=abc", "p=,,n=user,r=abc", "N,,n=user,r=abc", "n,,n=user,r=abc,", "n,,n=user,r=abc,1=2",
        "n=user,r=abc", "n,,c=biws,r=abc,p=abc",
    ],
)  # fmt: skip
async def test_a_first_message_that_is_none(first: str) -> None:
    text = f"C: AUTH SCRAM-SHA-256 {b64(first) or '='}\n{INVALID}"
    asked_for = f"C: AUTH SCRAM-SHA-256\nS: 334 \nC: {b64(first)}\n{INVALID}"
    await replay(hello(*OFFERED) + text + asked_for + QUIT, **OPTIONS)


async def test_a_first_message_that_is_not_utf8_or_no_base64() -> None:
    invalid = b64(b"n,,n=\xff\xfe,r=abc")
    text = f"C: AUTH SCRAM-SHA-256 {invalid}\n{INVALID}C: AUTH SCRAM-SHA-256 ==\n{INVALID}"
    await replay(hello(*OFFERED) + text + "C: AUTH SCRAM-SHA-256\nS: 334 \nC: n,,n=a\n" + INVALID + QUIT, **OPTIONS)


FINALS: dict[str, Callable[[str], str]] = {
    "nothing": lambda final: "",
    "the first again": lambda final: "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
    "no proof": lambda final: final.rpartition(",")[0],
    "no binding": lambda final: final.partition(",")[2],
    "out of order": lambda final: ",".join(reversed(final.split(","))),
    "behind the proof": lambda final: final + ",x=y",
    "a NUL": lambda final: final.replace(",p=", ",x=\0,p="),
}


@pytest.mark.parametrize("name", FINALS)
async def test_a_final_message_that_is_none(name: str) -> None:
    client = ScramClient("user", "pencil")
    final = FINALS[name](b64decode(client.final(asked(client))).decode())
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {asked(client)}\nC: {b64(final)}\n{INVALID}"
    await replay(hello(*OFFERED) + text + QUIT, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (("c=biws", "c=eSws"), "channel-bindings-dont-match"),  # "y,,"
        (("c=biws", f"c={b64('n,,more')}"), "channel-bindings-dont-match"),
        (("c=biws", "c=!"), "invalid-encoding"),
        (("c=biws", "c=ä"), "invalid-encoding"),
        ((",p=", ",p=!"), "invalid-encoding"),
        ((",p=", ",m=x,p="), "extensions-not-supported"),
        ((",p=", ",x=y,p="), "invalid-proof"),  # what the client did not sign
        (("r=rOp", "r=rOq"), "other-error"),
        (("k0,p", "k,p"), "other-error"),
    ],
)
async def test_what_a_final_message_may_not_say(change: tuple[str, str], value: str) -> None:
    client = ScramClient("user", "pencil")
    final = b64decode(client.final(asked(client))).decode()
    assert change[0] in final
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {asked(client)}\nC: {b64(final.replace(*change))}\n"
    await replay(hello(*OFFERED) + text + error(value) + QUIT, **OPTIONS)


@pytest.mark.parametrize("proof", ["", b64(b"short"), b64(bytes(32)), b64(bytes(33))])
async def test_proofs_that_prove_nothing(proof: str) -> None:
    client = ScramClient("user", "pencil")
    final = b64decode(client.final(asked(client))).decode().rpartition(",p=")[0] + f",p={proof}"
    end = error("invalid-proof") if proof else INVALID
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {asked(client)}\nC: {b64(final)}\n"
    await replay(hello(*OFFERED) + text + end + QUIT, **OPTIONS)


async def test_a_proof_with_octets_behind_it() -> None:
    client = ScramClient("user", "pencil")
    final, _, proof = b64decode(client.final(asked(client))).decode().rpartition(",p=")
    longer = b64(f"{final},p={b64(b64decode(proof) + b'x')}")
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {asked(client)}\nC: {longer}\n"
    await replay(hello(*OFFERED) + text + error("invalid-proof") + QUIT, **OPTIONS)


async def test_extensions_that_nobody_must_know_are_ignored() -> None:
    client = ScramClient("user", "pencil", extensions=",x=yes,z=no")
    await replay(hello(*OFFERED) + exchange(client) + QUIT, **OPTIONS)
    for bare in ("m=x,n=user,r=abc", "n=user,r=abc,m=x"):
        text = f"C: AUTH SCRAM-SHA-256 {b64('n,,' + bare)}\n" + error("extensions-not-supported")
        await replay(hello(*OFFERED) + text + QUIT, **OPTIONS)


@pytest.mark.parametrize("name", ["\u00ad", "\u0627" + "1", "a\u2ff0"])
async def test_a_name_that_cannot_be_prepared(name: str) -> None:
    text = f"C: AUTH SCRAM-SHA-256 {ScramClient(name, 'pencil').first()}\n" + error("invalid-username-encoding", "*")
    await replay(hello(*OFFERED) + text + QUIT, **OPTIONS)


@pytest.mark.promises("Logins", "An exchange of SCRAM cannot be said again.")
async def test_an_old_exchange_cannot_be_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ScramClient("user", "pencil")
    old = client.final(asked(client))
    monkeypatch.setattr(secrets, "token_urlsafe", lambda count: "another nonce".center(18, "+").replace(" ", "-"))
    challenge = b64(f"r={client.nonce}++another-nonce+++,s={b64(KEYS.salt)},i=4096")
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {challenge}\nC: {old}\n"
    await replay(hello(*OFFERED) + text + error("other-error") + QUIT, **OPTIONS)
    # Nor a message of a client that repeats an old nonce as its own.
    final = b64(b64decode(client.final(challenge)).decode().replace("++another-nonce+++", NONCE))
    text = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {challenge}\nC: {final}\n"
    await replay(hello(*OFFERED) + text + error("other-error") + QUIT, **OPTIONS)


async def test_an_asterisk_aborts_at_each_step() -> None:
    aborted = "C: *\nS: 501 Authentication aborted\n"
    client = ScramClient("user", "pencil")
    begin = f"C: AUTH SCRAM-SHA-256 {client.first()}\nS: 334 {asked(client)}\n"
    final = f"C: {client.final(asked(client))}\nS: 334 {b64(client.expected)}\n"
    text = f"C: AUTH SCRAM-SHA-256\nS: 334 \n{aborted}{begin}{aborted}{begin}{final}{aborted}"

    def check(replayed: Replay) -> None:
        # who does not believe the server's signature has not logged in
        assert (replayed.session.user, replayed.session.username) == (None, None)

    await replay_every_way(hello(*OFFERED) + text + QUIT, check, **OPTIONS)
    more = f"{begin}{final}C: {b64('more')}\n{INVALID}C: MAIL FROM:<a@b>\nS: 530\n"
    await replay(hello(*OFFERED) + more + QUIT, **OPTIONS, auth_optional=False)


# --- Channel binding


PLUS = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN"]
BOUND = "p=tls-server-end-point,,"
HASH = TLS.channel_bindings["tls-server-end-point"]


def under_tls(tls: TLSInfo = TLS, **facts: Any) -> Session:
    session = Session(remote_address="192.0.2.1", secure=True)
    session.tls = tls
    session.x_client.update(facts)
    return session


async def replay_plus(text: str, offered: list[str] = PLUS, tls: TLSInfo = TLS, **facts: Any) -> Replay:
    session = under_tls(tls, **facts)
    return await replay(hello(*offered, tls=True) + text + QUIT, session=session, auth_methods=PLUS, on_scram=on_scram)


async def test_a_login_that_is_bound_to_the_connection() -> None:
    client = ScramClient("user", "pencil", header=BOUND, binding=HASH)
    done = await replay_plus(exchange(client, mechanism="SCRAM-SHA-256-PLUS"))
    assert done.session.user == "user"


@pytest.mark.parametrize("bound", [b"", BOUND.encode(), BOUND.encode() + b"another's hash", b"n,,", HASH])
async def test_a_login_that_is_bound_to_another_connection(bound: bytes) -> None:
    client = ScramClient("user", "pencil", header=BOUND)
    end = error("channel-bindings-dont-match") if bound else INVALID
    await replay_plus(exchange(client, end, "SCRAM-SHA-256-PLUS", bound=bound))


@pytest.mark.parametrize("kind", ["tls-unique", "tls-exporter", "nonsense"])
async def test_a_channel_binding_that_there_is_not(kind: str) -> None:
    client = ScramClient("user", "pencil", header=f"p={kind},,")
    await replay_plus(f"C: AUTH SCRAM-SHA-256-PLUS {client.first()}\n" + error("unsupported-channel-binding-type", "*"))


async def test_a_client_that_was_told_of_no_plus_notices_the_downgrade() -> None:
    client = ScramClient("user", "pencil", header="y,,")
    await replay_plus(f"C: AUTH SCRAM-SHA-256 {client.first()}\n" + error("server-does-support-channel-binding"))
    # Where there is none to offer, "y" is the truth.
    await replay(hello(*OFFERED) + exchange(client) + QUIT, **OPTIONS)
    await replay_plus(exchange(client), PLUS[1:], TLSInfo("TLSv1.3", "x"))
    # And "n" is said by a client that can do without.
    await replay_plus(exchange(ScramClient("user", "pencil")))


@pytest.mark.parametrize("header", ["n,,", "y,,"])
async def test_plus_without_a_binding(header: str) -> None:
    first = ScramClient("user", "pencil", header=header).first()
    await replay_plus(f"C: AUTH SCRAM-SHA-256-PLUS {first}\n{INVALID}")


async def test_plus_is_offered_where_there_is_a_binding() -> None:
    refused = "C: AUTH SCRAM-SHA-256-PLUS\nS: 504 Error: Unrecognized authentication type\n"
    await replay_plus(refused, PLUS[1:], TLSInfo("TLSv1.3", "x"))
    options = {**OPTIONS, "auth_methods": PLUS}
    await replay(hello(*PLUS[1:]) + refused + QUIT, **options)
    await replay_plus(refused, PLUS[1:], ADDR="192.0.2.7")  # the connection is a proxy's


# --- Whatever a client says


class Deaf:
    """An exchange whose client says these messages, whatever it is asked."""

    host = "mx.test"
    offered = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")

    def __init__(self, *messages: bytes) -> None:
        self.session = under_tls()
        self.messages = list(messages)
        self.told: list[bytes] = []

    async def challenge(self, octets: bytes) -> bytes:
        self.told.append(octets)
        return self.messages.pop(0) if self.messages else b""

    async def tell(self, octets: bytes) -> None:
        self.told.append(octets)

    async def verify(self, request: Any) -> object:
        raise AssertionError(f"nobody has proven anything, and yet {request}")

    async def scram_keys(self, username: str) -> list[ScramKeys]:
        assert username
        return [KEYS]


PIECES = [
    "n",
    "y",
    "p",
    "=",
    ",",
    "a=",
    "n=",
    "r=",
    "m=",
    "c=",
    "p=tls-server-end-point",
    "biws",
    "user",
    "\0",
    "ä",
    "=2C",
]
MESSAGES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda parts: "".join(parts).encode()),
    st.lists(st.sampled_from(PIECES), max_size=6).map(lambda parts: ("n,,n=user,r=abc," + "".join(parts)).encode()),
    st.just(b"n,,n=user,r=abc"),
)


@given(name=st.sampled_from(["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1"]), first=MESSAGES, final=MESSAGES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_message_breaks_it_or_proves_anything(name: str, first: bytes, final: bytes) -> None:
    exchange = Deaf(final)
    with pytest.raises((InvalidCredential, Reject)) as raised:
        await built_in(name).authenticate(exchange, first)
    if raised.type is Reject:
        assert exchange.told[-1].startswith(b"e=")
