"""XCLIENT and XFORWARD without sockets: every attribute, what it changes, and that a refusal changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox import AuthRequest, Session
from pillarbox.smtp import xclient
from transcript import Replay, replay, replay_every_way

PEERS: dict[str, Any] = {"use_xclient": ["192.0.2.1"], "use_xforward": ["192.0.2.1"]}
HI, BYE = "S: 220 mx.test ESMTP\n", "C: QUIT\nS: 221 Bye\nX\n"


async def after(*commands: str, **options: Any) -> Session:
    """Return the session after commands that were all accepted."""
    text = HI + "".join(
        f"C: {command}\nS: {answer}\n" for command, _, answer in (c.partition(" -> ") for c in commands)
    )
    return (await replay(text, **{**PEERS, **options})).session


# --- XCLIENT

ACCEPTED = [
    ("NAME=client.example", {"client_hostname": "client.example"}),
    ("name=a_b.example", {"client_hostname": "a_b.example"}),
    ("NAME=x", {"client_hostname": "x"}),
    ("NAME=[UNAVAILABLE]", {"client_hostname": "[192.0.2.1]"}),
    ("NAME=[tempUnavail]", {"client_hostname": "[192.0.2.1]"}),
    ("NAME=[UNAVAILABLE] REVERSE_NAME=liar.example", {"client_hostname": "[192.0.2.1]"}),
    ("ADDR=198.51.100.7", {"remote_address": "198.51.100.7", "client_hostname": "[198.51.100.7]"}),
    ("ADDR=IPV6:2001:DB8::7", {"remote_address": "2001:db8::7", "client_hostname": "[2001:db8::7]"}),
    ("Addr=ipv6:::ffff:198.51.100.7", {"remote_address": "198.51.100.7"}),
    ("ADDR=2001:db8::7", {"remote_address": "2001:db8::7"}),
    # Not the proxy's own: that may be trusted more than a client of which nothing is known.
    ("ADDR=[UNAVAILABLE]", {"remote_address": "", "client_hostname": "[unknown]"}),
    ("ADDR=[UNAVAILABLE] NAME=x.example", {"remote_address": "", "client_hostname": "x.example"}),
    ("PORT=0", {"remote_port": 0}),
    ("PORT=65535", {"remote_port": 65535}),
    ("PORT=[UNAVAILABLE]", {"remote_port": 0}),
    ("DESTADDR=198.51.100.2 DESTPORT=587", {"local_address": "198.51.100.2", "local_port": 587}),
    ("DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]", {"local_address": "", "local_port": 0}),
    ("HELO=h.example PROTO=ESMTP", {"host_name_appears_as": "h.example", "opening_command": "EHLO"}),
    ("HELO=[192.0.2.9] PROTO=smtp", {"host_name_appears_as": "[192.0.2.9]", "opening_command": "HELO"}),
    ("PROTO=LMTP", {"opening_command": "LHLO"}),
    ("HELO=[UNAVAILABLE] PROTO=[UNAVAILABLE]", {"host_name_appears_as": None, "opening_command": None}),
    ("LOGIN=" + "+C3+BC" * 40, {"username": "ü" * 40}),
    ("LOGIN=ann+40example.com", {"username": "ann@example.com", "user": "ann@example.com"}),
    ("LOGIN=[UNAVAILABLE]", {"username": None, "user": None}),
    ("LOGIN=", {"username": None, "user": None}),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "changed"), ACCEPTED, ids=range(len(ACCEPTED)))
async def test_xclient(attributes: str, changed: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []

    def on_connect(session: Session) -> None:
        seen.append({name: getattr(session, name) for name in changed})

    hooks: dict[str, Any] = {"on_connect": on_connect, "on_auth": lambda *_: True}
    session = await after("HELO me -> *", f"XCLIENT {attributes} -> 220", **hooks)
    assert {name: getattr(session, name) for name in changed} == changed
    assert seen[1] == changed  # it is there when on_connect is asked again


REFUSED = [
    "",
    "NAME",
    "NAME=",
    "NAME=a..b",
    "NAME=.a",
    "NAME=a.",
    "NAME=-a.example",
    "NAME=a+20b",
    "NAME=192.0.2.9",
    "NAME=" + "a" * 64,
    "NAME=" + ".".join(["a" * 50] * 6),
    "NAME=gr+C3+BC.example",
    "REVERSE_NAME=a..b",
    "ADDR=",
    "ADDR=[192.0.2.9]",
    "ADDR=IPV6:192.0.2.9",
    "ADDR=fe80::1%25eth0",
    "ADDR=fe80::1%eth0",
    "DESTADDR=here",
    "PORT=",
    "PORT=65536",
    "PORT=+2B5",
    "PORT=\u0663",
    "DESTPORT=x",
    "PROTO=QMQP",
    "PROTO=",
    "HELO=",
    "HELO=a+20b",
    "HELO=" + "a" * 256,
    "LOGIN=" + "a" * 256,
    "LOGIN=a+00b",
    "LOGIN=bob LOGIN=eve",
    "FOO=1",
    "IDENT=1",
    "SOURCE=LOCAL",
    "=",
]  # fmt: skip


def facts(session: Session) -> dict[str, Any]:
    """Return all that a session says, but for its last error."""
    names = [name for name in Session.__slots__ if not name.startswith("_") and name not in ("error", "envelope")]
    return {name: getattr(session, name) for name in names} | {
        "x_client": dict(session.x_client),
        "x_forward": dict(session.x_forward),
        "state": dict(session.state),
        "type": session.transmission_type,
    }


async def refused(command: str) -> tuple[dict[str, Any], dict[str, Any], list[list[str]], list[AuthRequest]]:
    """Say a command in a session of which much is known; return what is known before and after."""
    asked: list[AuthRequest] = []
    known: list[dict[str, Any]] = []

    def on_auth(auth: AuthRequest, _: Session) -> bool:
        asked.append(auth)
        return True

    def on_help(_: str, session: Session) -> None:
        known.append(facts(session))

    conversation = Replay(on_auth=on_auth, on_help=on_help, allow_insecure_auth=True, **PEERS)
    known_before = ["XCLIENT NAME=first.example PORT=5 LOGIN=ann", "EHLO me", "XFORWARD NAME=before.example"]
    said = [*known_before, "HELP", command, "HELP"]
    answers = await conversation.run([f"{line}\r\n".encode("utf-8", "surrogatepass") for line in said])
    assert len(known) == 2
    return known[0], known[1], answers, asked


@pytest.mark.promises("Proxies", "XCLIENT or XFORWARD that is refused changes nothing.")
@pytest.mark.parametrize("attributes", REFUSED, ids=range(len(REFUSED)))
async def test_a_refused_xclient_changes_nothing(attributes: str) -> None:
    for command in (f"XCLIENT {attributes}", f"XCLIENT DESTADDR=198.51.100.1 LOGIN=zoe {attributes}"):
        if not attributes and "DESTADDR" in command:
            continue
        before, now, answers, asked = await refused(command)
        assert answers[5][0].startswith("501 "), answers[5]
        assert now == before
        assert [auth.username for auth in asked] == ["ann"]


VALUES = st.one_of(
    st.sampled_from(["x.example", "192.0.2.9", "IPV6:::1", "25", "ESMTP", "[UNAVAILABLE]", "", "+", "a+20b", "LOCAL"]),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20),
)
NAMES = st.sampled_from([*xclient.XCLIENT, *xclient.XFORWARD, "foo"])
ATTRIBUTES = st.lists(st.tuples(NAMES, VALUES).map("=".join), min_size=1, max_size=4).map(" ".join)


@pytest.mark.promises("Proxies", "XCLIENT or XFORWARD that is refused changes nothing.")
@given(st.sampled_from(["XCLIENT", "XFORWARD"]), ATTRIBUTES)
def test_whatever_is_refused_changes_nothing(verb: str, attributes: str) -> None:
    before, now, answers, _ = asyncio.run(refused(f"{verb} {attributes}"))
    code = answers[5][0][:3]
    assert code in ("220", "250", "500", "501")
    if code in ("500", "501"):
        assert now == before
    elif verb == "XFORWARD":
        assert {**now, "x_forward": None} == {**before, "x_forward": None}


async def test_xclient_in_several_commands() -> None:
    # XCLIENT_README: "To avoid exceeding the limit the client should send the information in multiple XCLIENT commands"
    session = await after(
        "XCLIENT HELO=h.example PROTO=ESMTP LOGIN=ann -> 220",
        "XCLIENT NAME=client.example REVERSE_NAME=r.example -> 220",
        "XCLIENT ADDR=198.51.100.7 PORT=7 -> 220",
        on_auth=lambda *_: True,
    )
    assert (session.remote_address, session.remote_port) == ("198.51.100.7", 7)
    assert session.client_hostname == "client.example"
    # "The SMTP server must not reset attributes that were received with the last XCLIENT command", but the others.
    assert (session.host_name_appears_as, session.opening_command, session.user) == (None, None, None)
    assert session.x_client == {
        "NAME": "client.example",
        "REVERSE_NAME": "r.example",
        "ADDR": "198.51.100.7",
        "PORT": "7",
        "NAME:DEFAULT": "[192.0.2.1]",
        "ADDR:DEFAULT": "192.0.2.1",
        "PORT:DEFAULT": "4000",
    }


async def test_the_originals_are_those_of_the_connection() -> None:
    said = ["XCLIENT PORT=5 NAME=a.example -> 220", "XCLIENT PORT=6 NAME=b.example -> 220"]
    session = await after(*said)
    assert session.x_client == {"PORT": "6", "NAME": "b.example"} | {
        "PORT:DEFAULT": "4000",
        "NAME:DEFAULT": "[192.0.2.1]",
    }
    session = await after(*said, "STARTTLS -> 220")
    assert (session.remote_port, session.client_hostname) == (4000, "[192.0.2.1]")


@pytest.mark.promises(
    "Proxies", "XCLIENT that is accepted begins again with the greeting, and forgets what was said before."
)
async def test_xclient_begins_again_with_the_greeting() -> None:
    text = (
        HI + "C: HELO a\nS: *\nC: XCLIENT HELO=h.example PROTO=ESMTP\nS: 220 mx.test ESMTP\n"
        "C: MAIL FROM:<a@b.cc>\nS: 503 Error: send HELO/EHLO first\n"
        "C: XCLIENT NAME=x.example\nC: HELO b\nS: 220 mx.test ESMTP\nS: 250 mx.test Nice to meet you, x.example\n"
        "C: MAIL FROM:<a@b.cc>\nS: 250\nC: XCLIENT NAME=y.example\nS: 503\nC: RSET\nS: 250\n" + BYE
    )
    await replay_every_way(
        text,
        lambda done: pytest.fail(repr(done.session)) if done.session.client_hostname != "x.example" else None,
        forbid_unauth_pipelining=False,
        **PEERS,
    )


@pytest.mark.promises(
    "TLS", "Nothing said before the handshake counts after it: hello, envelope, login, XCLIENT, XFORWARD."
)
async def test_starttls_undoes_both() -> None:
    session = await after(
        "XFORWARD NAME=f.example -> 250",
        "XCLIENT NAME=x.example PORT=7 DESTADDR=[UNAVAILABLE] HELO=h.example LOGIN=ann -> 220",
        "STARTTLS -> 220",
        on_auth=lambda *_: True,
    )
    assert (session.client_hostname, session.remote_port, session.local_address) == ("[192.0.2.1]", 4000, "")
    assert (session.x_client, session.x_forward) == ({}, {})
    assert (session.host_name_appears_as, session.user) == (None, None)


# --- XFORWARD


@pytest.mark.parametrize(
    ("attribute", "kept"),
    [
        ("NAME=c+2Bd.example", {"NAME": "c+d.example"}),
        ("name=not-in-the-dns", {"NAME": "not-in-the-dns"}),
        ("ADDR=IPv6:2001:DB8::7", {"ADDR": "2001:db8::7"}),
        ("ADDR=[unavailable]", {"ADDR": ""}),
        ("PORT=0", {"PORT": "0"}),
        ("PROTO=QMQP", {"PROTO": "QMQP"}),
        ("PROTO=" + "x" * 64, {"PROTO": "x" * 64}),
        ("HELO=[192.0.2.9]", {"HELO": "[192.0.2.9]"}),
        ("HELO=<a@b>", {"HELO": "?a?b?"}),
        ("IDENT=4B+2FA", {"IDENT": "4B/A"}),
        ("SOURCE=local", {"SOURCE": "LOCAL"}),
        ("SOURCE=REMOTE", {"SOURCE": "REMOTE"}),
    ],
)
async def test_xforward(attribute: str, kept: dict[str, str]) -> None:
    assert (await after(f"XFORWARD {attribute} -> 250 OK")).x_forward == kept


@pytest.mark.promises("Proxies", "XCLIENT or XFORWARD that is refused changes nothing.")
@pytest.mark.parametrize(
    "attribute",
    [
        "NAME=",
        "NAME=a+20b",
        "NAME=gr+C3+BC",
        "NAME=" + "a" * 256,
        "ADDR=client.example",
        "PORT=x",
        "PROTO=" + "x" * 65,
        "PROTO=a+09b",
        "SOURCE=ELSEWHERE",
        "IDENT=",
        "LOGIN=ann",
        "REVERSE_NAME=a.example",
        "DESTADDR=192.0.2.9",
    ],
)
async def test_a_refused_xforward_changes_nothing(attribute: str) -> None:
    before, now, answers, _ = await refused(f"XFORWARD HELO=other.example IDENT=7 {attribute}")
    assert answers[5][0].startswith("501 ")
    assert now == before


async def test_xforward_is_for_one_transaction() -> None:
    seen: list[dict[str, str]] = []

    async def on_data(stream: Any, session: Session) -> None:
        await stream.read()
        seen.append(session.x_forward)

    message = "C: MAIL FROM:<a@b.cc>\nS: 250\nC: RCPT TO:<a@b.cc>\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: 250\n"
    first = "C: XFORWARD NAME=a.example ADDR=192.0.2.9\nS: 250\nC: XFORWARD PORT=7 NAME=[UNAVAILABLE]\nS: 250\n"
    text = (
        HI + "C: HELO x\nS: *\n" + first + message + message
        + "C: XFORWARD NAME=b.example\nS: 250\nC: MAIL FROM:<bad\nS: 501\n" + message  # refused, so not begun
        + "C: XFORWARD NAME=c.example\nS: 250\nC: RSET\nS: 250\n" + message
        + "C: XFORWARD NAME=d.example\nS: 250\nC: HELO x\nS: 250\n" + message + BYE
    )  # fmt: skip
    await replay(text, on_data=on_data, **PEERS)
    assert seen == [{"NAME": "", "ADDR": "192.0.2.9", "PORT": "7"}, {}, {"NAME": "b.example"}, {}, {}]
