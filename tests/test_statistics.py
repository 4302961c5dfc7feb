"""What a server counts is what its clients did: each number is made by a real client over a socket."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pillarbox import AuthRequest, MessageStream, Recipient, Reject, Reply, Session, SMTPServer, Statistics
from support import PLAIN, TIMEOUT, Client, Inbox, Served, careless, pem, serving


async def until(true: Callable[[], bool]) -> None:
    """Return when it is true: the server counts the end of a session when it has noticed it."""
    async with asyncio.timeout(TIMEOUT):
        while not true():
            await asyncio.sleep(0.001)


async def left(served: Served, client: Client) -> None:
    """Let the only client go, and return when the server has counted its session."""
    await client.close()
    await until(lambda: not served.server._connections.all)


# --- A usual session


async def test_a_message_is_counted_with_its_commands_replies_octets_and_times() -> None:
    body = b"Subject: test\r\n\r\nHello\r\n..dot\r\n"
    async with serving(on_data=Inbox()) as served:
        client = await served.hello()
        await client.deliver(body, "a@example.com", "b@example.com")
        statistics = served.server.statistics
        assert statistics is served.server.statistics
        assert (statistics.connections, statistics.open_connections, statistics.recipients) == (1, 1, 2)
        assert statistics.messages == {"accepted": 1, "refused": 0, "deferred": 0, "aborted": 0}
        assert statistics.message_bytes == len(body) - 1
        done = {verb: count for verb, count in statistics.commands.items() if count}
        assert done == {"EHLO": 1, "MAIL": 1, "RCPT": 2, "DATA": 1}
        assert statistics.replies == {220: 1, 250: 5, 354: 1}
        assert statistics.message_seconds.count == 1
        assert statistics.session_seconds.count == 0
        assert await client.say("QUIT") == "221 Bye"
        await left(served, client)
        assert statistics.commands["QUIT"] == statistics.replies[221] == 1
        assert statistics.open_connections == 0
        assert statistics.sessions["none"] == {"": 1}
        assert statistics.session_seconds.sum > statistics.message_seconds.sum > 0
        assert statistics.refusals == {"limit": {}, "handler": {}, "failure": {}, "protocol": {}}


async def test_running_transactions_are_those_of_now() -> None:
    async with serving() as served:
        one, other = await served.hello(), await served.hello()
        await one.envelope()
        statistics = served.server.statistics
        assert (statistics.open_connections, statistics.running_transactions) == (2, 1)
        assert await one.say("RSET") == "250 Flushed"
        assert statistics.running_transactions == 0
        await other.close()
        await until(lambda: statistics.open_connections == 1)


async def test_all_listeners_count_together() -> None:
    async with serving() as served:
        second = await served.server.listen(0, "127.0.0.1", lmtp=True)
        await served.hello()
        client = await served.connect(address=second)
        await client.reply()
        await client.ehlo(verb="LHLO")
        commands = served.server.statistics.commands
        assert (commands["EHLO"], commands["LHLO"]) == (1, 1)


# --- TLS and AUTH


async def test_sessions_by_tls() -> None:
    async with serving(**pem()) as served:
        client = await served.hello()
        await client.starttls(careless())
        await client.ehlo()
        statistics = served.server.statistics
        assert statistics.handshakes == {"starttls": {"TLSv1.3": 1}, "implicit": {}}
        await left(served, client)
        assert statistics.sessions["starttls"] == {"TLSv1.3": 1}
        assert statistics.sessions["none"] == {"": 0}


async def test_implicit_tls_and_a_handshake_that_fails() -> None:
    async with serving(secure=True, **pem()) as served:
        await left(served, await served.hello(careless()))
        plain = await served.connect()
        await plain.send(b"EHLO client.example\r\n")
        await plain.rest()
        statistics = served.server.statistics
        await until(lambda: "failed" in statistics.handshakes["implicit"])
        assert statistics.handshakes == {"starttls": {}, "implicit": {"TLSv1.3": 1, "failed": 1}}
        assert statistics.connections == 2
        assert statistics.sessions["implicit"] == {"TLSv1.3": 1}
        assert statistics.sessions["none"] == {"": 0}


def check(auth: AuthRequest, session: Session) -> str | None:
    if auth.username == "later":
        raise Reject(454, "try again later")
    return auth.username if auth.password == "secret" else None


async def test_logins_by_mechanism_and_outcome() -> None:
    async with serving(on_auth=check, allow_insecure_auth=True, max_auth_failures=None) as served:
        client = await served.hello()
        for line, code in (
            ("AUTH PLAIN AGFubgB3cm9uZw==", 535),
            ("AUTH PLAIN AGxhdGVyAHNlY3JldA==", 454),
            ("AUTH X-MY-OWN-METHOD abc", 504),
            (f"AUTH plain {PLAIN}", 235),
        ):
            assert (await client.command(line)).code == code
        statistics = served.server.statistics
        assert statistics.logins == {"PLAIN": {"refused": 1, "deferred": 1, "accepted": 1}, "OTHER": {"refused": 1}}
        assert statistics.authenticated_sessions == 0
        await left(served, client)
        assert statistics.authenticated_sessions == 1


async def test_challenges_are_replies() -> None:
    async with serving(on_auth=check, allow_insecure_auth=True) as served:
        client = await served.hello()
        assert (await client.command("AUTH LOGIN")).code == 334
        assert (await client.command("YW5u")).code == 334
        assert (await client.command("*")).code == 501
        statistics = served.server.statistics
        assert statistics.replies[334] == 2
        assert statistics.refusals["protocol"] == {"auth_aborted": 1}
        assert statistics.logins == {"LOGIN": {"refused": 1}}


# --- What is refused, and why


async def test_a_client_makes_no_keys() -> None:
    async with serving(max_errors=None) as served:
        client = await served.hello()
        before = len(served.server.statistics.commands)
        for number in range(20):
            assert (await client.command(f"X{number}")).code == 500
        statistics = served.server.statistics
        assert statistics.commands["unknown"] == 20
        assert len(statistics.commands) == before
        assert statistics.refusals["protocol"] == {"unknown_command": 20}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("MAIL", "sequence"),
        ("EHLO", "syntax"),
        ("NOOP \x01", "characters"),
        ("GET / HTTP/1.1", "http"),
        ("DATA", "sequence"),
        ("XCLIENT ADDR=127.0.0.1", "not_permitted"),
        ("NOOP " + "x" * 5000, "line_too_long"),
    ],
)
async def test_what_the_protocol_refuses(line: str, reason: str) -> None:
    async with serving() as served:
        client = await served.client()
        assert (await client.command(line)).code >= 400
        assert served.server.statistics.refusals["protocol"] == {reason: 1}


async def test_talking_too_soon_and_out_of_turn() -> None:
    async with serving(greet_delay=TIMEOUT) as served:
        client = await served.connect()
        await client.send(b"EHLO a\r\n")
        assert (await client.reply()).code == 421
        assert served.server.statistics.refusals["protocol"] == {"early_talk": 1}
    async with serving() as served:
        client = await served.client()
        await client.send(b"EHLO a\r\nNOOP\r\n")
        assert (await client.reply()).code == 554
        assert served.server.statistics.refusals["protocol"] == {"pipelining": 1}


async def test_what_a_hook_refuses_and_where_it_fails() -> None:
    def on_rcpt_to(address: Recipient, session: Session) -> None:
        if address.address.startswith("bug"):
            raise RuntimeError
        raise Reject

    async with serving(on_rcpt_to=on_rcpt_to, on_error=lambda error, session: None) as served:
        client = await served.hello()
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 250
        assert (await client.command("RCPT TO:<a@example.com>")).code == 550
        assert (await client.command("RCPT TO:<bug@example.com>")).code == 451
        refusals = served.server.statistics.refusals
        assert refusals == {"limit": {}, "handler": {"on_rcpt_to": 1}, "failure": {"on_rcpt_to": 1}, "protocol": {}}


async def test_messages_that_are_refused_and_one_that_never_ends() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        text = await stream.read()
        raise Reject(452 if b"later" in text else 550)

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        assert (await client.deliver(b"now\r\n")).startswith("550")
        assert (await client.deliver(b"later\r\n")).startswith("452")
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        await client.send(b"1234\r\n")
        await left(served, client)
        statistics = served.server.statistics
        assert statistics.messages == {"accepted": 0, "refused": 1, "deferred": 1, "aborted": 1}
        assert statistics.refusals["handler"] == {"on_data": 2}
        # The CRLF at the very end may have begun the end of data.
        assert statistics.message_bytes == len(b"now\r\nlater\r\n1234")
        assert statistics.message_seconds.count == 2
        assert statistics.commands["DATA"] == 3


async def test_each_command_is_counted_once_however_it_ends() -> None:
    async with serving(max_errors=5, max_junk_commands=None) as served:
        client = await served.hello()
        await client.envelope()
        lines = ["NOOP", "noop", "VRFY", "EHLO", "BDAT 0", "RSET", "MAIL FROM:bad", "RSET x", "QUIT x"]
        for line in lines:
            await client.command(line)
        await client.eof()
        commands = {verb: count for verb, count in served.server.statistics.commands.items() if count}
        assert commands == {
            "EHLO": 2, "MAIL": 2, "RCPT": 1, "NOOP": 2, "VRFY": 1, "BDAT": 1, "RSET": 2, "QUIT": 1,
        }  # fmt: skip
        assert sum(served.server.statistics.replies.values()) == sum(commands.values()) + 1  # and the greeting


async def test_a_message_by_chunks_is_one() -> None:
    async with serving(on_data=Inbox()) as served:
        client = await served.hello()
        await client.envelope()
        await client.send(b"BDAT 3\r\na\r\n")
        assert (await client.reply()).code == 250
        await client.send(b"BDAT 3 LAST\r\nb\r\n")
        assert (await client.reply()).code == 250
        statistics = served.server.statistics
        assert statistics.messages["accepted"] == 1
        assert (statistics.message_bytes, statistics.commands["BDAT"]) == (6, 2)
        assert statistics.replies[250] == 5


async def test_in_lmtp_a_message_is_accepted_if_a_recipient_is() -> None:
    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        await stream.read()
        return [None, Reject(550)]

    async with serving(on_data=on_data, lmtp=True) as served:
        client = await served.hello()
        await client.envelope("a@example.com", "b@example.com", "c@example.com")
        assert (await client.data(b"text\r\n")).code == 250
        assert (await client.reply()).code == 550
        assert served.server.statistics.messages["accepted"] == 1
        assert served.server.statistics.refusals["handler"] == {"on_data": 1}


async def test_what_a_handler_leaves_unread_came_nevertheless() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read(2)

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await client.deliver(b"x" * 98 + b"\r\n")
        assert served.server.statistics.message_bytes == 100


@pytest.mark.parametrize(
    ("options", "lines", "limit"),
    [
        ({"max_junk_commands": 1}, ["NOOP", "NOOP"], "max_junk_commands"),
        ({"max_errors": 1}, ["FOO"], "max_errors"),
        ({"max_recipients": 1}, ["MAIL FROM:<a@b.c>", "RCPT TO:<a@b.c>", "RCPT TO:<b@b.c>"], "max_recipients"),
        ({"size": 10}, ["MAIL FROM:<a@b.c> SIZE=11"], "size"),
        ({"rates_per_address": {"messages": "1/h burst 1"}}, ["MAIL FROM:<a@b.c>", "RSET", "MAIL FROM:<a@b.c>"],
         "rate_of_messages"),
        ({"socket_timeout": 0.05}, [""], "socket_timeout"),
        ({"max_session_duration": 0.05}, [""], "max_session_duration"),
    ],
)  # fmt: skip
async def test_limits_by_the_option_that_sets_them(options: dict[str, Any], lines: list[str], limit: str) -> None:
    async with serving(**options) as served:
        client = await served.hello()
        for line in lines:
            answer = await (client.command(line) if line else client.reply())
        assert answer.code >= 400
        assert served.server.statistics.refusals["limit"] == {limit: 1}


@pytest.mark.parametrize(("content", "kind", "reason"), [(b"x" * 100, "limit", "size"), (b"\0", "protocol", "content")])
async def test_a_handler_that_lets_a_refusal_of_the_message_through_has_not_refused_it(
    content: bytes, kind: str, reason: str
) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read()

    async with serving(on_data=on_data, size=10) as served:
        client = await served.hello()
        assert (await client.deliver(content + b"\r\n")).startswith("55")
        refusals = served.server.statistics.refusals
        assert refusals == {"limit": {}, "handler": {}, "failure": {}, "protocol": {}} | {kind: {reason: 1}}


async def test_a_message_that_is_too_large_crosses_a_limit() -> None:
    async with serving(size=10) as served:
        client = await served.hello()
        assert (await client.deliver(b"x" * 100 + b"\r\n")).startswith("552")
        statistics = served.server.statistics
        assert statistics.refusals["limit"] == {"size": 1}
        assert statistics.messages["refused"] == 1


# --- Connections


async def test_a_connection_too_many() -> None:
    async with serving(max_clients=1) as served:
        await served.hello()
        other = await served.connect()
        assert (await other.reply()).code == 421
        statistics = served.server.statistics
        assert (statistics.connections, statistics.refused_connections) == (1, {"max_clients": 1})
        assert statistics.replies[421] == 1


async def test_a_connection_too_many_of_an_address_and_one_without_its_proxy() -> None:
    async with serving(max_clients_per_address=1, unlimited_hosts=[]) as served:
        await served.hello()
        assert (await (await served.connect()).reply()).code == 421
        assert served.server.statistics.refused_connections == {"address": 1}
    async with serving(use_proxy=["127.0.0.1"]) as served:
        client = await served.connect()
        await client.send(b"EHLO a\r\n")
        assert (await client.line()).startswith(b"* BAD")
        assert served.server.statistics.refused_connections == {"proxy_header": 1}
        assert served.server.statistics.connections == 0


async def test_hosts_that_are_ignored_are_not_counted() -> None:
    async with serving(ignored_hosts=["127.0.0.1"]) as served:
        client = await served.hello()
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()
        statistics = served.server.statistics
        assert (statistics.connections, statistics.open_connections, statistics.replies) == (0, 0, {})


async def test_a_connection_that_breaks() -> None:
    async with serving() as served:
        client = await served.hello()
        sock: socket.socket = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        client.writer.transport.abort()
        await until(lambda: served.server.statistics.lost_connections == 1)


# --- Snapshots


async def test_a_snapshot_survives_json_and_two_make_a_sum() -> None:
    async with serving(on_data=Inbox(), max_clients=1) as served:
        client = await served.hello()
        await client.deliver()
        await client.command("FOO")
        snapshot = served.server.statistics.snapshot()
        assert json.loads(json.dumps(snapshot)) == snapshot
        assert snapshot["replies"] == {"220": 1, "250": 4, "354": 1, "500": 1}
        assert snapshot["open_connections"] == 1
        both = Statistics.merged([snapshot, json.loads(json.dumps(snapshot))])
        assert both["messages"]["accepted"] == 2
        assert both["replies"]["250"] == 8
        assert both["open_connections"] == 2
        assert both["message_seconds"]["bounds"] == snapshot["message_seconds"]["bounds"]
        assert sum(both["message_seconds"]["counts"]) == 2
        assert both["message_seconds"]["sum"] == 2 * snapshot["message_seconds"]["sum"]
        assert both["refusals"]["protocol"] == {"unknown_command": 2}
        assert snapshot["messages"]["accepted"] == 1


async def test_what_ended_servers_counted_stays_and_what_was_true_of_a_moment_does_not() -> None:
    async with serving() as served:
        client = await served.hello()
        await client.envelope()
        snapshot = served.server.statistics.snapshot()
    alive = SMTPServer().statistics.snapshot()
    found = Statistics.merged([alive], ended=[snapshot])
    assert (found["open_connections"], found["running_transactions"]) == (0, 0)
    assert found["connections"] == 1
    assert Statistics.merged([]) == {}


async def test_a_snapshot_does_not_change() -> None:
    async with serving() as served:
        snapshot = served.server.statistics.snapshot()
        before = json.dumps(snapshot)
        await served.hello()
        assert json.dumps(snapshot) == before


def test_a_reply_has_a_code_of_smtp() -> None:
    for code in (199, 600, -250):
        with pytest.raises(ValueError, match="from 200 to 599"):
            Reply(code, "", "text")
