"""Limits: what a client may do that is no mail, how slowly it may do it, and how often in a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import Address, AuthRequest, ConfigurationError, MessageStream, Recipient, Reject, Session, SMTPServer
from support import PLAIN, TIMEOUT, Client, Inbox, Served, b64, careless, on_both_loops, recorded, serving


def limits_logged(records: list[logging.LogRecord]) -> list[str]:
    """Return what the log says of limits."""
    return [record.getMessage() for record in records if getattr(record, "tnx", "") in ("limit", "refused", "rates")]


# --- Errors


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("MAIL FROM:<a..b@example.com>", "501 Error: Bad sender address syntax"),
        ("MAIL FROM:<a@example.com> FOO=1", "555 Error: parameter FOO is not supported"),
        ("RCPT TO:<a@example.com>", "503 Error: need MAIL command"),
        ("DATA", "503 Error: need MAIL command"),
        ("AUTH NONE", "504 Error: Unrecognized authentication type"),
        ("EHLO", "501 Error: syntax: EHLO hostname"),
        ("NOOP \N{ZERO WIDTH SPACE}", "501 Error: control characters or malformed UTF-8 in the command"),
        ("NOOP " + "x" * 5000, "500 Error: Command line too long"),
    ],
)
async def test_max_errors(command: str, reply: str) -> None:
    async with serving(max_errors=4, allow_insecure_auth=True) as served:
        client = await served.hello()
        with recorded(logging.INFO) as records:
            replies = await client.said_until_closed(command)
        assert replies == [reply] * 3 + ["421 Error: too many errors"]
        assert limits_logged(records) == ["closed: too many errors"]


@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
async def test_ten_errors_are_the_default_and_unknown_verbs_are_errors() -> None:
    async with serving() as served:
        client = await served.hello()
        for _ in range(5):
            assert (await client.command("DATA now")).code == 503
        for _ in range(4):
            assert (await client.command("XYZZY")).code == 500
        assert await client.say("XYZZY") == "421 Error: too many unrecognized commands"
        await client.eof()


async def test_a_message_begins_the_count_anew() -> None:
    async with serving(max_errors=3, max_junk_commands=3) as served:
        client = await served.hello()
        for _ in range(3):
            assert (await client.command("FOO")).code == 500
            assert (await client.command("BAR")).code == 500
            for _ in range(3):
                assert await client.say("NOOP") == "250 OK"
            assert await client.deliver() == "250 OK: message queued"


async def test_max_errors_none() -> None:
    async with serving(max_errors=None) as served:
        client = await served.hello()
        for _ in range(50):
            assert (await client.command("FOO")).code == 500


@pytest.mark.promises(
    "Limits",
    "Recipients that were accepted are not lost by a limit, nor is a client cut off for what your handlers refuse.",
)
async def test_what_the_application_refuses_is_no_error() -> None:
    def on_mail_from(address: Address, session: Session) -> None:
        raise Reject(503, "Not from you")

    async with serving(max_errors=3, on_mail_from=on_mail_from) as served:
        client = await served.hello()
        for _ in range(20):
            assert await client.say("MAIL FROM:<a@example.com>") == "503 Not from you"


@pytest.mark.promises(
    "Limits",
    "Recipients that were accepted are not lost by a limit, nor is a client cut off for what your handlers refuse.",
)
async def test_what_was_sent_ahead_of_a_refused_mail_is_no_error() -> None:
    # RFC 2920 3.1 lets a client send MAIL, RCPT and DATA in one group.
    def on_mail_from(address: Address, session: Session) -> None:
        raise Reject(550, "Not from you")

    async with serving(max_errors=3, on_mail_from=on_mail_from) as served:
        client = await served.hello()
        await client.send(b"MAIL FROM:<a@example.com>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 20 + b"DATA\r\n")
        assert [(await client.reply()).code for _ in range(22)] == [550] + [503] * 21
        assert await client.say("RSET") == "250 Flushed"


@pytest.mark.promises("TLS", "STARTTLS does not reset the limits of a connection.")
async def test_starttls_does_not_begin_the_count_anew() -> None:
    async with serving(max_errors=3) as served:
        client = await served.hello()
        assert (await client.command("FOO")).code == 500
        assert (await client.command("FOO")).code == 500
        await client.starttls(careless())
        assert await client.say("FOO") == "421 Error: too many unrecognized commands"


# --- Junk


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
@pytest.mark.parametrize("command", ["NOOP", "RSET", "VRFY someone", "EXPN list", "HELP", "EHLO again.example"])
async def test_max_junk_commands(command: str) -> None:
    async with serving(max_junk_commands=5, on_expn=lambda name, session: ["a@example.com"]) as served:
        client = await served.hello()
        with recorded(logging.INFO) as records:
            replies = await client.said_until_closed(command)
        assert len(replies) == 6
        assert replies[-1] == "421 Error: too many commands without a message"
        assert limits_logged(records) == ["closed: too many junk commands"]


@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
async def test_a_hundred_junk_commands_are_the_default() -> None:
    async with serving() as served:
        client = await served.hello()
        assert len(await client.said_until_closed("NOOP")) == 101


async def test_max_junk_commands_none() -> None:
    async with serving(max_junk_commands=None) as served:
        client = await served.hello()
        for _ in range(120):
            assert await client.say("NOOP") == "250 OK"


async def test_a_sender_that_is_refused_again_and_again_is_junk() -> None:
    def on_mail_from(address: Address, session: Session) -> None:
        raise Reject

    async with serving(max_junk_commands=5, on_mail_from=on_mail_from) as served:
        client = await served.hello()
        assert len(await client.said_until_closed("MAIL FROM:<a@example.com>")) == 6


# --- Refused recipients


def only_known(address: Recipient, session: Session) -> None:
    """Refuse all recipients that are not called known."""
    if not address.address.startswith("known"):
        raise Reject(550, "No such user")


@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
async def test_max_refused_recipients_without_a_good_one() -> None:
    async with serving(max_refused_recipients=4, on_rcpt_to=only_known) as served:
        client = await served.hello()
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 250
        with recorded(logging.INFO) as records:
            replies = await client.said_until_closed("RCPT TO:<guess@example.com>")
        assert replies == ["550 No such user"] * 3 + ["421 Error: too many refused recipients"]
        assert limits_logged(records) == ["closed: too many refused recipients"]


@pytest.mark.promises(
    "Limits",
    "Recipients that were accepted are not lost by a limit, nor is a client cut off for what your handlers refuse.",
)
async def test_recipients_that_were_accepted_are_not_lost_with_those_that_were_refused() -> None:
    inbox = Inbox()
    asked: list[str] = []

    def on_rcpt_to(address: Recipient, session: Session) -> None:
        asked.append(address.address)
        only_known(address, session)

    async with serving(max_refused_recipients=4, on_rcpt_to=on_rcpt_to, on_data=inbox) as served:
        client = await served.hello()
        await client.envelope("a@example.com", "known@example.com")
        with recorded(logging.INFO) as records:
            for _ in range(4):
                assert await client.say("RCPT TO:<guess@example.com>") == "550 No such user"
            for _ in range(4):  # nobody is asked any more, so a guess that is right is not told from one that is wrong
                assert await client.say("RCPT TO:<known2@example.com>") == "452 Error: too many refused recipients"
        assert limits_logged(records) == ["refused: too many refused recipients"]
        assert "known2@example.com" not in asked
        assert (await client.data(b"x\r\n")).code == 250
        assert inbox[0].recipients == ["known@example.com"]
        await client.envelope("a@example.com", "known2@example.com")  # the message began the count anew


# --- Logins


def nobody(auth: AuthRequest, session: Session) -> bool:
    """Refuse everyone but ann."""
    return auth.username == "ann" and auth.password == "secret"


WRONG = "AUTH PLAIN " + b64("\0ann\0wrong")
REFUSED = "535 Invalid username or password"


@pytest.mark.promises(
    "Limits", "A failed login waits for its answer, each longer than the one before; after three AUTH gets 421."
)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2"])
async def test_max_auth_failures(mechanism: str) -> None:
    async with serving(
        on_auth=nobody, allow_insecure_auth=True, max_auth_failures=3, auth_methods=["PLAIN", "LOGIN", "XOAUTH2"]
    ) as served:
        client = await served.hello()
        with recorded(logging.INFO) as records:
            for _ in range(3):
                if mechanism == "LOGIN":
                    await client.command("AUTH LOGIN " + b64("ann"))
                    assert await client.say(b64("wrong")) == REFUSED
                elif mechanism == "XOAUTH2":
                    await client.command("AUTH XOAUTH2 " + b64("user=ann\x01auth=Bearer wrong\x01\x01"))
                    assert await client.say("") == REFUSED
                else:
                    assert await client.say(WRONG) == REFUSED
            # 535 for each that failed; who hears only 421 would try the same again later.
            assert await client.say("NOOP") == "250 OK"
            assert await client.say("AUTH PLAIN " + PLAIN) == "421 Error: too many failed logins"
            await client.eof()
        assert limits_logged(records) == ["closed: too many failed logins in this connection"]


@pytest.mark.promises("TLS", "STARTTLS does not reset the limits of a connection.")
async def test_starttls_and_ehlo_do_not_begin_the_count_of_failed_logins_anew() -> None:
    async with serving(on_auth=nobody, allow_insecure_auth=True) as served:
        client = await served.hello()
        assert await client.say(WRONG) == REFUSED
        await client.ehlo()
        assert await client.say(WRONG) == REFUSED
        await client.starttls(careless())
        await client.ehlo()
        assert await client.say(WRONG) == REFUSED
        assert await client.say("AUTH PLAIN " + PLAIN) == "421 Error: too many failed logins"


async def test_max_auth_failures_none() -> None:
    async with serving(on_auth=nobody, allow_insecure_auth=True, max_auth_failures=None) as served:
        client = await served.hello()
        for _ in range(8):
            assert await client.say(WRONG) == REFUSED
        assert await client.say("AUTH PLAIN " + PLAIN) == "235 Authentication successful"


@pytest.mark.promises(
    "Limits", "A failed login waits for its answer, each longer than the one before; after three AUTH gets 421."
)
@on_both_loops
async def test_auth_failure_delay_grows() -> None:
    async with serving(on_auth=nobody, allow_insecure_auth=True, auth_failure_delay=0.2) as served:
        client = await served.hello()
        took = []
        for _ in range(3):
            began = time.monotonic()
            assert await client.say(WRONG) == REFUSED
            took.append(time.monotonic() - began)
        assert took[0] >= 0.19
        assert took[1] >= 0.39
        assert took[2] >= 0.79


@on_both_loops
async def test_what_is_sent_while_a_failed_login_waits_is_answered_after_it() -> None:
    async with serving(
        on_auth=nobody, allow_insecure_auth=True, auth_failure_delay=0.3, forbid_unauth_pipelining=False
    ) as served:
        client = await served.hello()
        began = time.monotonic()
        await client.send(WRONG.encode() + b"\r\n")
        await asyncio.sleep(0.05)
        await client.send(b"NOOP\r\n" * 5)
        assert await client.hear() == REFUSED
        assert time.monotonic() - began >= 0.29
        assert [await client.hear() for _ in range(5)] == ["250 OK"] * 5


@on_both_loops
async def test_closing_does_not_wait_for_a_failed_login() -> None:
    async with serving(on_auth=nobody, allow_insecure_auth=True, auth_failure_delay=TIMEOUT * 3) as served:
        client = await served.hello()
        await client.send(WRONG.encode() + b"\r\n")
        await asyncio.sleep(0.05)
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert await client.hear() == "421 Server shutting down"


@on_both_loops
async def test_a_client_that_leaves_while_its_failed_login_waits_is_forgotten() -> None:
    closed = asyncio.Event()
    async with serving(
        on_auth=nobody,
        allow_insecure_auth=True,
        auth_failure_delay=0.2,
        on_close=lambda session: closed.set(),
    ) as served:
        client = await served.hello()
        await client.send(WRONG.encode() + b"\r\n")
        await client.close()
        await asyncio.wait_for(closed.wait(), TIMEOUT)


# --- Slow clients


async def dribble(client: Client, octets: bytes, each: int, pause: float) -> None:
    """Send octets slowly, until they are sent or the server has gone."""
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(octets), each):
            await client.send(octets[at : at + each])
            await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def dribbling(client: Client, octets: bytes, each: int = 1, pause: float = 0.04) -> AsyncIterator[None]:
    """Send octets slowly while the block runs."""
    task = asyncio.create_task(dribble(client, octets, each, pause))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
@pytest.mark.promises(
    "Limits", "A client that sends a command or a message too slowly, or never reads, ends; an honest slow line passes."
)
@pytest.mark.parametrize("where", ["command", "auth", "pipelined"])
@on_both_loops
async def test_command_timeout(where: str) -> None:
    async with serving(command_timeout=0.4, allow_insecure_auth=True) as served:
        client = await served.hello()
        if where == "auth":
            assert (await client.command("AUTH LOGIN")).code == 334
        if where == "pipelined":
            await client.send(b"NOOP\r\nNOOP\r\nNO")
            assert [await client.hear(), await client.hear()] == ["250 OK", "250 OK"]
        with recorded(logging.INFO) as records:
            async with dribbling(client, b"NOOP " + b"x" * 1000):
                assert await client.hear() == "421 Timeout - the command takes too long"
                await client.eof()
        assert limits_logged(records) == ["closed: a command took too long"]


@on_both_loops
async def test_command_timeout_is_for_each_command_not_for_all() -> None:
    async with serving(command_timeout=0.5) as served:
        client = await served.hello()
        async with dribbling(client, b"NOOP\r\n" * 10, pause=0.02):
            assert [await client.hear() for _ in range(10)] == ["250 OK"] * 10


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
@pytest.mark.promises(
    "Limits", "A client that sends a command or a message too slowly, or never reads, ends; an honest slow line passes."
)
@pytest.mark.parametrize("how", ["DATA", "BDAT", "discarded"])
@on_both_loops
async def test_min_data_rate(how: str) -> None:
    broken = asyncio.get_running_loop().create_future()

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except ConnectionError as error:
            broken.set_result(error)
            raise

    async with serving(min_data_rate=1000, socket_timeout=0.5, on_data=on_data) as served:
        client = await served.hello()
        if how != "discarded":
            await client.envelope()
        if how == "DATA":
            assert (await client.command("DATA")).code == 354
        else:
            await client.send(b"BDAT 100000 LAST\r\n")
        with recorded(logging.INFO) as records:
            async with dribbling(client, b"x" * 5000, each=10):
                assert await client.hear() == "421 Timeout - the message comes too slowly"
                await client.eof()
        assert limits_logged(records) == ["closed: a message came too slowly"]
        if how != "discarded":
            assert "too slowly" in str(await asyncio.wait_for(broken, TIMEOUT))


@pytest.mark.promises(
    "Limits", "A client that sends a command or a message too slowly, or never reads, ends; an honest slow line passes."
)
async def test_an_honest_slow_line_passes() -> None:
    async with serving(min_data_rate=200, socket_timeout=0.5) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        async with dribbling(client, b"x" * 78 * 20 + b"\r\n.\r\n", each=60, pause=0.05):  # 1,200 a second, for 1.3 s
            assert await client.hear() == "250 OK: message queued"


async def test_min_data_rate_does_not_count_the_handlers_time() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read(1)
        await asyncio.sleep(1.2)
        await stream.read()

    async with serving(min_data_rate=100_000, socket_timeout=0.5, on_data=on_data) as served:
        client = await served.hello()
        assert await client.deliver() == "250 OK: message queued"


async def test_min_data_rate_none() -> None:
    async with serving(min_data_rate=None, socket_timeout=0.3) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        async with dribbling(client, b"x" * 20 + b"\r\n.\r\n"):
            assert await client.hear() == "250 OK: message queued"


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
@pytest.mark.promises(
    "Limits", "A client that sends a command or a message too slowly, or never reads, ends; an honest slow line passes."
)
@on_both_loops
async def test_reply_timeout() -> None:
    closed = asyncio.Event()
    async with serving(reply_timeout=0.4, max_junk_commands=None, on_close=lambda session: closed.set()) as served:
        client = await served.narrow()
        assert await client.hear()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        with recorded(logging.INFO) as records:
            client.writer.write(b"HELP\r\n" * 10_000)
            await asyncio.wait_for(closed.wait(), TIMEOUT)
        assert limits_logged(records) == ["closed: the client did not read its replies"]
        client.writer.transport.abort()


@pytest.mark.parametrize("where", ["idle", "busy", "in a message"])
@on_both_loops
async def test_max_session_duration(where: str) -> None:
    async with serving(max_session_duration=0.5, max_junk_commands=None) as served:
        client = await served.hello()
        if where == "busy":
            for _ in range(10):
                assert await client.say("NOOP") == "250 OK"
                await asyncio.sleep(0.02)
        if where == "in a message":
            await client.envelope()
            assert (await client.command("DATA")).code == 354
        assert await client.hear() == "421 Timeout - the connection lasts too long"
        await client.eof()


# --- Connections of one address


@contextlib.asynccontextmanager
async def behind_a_proxy(**options: Any) -> AsyncIterator[Served]:
    """Serve clients that tell their address themselves, by a PROXY header."""
    async with serving(use_proxy=["127.0.0.1"], name="mx.test", **options) as served:
        yield served


async def client_from(served: Served, address: str, **more: Any) -> tuple[Client, str]:
    """Return a client with this address, and what it was greeted with."""
    client = await served.connect()
    family, here = ("TCP6", "2001:db8::25") if ":" in address else ("TCP4", "192.0.2.25")
    await client.send(f"PROXY {family} {address} {here} 4000 25\r\n".encode())
    return client, await client.hear()


TOO_MANY = "421 mx.test Too many connections, try again later"
WELCOME = "220 mx.test ESMTP"


@pytest.mark.promises(
    "Limits", "Numbers and rates may be limited for an address, where a /64 of IPv6 counts as one, and over all."
)
@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:1:1::1", "2001:db8:1:1:ffff:ffff:ffff:ffff", "2001:db8:1:2::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
    ],
)
async def test_max_clients_per_address(first: str, same: str, other: str) -> None:
    async with behind_a_proxy(max_clients_per_address=2) as served:
        clients = [await client_from(served, first), await client_from(served, same)]
        assert [greeting for _, greeting in clients] == [WELCOME] * 2
        refused, greeting = await client_from(served, same)
        assert greeting == TOO_MANY
        await refused.eof()
        assert (await client_from(served, other))[1] == WELCOME
        await clients[0][0].command("QUIT")
        await clients[0][0].eof()
        assert (await client_from(served, same))[1] == WELCOME
        assert len(served.server._connections.of_network) == 2
    assert not served.server._connections.of_network


@pytest.mark.promises("Limits", "A connection that is refused for its number or rate costs neither DNS nor TLS.")
async def test_max_clients_per_address_on_implicit_tls_closes_without_a_word() -> None:
    async with serving(max_clients_per_address=1, secure=True) as served:
        await served.hello(careless())
        client = await served.connect()
        assert await client.rest() == b""


async def test_unlimited_hosts() -> None:
    async with behind_a_proxy(
        max_clients_per_address=1,
        rates_per_address={"connections": "1/hour"},
        rates_over_all={"connections": "2/hour"},
        unlimited_hosts=["192.0.2.0/28"],
    ) as served:
        for _ in range(5):
            assert (await client_from(served, "192.0.2.1"))[1] == WELCOME
        assert (await client_from(served, "198.51.100.1"))[1] == WELCOME
        assert (await client_from(served, "198.51.100.1"))[1] == TOO_MANY


async def test_after_xclient_the_real_client_counts() -> None:
    async with serving(
        use_xclient=["127.0.0.1"], max_clients_per_address=1, unlimited_hosts=["127.0.0.1"], name="mx.test"
    ) as served:
        first, second = await served.hello(), await served.hello()
        assert await first.say("XCLIENT ADDR=192.0.2.1") == WELCOME
        assert await second.say("XCLIENT ADDR=192.0.2.1") == TOO_MANY
        await second.eof()
        assert (await (await served.hello()).say("XCLIENT ADDR=192.0.2.2")) == WELCOME
    assert not served.server._connections.of_network


# --- Rates


@pytest.mark.promises(
    "Limits", "Numbers and rates may be limited for an address, where a /64 of IPv6 counts as one, and over all."
)
@pytest.mark.promises("Limits", "A connection that is refused for its number or rate costs neither DNS nor TLS.")
async def test_rates_of_connections() -> None:
    resolved: list[str] = []

    class Resolver:
        async def reverse(self, ip: str) -> list[str]:
            resolved.append(ip)
            return ["host.example"]

    async with behind_a_proxy(
        rates_per_address={"connections": "2/hour"}, disable_reverse_lookup=False, resolver=Resolver()
    ) as served:
        for _ in range(2):
            assert (await client_from(served, "2001:db8::1"))[1] == WELCOME
        resolved.clear()
        with recorded(logging.INFO) as records:
            client, greeting = await client_from(served, "2001:db8::ffff")
            assert greeting == TOO_MANY
            await client.eof()
        assert not resolved  # nothing is done for who is refused
        began = "new connections of an address, or of all, are refused: there are too many, or they come too fast"
        assert limits_logged(records) == [began]
        assert (await client_from(served, "2001:db8:0:1::1"))[1] == WELCOME


@pytest.mark.promises(
    "Limits", "Numbers and rates may be limited for an address, where a /64 of IPv6 counts as one, and over all."
)
async def test_rates_over_all() -> None:
    async with behind_a_proxy(rates_over_all={"connections": "2/hour"}) as served:
        assert [(await client_from(served, f"192.0.2.{n}"))[1] for n in range(3)] == [WELCOME, WELCOME, TOO_MANY]


@pytest.mark.promises(
    "Limits", "Each limit is answered with its reply and is one line in the log, however many commands follow."
)
async def test_rates_of_messages_and_recipients() -> None:
    inbox = Inbox()
    async with serving(
        rates_per_address={"messages": "3/hour", "recipients": "4/hour"}, on_data=inbox, max_errors=1
    ) as served:
        client = await served.hello()
        with recorded(logging.INFO) as records:
            await client.envelope("a@example.com", "b@example.com", "c@example.com", "d@example.com")
            assert (await client.data(b"x\r\n")).code == 250
            await client.envelope("a@example.com", "e@example.com")
            for _ in range(3):
                assert await client.say("RCPT TO:<f@example.com>") == "450 Error: too many recipients, try again later"
            assert (await client.data(b"x\r\n")).code == 250
            other = await served.hello()  # it is the address that counts, not the connection
            assert await other.say("MAIL FROM:<a@example.com>") == "250 Accepted"
            assert await client.say("MAIL FROM:<a@example.com>") == "450 Error: too much mail, try again later"
            assert await client.say("MAIL FROM:<a@example.com>") == "450 Error: too much mail, try again later"
        assert limits_logged(records) == ["refused: the rate of recipients", "refused: the rate of messages"]
        assert [message.recipients for message in inbox] == [
            ["b@example.com", "c@example.com", "d@example.com"],
            ["e@example.com"],
        ]


async def test_rates_of_messages_of_an_account_hold_at_every_address() -> None:
    async with behind_a_proxy(
        rates_per_account={"messages": "2/hour"}, on_auth=lambda auth, session: True, allow_insecure_auth=True
    ) as served:
        replies = []
        for n, name in enumerate(["ann", "ann", "ann", "bob"]):
            client, _ = await client_from(served, f"192.0.2.{n}")
            await client.ehlo()
            assert (await client.command("AUTH PLAIN " + b64(f"\0{name}\0x"))).code == 235
            replies.append((await client.command("MAIL FROM:<a@example.com>")).code)
        assert replies == [250, 250, 450, 250]


@pytest.mark.promises(
    "Limits",
    "Failed logins may have a budget for each address and account; beyond it nobody looks at the password.",
)
async def test_rates_of_failed_logins_of_an_address() -> None:
    asked: list[str] = []

    def on_auth(auth: AuthRequest, session: Session) -> bool:
        asked.append(auth.password)
        return nobody(auth, session)

    async with behind_a_proxy(
        rates_per_address={"auth_failures": "2/hour"}, on_auth=on_auth, allow_insecure_auth=True
    ) as served:
        for n in range(2):
            client, _ = await client_from(served, f"2001:db8::{n}")
            await client.ehlo()
            assert await client.say(WRONG) == REFUSED
        client, _ = await client_from(served, "2001:db8::3")
        await client.ehlo()
        assert await client.say("AUTH PLAIN " + PLAIN) == "421 Error: too many failed logins"
        await client.eof()
        assert asked == ["wrong", "wrong"]
        client, _ = await client_from(served, "192.0.2.1")
        await client.ehlo()
        assert await client.say("AUTH PLAIN " + PLAIN) == "235 Authentication successful"


@pytest.mark.promises(
    "Limits",
    "Failed logins may have a budget for each address and account; beyond it nobody looks at the password.",
)
@pytest.mark.parametrize("name", ["ann", "n" * 1000, "a\N{LATIN SMALL LETTER N WITH TILDE}o"])
async def test_rates_of_failed_logins_of_an_account(name: str) -> None:
    async with behind_a_proxy(
        rates_per_account={"auth_failures": "3/hour"},
        on_auth=lambda auth, session: auth.password == "secret",
        allow_insecure_auth=True,
    ) as served:
        replies = []
        for n, password in enumerate(["wrong", "wrong", "secret", "wrong", "secret"]):
            client, _ = await client_from(served, f"192.0.2.{n}")
            await client.ehlo()
            replies.append(await client.say("AUTH PLAIN " + b64(f"\0{name}\0{password}")))
        locked = "454 Error: too many failed logins, try again later"
        assert replies == [REFUSED, REFUSED, "235 Authentication successful", REFUSED, locked]
        client, _ = await client_from(served, "192.0.2.77")
        await client.ehlo()
        assert (await client.command("AUTH PLAIN " + b64("\0another\0secret"))).code == 235


async def test_rates_of_errors() -> None:
    async with behind_a_proxy(rates_per_address={"errors": "3/hour"}) as served:
        replies = []
        for _ in range(2):
            client, _ = await client_from(served, "192.0.2.1")
            replies += [await client.say("FOO"), await client.say("FOO")]
        assert [reply[:3] for reply in replies] == ["500", "500", "500", "421"]
        await client.eof()


@pytest.mark.parametrize("option", ["rates_per_address", "rates_per_account", "rates_over_all"])
async def test_what_is_no_rate_is_refused_at_once(option: str) -> None:
    for value in ("fast", "0/minute", "10", "10/fortnight", "1/s; 2/s", "-1/minute", ""):
        with pytest.raises(ConfigurationError, match=rf'option {option}: messages must be a rate as "60/minute"'):
            SMTPServer({option: {"messages": value}})
    with pytest.raises(ConfigurationError, match="does not know 'message': did you mean 'messages'"):
        SMTPServer({option: {"message": "1/hour"}})
    with pytest.raises(ConfigurationError, match=f"option {option}: must be a table of strings"):
        SMTPServer({option: ["messages"]})


async def test_rate_store_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="option rate_store: must be") as failure:
        SMTPServer(rate_store="memcached://:hidden@localhost")
    assert "hidden" not in str(failure.value)


# --- A store that several share


@contextlib.asynccontextmanager
async def redis(folder: Any) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a Redis server on a Unix socket and a free port; return its URL."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while b"Ready to accept" not in (line := await asyncio.wait_for(process.stdout.readline(), TIMEOUT)):
            assert line, "redis-server ended"
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.promises(
    "Limits", "Numbers and rates may be limited for an address, where a /64 of IPv6 counts as one, and over all."
)
@on_both_loops
async def test_rate_store_in_redis_is_shared(tmp_path: Path) -> None:
    async with redis(tmp_path) as (url, process):
        options: dict[str, Any] = {"rates_per_address": {"messages": "3/hour"}, "rate_store": url}
        async with serving(**options) as one, serving(**options) as other:
            clients = [await one.hello(), await other.hello()]
            for n in range(3):
                assert await clients[n % 2].deliver() == "250 OK: message queued"
            for client in clients:
                assert (await client.command("MAIL FROM:<a@example.com>")).code == 450
        async with serving(**options) as again:  # nor does a new start forget
            assert (await (await again.hello()).command("MAIL FROM:<a@example.com>")).code == 450
            process.kill()
            await process.wait()
            with recorded(logging.INFO) as records:
                client = await again.hello()
                assert await client.deliver() == "250 OK: message queued"  # mail does not stop for what counts it
                assert await client.deliver() == "250 OK: message queued"
            (told,) = limits_logged(records)
            assert told.startswith("the rate store fails, rates do not hold: ")


async def test_a_rate_store_that_hangs_does_not_stop_the_mail() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with (
        silent,
        serving(rates_over_all={"messages": "3/hour"}, rate_store=f"redis://127.0.0.1:{port}/0") as served,
    ):
        client = await served.hello()
        assert await client.deliver() == "250 OK: message queued"
