"""``lmtp:``, ``smtp:`` and ``smtps:``: what the next server gets, and what the client hears of it."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from messages import begun, message, session_for
from next_server import CLOSES, EHLO, HANGS, next_server
from pillarbox import ConfigurationError, MessageStream, Recipient, Reject, Session
from pillarbox.cli.config import effective
from pillarbox.deliver import Message, Target, relay_pool, relay_settings, target_from_url
from pillarbox.deliver import relay as relay_module
from pillarbox.deliver.relay import Relay
from pillarbox.deliver.relay_client import Limits
from pillarbox.deliver.relay_content import READ_AHEAD
from support import Inbox, Served, Sessions, ca_pem, issued, on_both_loops, pem, serving

SIMPLE = b"Subject: x\r\n\r\n.\r\n..\r\nHello.\r\n"
UNREACHABLE = "451 4.4.1 Error: the next server cannot be reached, try again later"
LOST = "451 4.4.2 Error: the connection to the next server was lost, try again later"
NOT_NOW = "451 4.3.5 Error: the message cannot be handed on now, try again later"
QUICK = Limits(connect=0.2, command=0.2, data=0.2, block=0.2, termination=0.2, farewell=0.2)


@asynccontextmanager
async def relay(url: str, limits: Limits | None = None, **settings: Any) -> AsyncIterator[Relay]:
    target = target_from_url(url, {"name": "edge.example", **settings})
    assert isinstance(target, Relay)
    await target.start()
    if limits is not None:
        target._place = replace(target._place, limits=limits)
    try:
        yield target
    finally:
        await target.close()


@asynccontextmanager
async def relayed(
    scheme: str = "smtp", settings: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Relay, Inbox, Served]]:
    """Run a server and a relay to it."""
    inbox = Inbox()
    options = {
        "on_data": inbox,
        "lmtp": scheme == "lmtp",
        "hide_enhanced_status_codes": False,
        "hide_dsn": False,
    } | options
    async with (
        serving(**options) as served,
        relay(f"{scheme}://localhost:{served.address[1]}", **settings or {}) as target,
    ):
        yield target, inbox, served


async def refused(target: Relay, *blocks: bytes, session: Session | None = None) -> str:
    with pytest.raises(Reject) as refusal:
        await target.deliver(message(*(blocks or (SIMPLE,)), session=session))
    return str(refusal.value)


def shown(answers: Any) -> list[str]:
    return [str(answer) for answer in answers]


class TestWhatArrives:
    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    @pytest.mark.promises(
        "Handing on",
        "A message that is handed on ends where it ended: dots are doubled, and CR and LF leave as CRLF only.",
    )
    async def test_every_octet_at_every_cut(self, scheme: str) -> None:
        async with relayed(scheme) as (target, inbox, _):
            for place in range(len(SIMPLE)):
                [answer] = await target.deliver(message(SIMPLE[:place], SIMPLE[place:]))
                assert str(answer).startswith(f"{target.url} (250 2.6.0 OK: message ")
            assert [each.content for each in inbox] == [SIMPLE] * len(SIMPLE)

    async def test_by_a_unix_socket(self, tmp_path: Path) -> None:
        inbox = Inbox()
        async with serving(on_data=inbox, lmtp=True) as served:
            await served.server.listen(path=str(tmp_path / "lmtp"))
            for url in (f"lmtp:{tmp_path}/lmtp", f"lmtp://{tmp_path}/lmtp"):
                async with relay(url) as target:
                    await target.deliver(message(SIMPLE))
        assert [each.content for each in inbox] == [SIMPLE] * 2

    async def test_the_envelope(self) -> None:
        async with relayed(size=1_000_000) as (target, inbox, _):
            session = session_for("b@example.com", '"c> d"@example.com', "postmaster", sender="")
            await target.deliver(message(SIMPLE, session=session))
            envelope = inbox[0].envelope
            assert envelope.mail_from is not None
            assert envelope.mail_from.address == ""
            assert inbox[0].recipients == ["b@example.com", '"c> d"@example.com', "postmaster"]
            assert envelope.mail_from.args == {"SIZE": str(len(SIMPLE))}

    async def test_only_its_own_recipients(self) -> None:
        async with relayed() as (target, inbox, _):
            session = session_for("b@example.com", "c@example.com")
            one = message(SIMPLE, session=session)
            one.recipients = one.recipients[1:]
            await target.deliver(one)
            assert inbox[0].recipients == ["c@example.com"]

    async def test_commands_leave_together_where_the_server_takes_them_so(self) -> None:
        async with next_server() as there, relay(there.url()) as target:
            await target.deliver(message(SIMPLE, session=session_for("b@x.example", "c@x.example")))
            assert there.heard[0].verbs() == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA"]
            assert there.heard[0].flights == [1, 3, 1]

    async def test_commands_leave_one_by_one_otherwise(self) -> None:
        async with next_server(EHLO=b"250 next.example\r\n") as there, relay(there.url()) as target:
            await target.deliver(message(SIMPLE, session=session_for("b@x.example", "c@x.example")))
            assert there.heard[0].commands == [
                "EHLO edge.example",
                "MAIL FROM:<a@example.org>",
                "RCPT TO:<b@x.example>",
                "RCPT TO:<c@x.example>",
                "DATA",
            ]
            assert there.heard[0].flights == [1] * 5

    async def test_a_server_without_ehlo(self) -> None:
        async with next_server(EHLO=b"502 what\r\n") as there, relay(there.url()) as target:
            await target.deliver(message(SIMPLE))
            assert there.heard[0].verbs() == ["EHLO", "HELO", "MAIL", "RCPT", "DATA"]
            assert there.heard[0].data == b"Subject: x\r\n\r\n..\r\n...\r\nHello.\r\n.\r\n"

    async def test_nothing_is_asked_for_before_a_small_message_is_whole(self) -> None:
        async with next_server() as there, relay(there.url()) as target:
            delivery = await begun(target, b"Subject: x\r\n", b"\r\n")
            await asyncio.sleep(0)
            assert not there.heard
            await delivery.commit()
            assert there.heard[0].ended


@on_both_loops
async def test_a_large_message() -> None:
    block = b"".join(b"%s%060d\r\n" % (b"." * (n % 3), n) for n in range(1000))
    async with relayed() as (target, inbox, _):
        await target.deliver(message(*[block] * 100))
        assert inbox[0].content == block * 100


class TestStreaming:
    BLOCK = b"0123456789abcdef0123456789abcde\r\n" * 2000  # 64 KiB

    async def test_the_next_servers_pace_is_the_clients(self) -> None:
        go_on = asyncio.Event()
        got: list[int] = []

        async def slow(stream: MessageStream, session: Session) -> None:
            await go_on.wait()
            got.append(len(await stream.read()))

        taken = 0
        async with relayed(on_data=slow) as (target, _, _served):
            delivery = await begun(target)

            async def write() -> None:
                nonlocal taken
                for _ in range(400):  # 26 MB
                    await delivery.write(self.BLOCK)
                    taken += 1

            writing = asyncio.create_task(write())
            before = -1
            while taken != before or taken < 2:  # until nothing moves for a while
                before = taken
                await asyncio.sleep(0.2)
            assert 1 < taken < 200, "what sockets and one read ahead hold, not the message"
            go_on.set()
            await writing
            await delivery.commit()
            assert got == [400 * len(self.BLOCK)]

    @pytest.mark.promises(
        "Handing on", "What does not come to its end here is not ended at the next server: it keeps nothing of it."
    )
    @pytest.mark.parametrize("blocks", [1, 8], ids=["small", "large"])
    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    async def test_a_client_that_vanishes(self, scheme: str, blocks: int) -> None:
        async with next_server() as there, relay(there.url(scheme)) as target:
            delivery = await begun(target, *[self.BLOCK] * blocks)
            large = blocks * len(self.BLOCK) > READ_AHEAD
            if large:
                await there.until(lambda: bool(there.heard and there.heard[0].data))
            await delivery.abort()
            with pytest.raises(ConnectionError, match="gone"):
                await delivery.task
            if large:
                await there.heard[0].closed.wait()
                assert not there.heard[0].ended
            assert len(there.heard) == large

    @pytest.mark.promises(
        "Handing on", "What does not come to its end here is not ended at the next server: it keeps nothing of it."
    )
    async def test_cancelled_in_the_middle(self) -> None:
        async with relayed() as (target, inbox, _):
            delivery = await begun(target, *[self.BLOCK] * 8)
            await delivery.cancel()
            assert await target.deliver(message(SIMPLE))
            assert [each.content for each in inbox] == [SIMPLE]

    async def test_a_message_that_is_refused_in_the_middle(self) -> None:
        async with relayed() as (target, inbox, _):
            delivery = await begun(target, *[self.BLOCK] * 8)
            await delivery.abort(Reject(552, "too large"))
            assert not inbox

    @pytest.mark.parametrize(
        ("early", "heard"),
        [
            (b"552 5.3.4 too large for us\r\n", "552 5.3.4 too large for us"),
            (b"421 4.3.2 shutting down\r\n", LOST),
            (b"250 have it already\r\n", LOST),
            (CLOSES, LOST),
        ],
    )
    async def test_a_server_that_answers_before_the_end(self, early: bytes, heard: str) -> None:
        async with next_server(early=early) as there, relay(there.url()) as target:
            delivery = await begun(target, *[self.BLOCK] * 8)
            await there.until(lambda: bool(there.heard[0].data))
            for _ in range(200):
                await delivery.write(self.BLOCK)
            try:
                answers = shown(await delivery.commit())
            except Reject as refusal:
                answers = [str(refusal)]
            assert answers == [heard]

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset takes with it what was not read")
    async def test_a_server_that_refuses_and_closes_at_once_is_heard(self) -> None:
        closed = threading.Event()

        def serve(listening: socket.socket) -> None:
            with listening.accept()[0] as client, client.makefile("rb", buffering=0) as lines:
                client.sendall(b"220 x\r\n")
                while line := lines.readline():
                    client.sendall(b"354 go on\r\n" if line == b"DATA\r\n" else b"250 ok\r\n")
                    if line == b"DATA\r\n":
                        lines.read(1)
                        client.sendall(b"552 5.3.4 too large\r\n")
                        return  # what is left unread makes this a reset

        def run(listening: socket.socket) -> None:
            serve(listening)
            closed.set()

        async def blocks() -> AsyncIterator[bytes]:
            for _ in range(READ_AHEAD // len(self.BLOCK) + 2):
                yield self.BLOCK
            closed.wait(10)  # in the event loop, which thus has read nothing of it
            yield self.BLOCK

        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=run, args=(listening,), daemon=True)
            thread.start()
            async with relay(f"smtp://127.0.0.1:{listening.getsockname()[1]}") as target:
                session = session_for()
                answers = await target.deliver(Message(session, session.envelope.rcpt_to, blocks()))
            thread.join(10)
        assert shown(answers) == ["552 5.3.4 too large"]

    async def test_a_server_that_does_not_read_on(self) -> None:
        async with next_server(early=HANGS) as there, relay(there.url(), Limits(block=0.2)) as target:
            delivery = await begun(target)
            for _ in range(400):
                await delivery.write(self.BLOCK)
            with pytest.raises(Reject) as refusal:
                await delivery.commit()
            assert str(refusal.value) == LOST


class TestRefusals:
    async def test_in_lmtp_each_recipient_has_its_own(self) -> None:
        def on_rcpt_to(recipient: Recipient, session: Session) -> None:
            if recipient.address.startswith("nobody"):
                raise Reject(550, "No such user here", enhanced="5.1.1")

        async def on_data(stream: MessageStream, session: Session) -> list[Reject | None]:
            await stream.read()
            return [Reject(452, "Full", enhanced="4.2.2"), None]

        async with relayed("lmtp", on_rcpt_to=on_rcpt_to, on_data=on_data) as (target, _, _served):
            session = session_for("full@example.com", "nobody@example.com", "b@example.com")
            session.lmtp = True
            answers = shown(await target.deliver(message(SIMPLE, session=session)))
            assert answers == [
                "452 4.2.2 Full",
                "550 5.1.1 No such user here",
                f"{target.url} (250 2.6.0 OK: message accepted)",
            ]

    async def test_from_lmtp_to_smtp(self) -> None:
        refuse = iter([b"250 ok\r\n", b"550 no\r\n", b"250 ok\r\n"])
        async with next_server(RCPT=lambda _: next(refuse)) as there, relay(there.url()) as target:
            session = session_for("b@x.example", "c@x.example", "d@x.example")
            session.lmtp = True
            place = f"{target.url} (250 queued as 1)"
            assert shown(await target.deliver(message(SIMPLE, session=session))) == [place, "550 no", place]

    @pytest.mark.parametrize(
        ("codes", "heard"),
        [
            ({"c": 550}, "550 5.0.0 <c@x.example>: no"),
            ({"c": 450}, "450 4.0.0 <c@x.example>: no"),
            ({"b": 450, "c": 550}, "550 5.0.0 <c@x.example>: no"),
        ],
    )
    async def test_in_smtp_all_or_none(self, codes: dict[str, int], heard: str) -> None:
        def on_rcpt_to(recipient: Recipient, session: Session) -> None:
            if (code := codes.get(recipient.address[0])) is not None:
                raise Reject(code, "no", enhanced=f"{code // 100}.0.0")

        async with relayed(on_rcpt_to=on_rcpt_to) as (target, inbox, _):
            session = session_for("b@x.example", "c@x.example", "d@x.example")
            assert shown(await target.deliver(message(SIMPLE, session=session))) == [heard] * 3
            assert not inbox

    async def test_of_the_only_recipient(self) -> None:
        async with next_server(RCPT=b"550-5.1.1 No such\r\n550 5.1.1 user\r\n") as there, relay(there.url()) as target:
            assert shown(await target.deliver(message(SIMPLE))) == ["550 5.1.1 No such user"]
            assert there.heard[0].verbs() == ["EHLO", "MAIL", "RCPT", "RSET"]

    @pytest.mark.parametrize(
        ("reply", "heard"),
        [
            (b"550 5.7.1 not you\r\n", "550 5.7.1 not you"),
            (b"550 4.7.1 a status of another class\r\n", "550 4.7.1 a status of another class"),
            (b"452 full\r\n", "452 full"),
            (b"554\r\n", "554 Error: refused by the next server"),
            (b"530 5.7.0 authenticate first\r\n", NOT_NOW),
            (b"503 5.5.1 bad sequence\r\n", "451 4.5.0 Error: the message cannot be handed on now, try again later"),
            (b"354 go on\r\n", "451 4.5.0 Error: the message cannot be handed on now, try again later"),
        ],
    )
    @pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "end"])
    async def test_codes_and_texts(self, where: str, reply: bytes, heard: str) -> None:
        if (where, reply[:3]) == ("DATA", b"354"):
            return
        async with next_server(**{where: reply}) as there, relay(there.url()) as target:
            [answer] = await target.deliver(message(SIMPLE))
            assert isinstance(answer, Reject)
            assert str(answer) == heard

    async def test_a_reply_without_measure_is_cut(self, caplog: pytest.LogCaptureFixture) -> None:
        line = b"550-%s\r\n" % (b"x" * 8000)
        async with next_server(end=line * 90 + b"550 x\r\n") as there, relay(there.url()) as target:
            [answer] = await target.deliver(message(SIMPLE))
            assert 900 < len(str(answer)) < 1100
            there.answers["MAIL"] = line.replace(b"550", b"421") * 90 + b"421 x\r\n"
            assert await refused(target) == LOST
            assert 900 < len(caplog.messages[-1]) < 1200

    async def test_refusals_hold_when_the_server_has_enough_of_them(self) -> None:
        def rcpt(heard: Any) -> bytes:
            wrong = sum(command.startswith("RCPT TO:<no") for command in heard.commands)
            return b"421 too many errors\r\n" if wrong > 2 else b"550 no\r\n" if wrong else b"250 ok\r\n"

        for hello in (EHLO, b"250 next.example\r\n"):
            async with next_server(EHLO=hello, RCPT=rcpt) as there, relay(there.url()) as target:
                session = session_for("b@x.example", *[f"no{n}@x.example" for n in range(4)])
                answers = await target.deliver(message(SIMPLE, session=session))
                assert shown(answers) == ["550 <no0@x.example>: no"] * 5, "else it is tried again for days"
                session.lmtp = True
                answers = await target.deliver(message(SIMPLE, session=session))
                assert shown(answers) == [LOST, "550 no", "550 no", LOST, LOST]
                assert not any(heard.data for heard in there.heard)

    async def test_a_refusal_keeps_the_connection(self) -> None:
        answers = iter([b"550 no\r\n", b"250 ok\r\n"])
        async with next_server(RCPT=lambda _: next(answers)) as there, relay(there.url()) as target:
            assert shown(await target.deliver(message(SIMPLE))) == ["550 no"]
            assert shown(await target.deliver(message(SIMPLE))) == [f"{target.url} (250 queued as 1)"]
            assert len(there.heard) == 1

    async def test_lmtp_gets_nothing_where_nobody_is_accepted(self) -> None:
        async with next_server(RCPT=b"550 no\r\n") as there, relay(there.url("lmtp")) as target:
            session = session_for("b@x.example", "c@x.example")
            session.lmtp = True
            assert shown(await target.deliver(message(SIMPLE, session=session))) == ["550 no", "550 no"]
            assert "DATA" not in there.heard[0].verbs()


class TestFaults:
    """Whatever goes wrong on the way is 451, and in time; nothing is sent twice."""

    PHASES = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "end")
    # What is not to pass has all the time in the world, or a busy machine makes another failure of it.
    SHORT = MappingProxyType({"greeting": "connect", "DATA": "data", "end": "termination"})  # else command

    @pytest.mark.promises("Handing on", "250 says that the next server has said it; what goes wrong on the way is 451.")
    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize(
        "fault",
        [CLOSES, HANGS, b"421 4.3.2 closing\r\n", b"what?\r\n", b"250-and so on\r\n" * 5000, b"2" * 100_000],
        ids=["closes", "hangs", "421", "garbage", "endless reply", "endless line"],
    )
    async def test_at_each_phase(self, phase: str, fault: bytes | None) -> None:
        limits = Limits(**{self.SHORT.get(phase, "command"): 0.5}) if fault is HANGS else None
        async with next_server(**{phase: fault}) as there, relay(there.url(), limits) as target, asyncio.timeout(20):
            try:
                [answer] = await target.deliver(message(SIMPLE))
            except Reject as refusal:
                answer = refusal
            assert str(answer) == (UNREACHABLE if phase in ("greeting", "EHLO") else LOST)
            assert len(there.heard) == 1
            await there.heard[0].closed.wait() if fault is not HANGS else None

    async def test_nobody_listens(self, unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
        async with relay(f"smtp://127.0.0.1:{unused_tcp_port}") as target:
            assert await refused(target) == UNREACHABLE
        async with relay("smtp:/nowhere") as target:
            assert await refused(target) == UNREACHABLE
            assert "smtp:/nowhere: cannot connect: No such file or directory" in caplog.text

    async def test_what_failed_is_in_the_log_and_not_in_the_reply(self, caplog: pytest.LogCaptureFixture) -> None:
        async with next_server(greeting=b"554 secrets.example is closed\r\n") as there, relay(there.url()) as target:
            assert "secrets" not in await refused(target)
            assert "secrets.example is closed" in caplog.text
            assert there.url() in caplog.text

    async def test_a_server_that_is_not_there_is_named_once(
        self, caplog: pytest.LogCaptureFixture, unused_tcp_port: int
    ) -> None:
        url = f"smtp://127.0.0.1:{unused_tcp_port}"
        async with relay(url) as target:
            assert await refused(target) == UNREACHABLE
        assert caplog.messages[-1] == f"{url}: cannot connect: {os.strerror(errno.ECONNREFUSED)}"

    async def test_a_server_that_closes_at_once_is_named_once(self, caplog: pytest.LogCaptureFixture) -> None:
        async with next_server(greeting=CLOSES) as there, relay(there.url()) as target:
            assert await refused(target) == UNREACHABLE
            assert f"{there.url()}: cannot connect: " in caplog.text
            assert caplog.text.count(str(there.port)) == 1

    async def test_in_lmtp_those_that_have_an_answer_keep_it(self) -> None:
        end = b"250 2.0.0 has it\r\n421 4.3.2 closing\r\n"
        async with next_server(end=end) as there, relay(there.url("lmtp")) as target:
            session = session_for("b@x.example", "c@x.example", "d@x.example")
            session.lmtp = True
            answers = shown(await target.deliver(message(SIMPLE, session=session)))
            assert answers == [f"{target.url} (250 2.0.0 has it)", LOST, LOST]


class TestConnections:
    async def test_one_is_used_again(self) -> None:
        sessions = Sessions()
        async with relayed(on_connect=sessions) as (target, inbox, _):
            for _ in range(3):
                await target.deliver(message(SIMPLE))
            assert (len(inbox), len(sessions)) == (3, 1)

    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    async def test_fifty_at_once_through_five(self, scheme: str) -> None:
        at_once = most = 0

        async def on_data(stream: MessageStream, session: Session) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            inbox.append(await stream.read())
            at_once -= 1

        inbox: list[bytes] = []
        sessions = Sessions()
        async with relayed(scheme, {"connections": 5}, on_data=on_data, on_connect=sessions) as (target, _, _served):
            bodies = [b"Subject: %d\r\n\r\n.%d\r\n" % (n, n) for n in range(50)]
            async with asyncio.timeout(10):
                await asyncio.gather(*(target.deliver(message(body)) for body in bodies))
            assert sorted(inbox) == sorted(bodies)
            assert (most, len(sessions)) == (5, 5)

    async def test_a_slow_client_keeps_none_from_others(self) -> None:
        async with relayed(settings={"connections": 1}) as (target, inbox, _):
            slow = await begun(target, b"Subject: x\r\n")
            await target.deliver(message(SIMPLE))
            await slow.commit()
            assert len(inbox) == 2

    async def test_it_is_closed_when_nobody_needs_it(self) -> None:
        async with next_server() as there, relay(there.url(), idle=0.05) as target:
            await target.deliver(message(SIMPLE))
            async with asyncio.timeout(5):
                await there.heard[0].closed.wait()
            assert there.heard[0].verbs()[-1] == "QUIT"
            await target.deliver(message(SIMPLE))
            assert len(there.heard) == 2

    async def test_with_idle_0_each_message_has_its_own(self) -> None:
        async with next_server() as there, relay(there.url(), idle=0) as target:
            for _ in range(2):
                await target.deliver(message(SIMPLE))
            assert [heard.verbs().count("DATA") for heard in there.heard] == [1, 1]

    async def test_who_takes_leave_counts_too(self) -> None:
        """A server that does not answer QUIT has no more connections than it may have."""
        at_once = most = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(at_once, most)
            writer.write(b"220 x\r\n")
            with suppress(ConnectionError):
                while line := await reader.readline():
                    verb = line.split()[0]
                    writer.write({b"DATA": b"354 go on\r\n", b"QUIT": b""}.get(verb, b"250 ok\r\n"))
                    if verb == b"DATA":
                        await reader.readuntil(b"\r\n.\r\n")
                        writer.write(b"250 ok\r\n")
            at_once -= 1
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, relay(url, Limits(farewell=0.2), idle=0, connections=2) as target:
            for _ in range(8):
                assert shown(await target.deliver(message(SIMPLE))) == [f"{url} (250 ok)"]
            assert most == 2

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            (None, "its name cannot be looked up in time"),
            (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
            (UnicodeError("label too long"), "label too long"),
            ([], "it has no address"),
        ],
    )
    async def test_a_name_without_an_address(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, found: Any, said: str
    ) -> None:
        async def getaddrinfo(*_: Any, **__: Any) -> Any:
            if isinstance(found, Exception):
                raise found
            return found if found is not None else await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        async with relay("smtp://some.example", Limits(connect=0.2)) as target:
            assert await refused(target) == UNREACHABLE
        assert caplog.messages[-1] == f"smtp://some.example: cannot connect: {said}"

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue may answer")
    async def test_an_address_that_does_not_answer_leaves_time_for_the_next(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with next_server() as there:
            with ExitStack() as stack:
                full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0)).getsockname()
                for _ in range(3):  # more than may wait for accept(): whoever comes now is not answered
                    waiting = stack.enter_context(socket.socket())
                    waiting.setblocking(False)
                    waiting.connect_ex(full)
                places = [full, ("127.0.0.1", there.port)]

                async def found(*_: Any, **__: Any) -> list[Any]:
                    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

                monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
                async with relay("smtp://two.example", Limits(connect=2.0)) as target:
                    assert shown(await target.deliver(message(SIMPLE))) == [f"{target.url} (250 queued as 1)"]
                places.pop()
                async with relay("smtp://two.example", QUICK) as target:
                    assert await refused(target) == UNREACHABLE
                    assert caplog.messages[-1] == "smtp://two.example: cannot connect: it does not answer"

    @pytest.mark.parametrize(
        "fault", [CLOSES, b"421 4.4.2 idle for too long\r\n", b"what?\r\n"], ids=["closed", "421", "garbage"]
    )
    @pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
    async def test_a_dead_one_is_replaced_before_anything_was_sent(self, phase: str, fault: bytes) -> None:
        def second(heard: Any) -> bytes | None:
            usual = b"354 go on\r\n" if phase == "DATA" else b"250 ok\r\n"
            return fault if heard.verbs().count(phase) == 2 else usual

        async with next_server(**{phase: second}) as there, relay(there.url()) as target:
            for _ in range(2):
                assert shown(await target.deliver(message(SIMPLE))) == [f"{target.url} (250 queued as 1)"]
            assert [heard.ended for heard in there.heard] == [True, True]

    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    async def test_a_reply_too_many_is_not_that_to_the_next_command(self, scheme: str) -> None:
        async with next_server(end=b"250 one\r\n250 two\r\n") as there, relay(there.url(scheme), verify=True) as target:
            await target.deliver(message(SIMPLE))
            there.answers["RCPT"] = b"550 no\r\n"
            session = session_for()
            with pytest.raises(Reject, match="550"):
                await target.verify(session.envelope.rcpt_to[0], session)

    async def test_a_server_that_says_421_to_everyone(self) -> None:
        async with next_server(MAIL=b"421 go away\r\n") as there, relay(there.url()) as target:
            assert await refused(target) == LOST
            assert len(there.heard) == 1

    async def test_one_with_many_refusals_is_given_up(self) -> None:
        async with next_server(RCPT=b"550 no\r\n") as there, relay(there.url()) as target:
            for _ in range(25):
                await target.deliver(message(SIMPLE))
            assert [heard.verbs().count("MAIL") for heard in there.heard] == [10, 10, 5]

    async def test_the_end_of_the_program(self) -> None:
        async with next_server() as there:
            async with relay(there.url()) as target:
                await target.deliver(message(SIMPLE))
            assert there.heard[0].verbs()[-1] == "QUIT"

    async def test_what_is_cancelled_gives_its_place_back(self) -> None:
        async with next_server(MAIL=HANGS) as there, relay(there.url(), connections=1) as target:
            first, second = [asyncio.create_task(target.deliver(message(SIMPLE))) for _ in range(2)]
            await there.until(lambda: bool(there.heard and there.heard[0].commands))
            for task in (second, first):
                task.cancel()
            await asyncio.wait([first, second])
            there.answers.clear()
            async with asyncio.timeout(5):
                assert await target.deliver(message(SIMPLE))

    async def test_none_becomes_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_pool, "PATIENCE", 0.05)
        async with next_server(MAIL=HANGS) as there, relay(there.url(), Limits(command=1.0), connections=1) as target:
            first = asyncio.create_task(refused(target))
            await asyncio.sleep(0)
            assert await refused(target) == "451 4.3.2 Error: the message cannot be handed on now, try again later"
            assert await first == LOST


@on_both_loops
async def test_a_connection_that_the_server_closed_while_it_was_idle() -> None:
    async with relayed(socket_timeout=0.5) as (target, inbox, served):
        await target.deliver(message(SIMPLE))
        async with asyncio.timeout(5):
            while served.server.connections:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)
        await target.deliver(message(SIMPLE))
        assert len(inbox) == 2


@pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
@on_both_loops
async def test_whatever_goes_wrong_it_ends_and_leaves_nothing(scheme: str) -> None:
    chance = random.Random(6)
    faults = (CLOSES, HANGS, b"421 x\r\n", b"what\r\n", b"450 x\r\n", b"550 x\r\n", b"354 x\r\n", b"250 1\r\n250 2\r\n")

    def sometimes(usual: bytes) -> Any:
        return lambda _: chance.choice(faults) if chance.random() < 0.07 else usual

    usual = {"greeting": b"220 x\r\n", "EHLO": EHLO, "LHLO": EHLO, "DATA": b"354 x\r\n"}
    answers = dict.fromkeys(("MAIL", "RCPT", "RSET", "end"), b"250 ok\r\n") | usual
    settings = {"connections": 4, "idle": 0.05}
    outcomes: Counter[str] = Counter()

    async def deliver(target: Relay) -> None:
        session = session_for("b@x.example", "c@x.example")
        session.lmtp = chance.random() < 0.5
        octets = [SIMPLE] if chance.random() < 0.8 else [TestStreaming.BLOCK] * 6
        error = ConnectionError("gone") if chance.random() < 0.1 else None
        task = asyncio.ensure_future(target.deliver(message(*octets, session=session, error=error)))
        if chance.random() < 0.15:
            await asyncio.sleep(chance.random() / 50)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled() or task.exception() is not None:
            assert task.cancelled() or isinstance(task.exception(), Reject | ConnectionError)
            outcomes["failed"] += 1
        else:
            outcomes["delivered" if all(isinstance(answer, str) for answer in task.result()) else "refused"] += 1

    async with next_server(**{name: sometimes(each) for name, each in answers.items()}) as there:
        async with relay(there.url(scheme), QUICK, **settings) as target, asyncio.timeout(20):
            await asyncio.gather(*(deliver(target) for _ in range(150)))
            assert target._pool._places._value == 4
        assert not target._pool._idle
        assert not target._pool._leaving
        assert min(outcomes[each] for each in ("failed", "delivered", "refused"))


class TestVerify:
    @staticmethod
    def only_b(recipient: Recipient, session: Session) -> None:
        if not recipient.address.startswith("b@"):
            raise Reject(550, "No such user here", enhanced="5.1.1")

    @pytest.mark.parametrize(
        ("scheme", "verify", "asks"),
        [("lmtp", None, True), ("smtp", None, False), ("lmtp", False, False), ("smtp", True, True)],
    )
    async def test_who_is_asked(self, scheme: str, verify: bool | None, asks: bool) -> None:
        settings = {} if verify is None else {"verify": verify}
        async with relayed(scheme, settings, on_rcpt_to=self.only_b) as (target, _, served):
            assert target.verifies is asks
            if asks:
                await target.verify(Recipient("b@example.com"), session_for())
                with pytest.raises(Reject, match=r"550 5\.1\.1 No such user here"):
                    await target.verify(Recipient("c@example.com"), session_for())
            assert len(served.server.connections) == asks

    async def test_what_is_said(self) -> None:
        async with next_server() as there, relay(there.url(), verify=True) as target:
            session = session_for(sender="ann@example.org")
            await target.verify(Recipient("b@x.example"), session)
            await target.deliver(message(SIMPLE, session=session_for("b@x.example")))
            assert there.heard[0].commands == [
                "EHLO edge.example",
                "MAIL FROM:<ann@example.org>",
                "RCPT TO:<b@x.example>",
                "RSET",
                f"MAIL FROM:<a@example.org> SIZE={len(SIMPLE)}",
                "RCPT TO:<b@x.example>",
                "DATA",
            ]

    async def test_a_sender_that_is_refused(self) -> None:
        async with next_server(MAIL=b"550 5.7.1 not you\r\n") as there, relay(there.url(), verify=True) as target:
            with pytest.raises(Reject, match=r"550 5\.7\.1 not you"):
                await target.verify(Recipient("b@x.example"), session_for())

    async def test_a_server_that_is_not_there(self, unused_tcp_port: int) -> None:
        async with relay(f"lmtp://127.0.0.1:{unused_tcp_port}") as target:
            with pytest.raises(Reject) as refusal:
                await target.verify(Recipient("b@x.example"), session_for())
            assert str(refusal.value) == UNREACHABLE

    async def test_a_server_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_module, "PATIENCE_AT_RCPT", 0.1)
        async with next_server(RCPT=HANGS) as there, relay(there.url("lmtp")) as target:
            with pytest.raises(Reject) as refusal:
                await target.verify(Recipient("b@x.example"), session_for())
            assert str(refusal.value) == UNREACHABLE


class TestReload:
    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    def test_what_goes_on(self, scheme: str, tmp_path: Path) -> None:
        """A password that was changed is used, wherever it stands."""
        file = tmp_path / "password"
        file.write_text("secret")

        def made(user: str = "joe:secret@", **settings: Any) -> Target:
            return target_from_url(f"{scheme}://{user}localhost", settings)

        with_file = made("joe@", password_file=str(file))
        assert made().same_as(made())
        assert made("joe@", password_file=str(file)).same_as(with_file)
        assert not made("joe:changed@").same_as(made())
        assert not made("joe@", password="changed").same_as(made("joe@", password="secret"))
        assert not made(connections=2).same_as(made())
        file.write_text("changed")
        assert not made("joe@", password_file=str(file)).same_as(with_file)

    def test_the_home_of_nobody(self) -> None:
        with pytest.raises(ConfigurationError, match="there is no such home directory"):
            target_from_url("lmtp:~nobody-has-this-name/lmtp")


@pytest.fixture
def ca(tmp_path: Path) -> str:
    (tmp_path / "ca.pem").write_text(ca_pem())
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize("scheme", ["smtp", "lmtp", "smtps"])
@on_both_loops
async def test_tls_with_a_verified_certificate(scheme: str, ca: str) -> None:
    sessions = Sessions()
    options = {"secure": scheme == "smtps", "on_connect": sessions, **pem()}
    settings: dict[str, Any] = {"ca": ca} | ({} if scheme == "smtps" else {"tls": "required"})
    async with relayed(scheme, settings, **options) as (target, inbox, _):
        for _ in range(2):
            await target.deliver(message(SIMPLE * 10_000))
        assert [each.content for each in inbox] == [SIMPLE * 10_000] * 2
        assert [session.secure for session in sessions] == [True]


@on_both_loops
async def test_nothing_said_before_the_handshake_counts_after_it() -> None:
    """Who stands between cannot put replies in front of the server's own (CVE-2021-38371 and its like)."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(octets: bytes) -> None:
            writer.write(octets)
            heard.append(await reader.readline())

        await say(b"220 next.example\r\n")
        await say(b"250-next.example\r\n250-X-BEFORE\r\n250 STARTTLS\r\n")
        writer.write(b"220 go on\r\n250-evil.example\r\n250-SIZE\r\n250 SMTPUTF8\r\n250 ok\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued("localhost").configure_cert(context)
        await writer.start_tls(context)
        heard.append(await reader.readline())
        await say(b"250 next.example\r\n")
        writer.write(b"550 not today\r\n")
        heard.append(await reader.readline())
        await say(b"250 ok\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, relay(f"smtp://localhost:{server.sockets[0].getsockname()[1]}") as target:
        assert shown(await target.deliver(message(SIMPLE))) == ["550 not today"]
    assert [line.split()[0] for line in heard] == [b"EHLO", b"STARTTLS", b"EHLO", b"MAIL", b"RSET", b"QUIT"]
    assert heard[3] == b"MAIL FROM:<a@example.org>\r\n"


class TestTLS:
    @pytest.mark.parametrize("scheme", ["smtp", "smtps"])
    @pytest.mark.parametrize("wrong", ["authority", "name"])
    async def test_a_server_that_is_another(self, ca: str, scheme: str, wrong: str) -> None:
        certificate = pem() if wrong == "authority" else pem("other.example")
        settings: dict[str, Any] = {"tls": "required"} if scheme == "smtp" else {}
        settings |= {} if wrong == "authority" else {"ca": ca}
        async with relayed(scheme, settings, secure=scheme == "smtps", **certificate) as (target, inbox, _):
            assert await refused(target) == UNREACHABLE
            assert not inbox

    async def test_if_offered_any_certificate_will_do(self) -> None:
        sessions = Sessions()
        async with relayed(on_connect=sessions) as (target, inbox, _):
            await target.deliver(message(SIMPLE))
            assert sessions[0].secure
            assert len(inbox) == 1

    async def test_if_offered_it_goes_without_where_there_is_none(self) -> None:
        async with relayed(hide_starttls=True) as (target, inbox, _):
            await target.deliver(message(SIMPLE))
            assert len(inbox) == 1

    async def test_required_and_not_offered(self) -> None:
        async with relayed(settings={"tls": "required"}, hide_starttls=True) as (target, inbox, _):
            assert await refused(target) == "451 4.7.4 Error: the message cannot be handed on now, try again later"
            assert not inbox

    async def test_off(self) -> None:
        sessions = Sessions()
        async with relayed(settings={"tls": "off"}, on_connect=sessions) as (target, _, _served):
            await target.deliver(message(SIMPLE))
            assert not sessions[0].secure

    async def test_a_certificate_of_our_own(self, tmp_path: Path, ca: str) -> None:
        both = pem("edge.example", by="clients")
        (tmp_path / "edge.pem").write_text(both["key"] + both["cert"])
        sessions = Sessions()
        options = {"request_cert": True, "ca": ca_pem("clients"), "on_connect": sessions, **pem()}
        async with relayed(settings={"ca": ca, "cert": str(tmp_path / "edge.pem")}, **options) as (target, _, _served):
            await target.deliver(message(SIMPLE))
            assert sessions[0].tls is not None
            assert sessions[0].tls.authorized


class TestLogin:
    @staticmethod
    def on_auth(auth: Any, session: Session) -> str | None:
        return auth.username if auth.username == "edge" and auth.validate_password("s3cret %") else None

    @pytest.mark.parametrize("method", ["PLAIN", "LOGIN", "CRAM-MD5"])
    @pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
    async def test_methods(self, scheme: str, method: str) -> None:
        sessions = Sessions()
        settings = {"username": "edge", "password": "s3cret %"}
        options = {"auth_optional": False, "auth_methods": [method], "on_auth": self.on_auth, "on_connect": sessions}
        async with relayed(scheme, settings, **options) as (target, inbox, _):
            await target.deliver(message(SIMPLE))
            assert (len(inbox), sessions[0].user, sessions[0].secure) == (1, "edge", True)

    async def test_from_the_url_or_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("s3cret %\n", "utf-8-sig")  # with a mark of the byte order
        async with relayed(auth_optional=False, on_auth=self.on_auth) as (_, inbox, served):
            place = f"localhost:{served.address[1]}"
            async with relay(f"smtp://edge:s3cret%20%25@{place}") as target:
                assert target.url == f"smtp://edge@{place}"
                await target.deliver(message(SIMPLE))
            async with relay(f"smtp://edge@{place}", password_file=str(tmp_path / "password")) as target:
                await target.deliver(message(SIMPLE))
            assert len(inbox) == 2

    async def test_it_is_refused_and_not_tried_again_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        tries: list[str] = []

        def on_auth(auth: Any, session: Session) -> None:
            tries.append(auth.method)

        caplog.set_level(logging.DEBUG)
        settings = {"username": "edge", "password": "s3cret %"}
        async with relayed(settings=settings, auth_methods=["PLAIN"], on_auth=on_auth) as (target, inbox, _):
            assert [await refused(target) for _ in range(3)] == [NOT_NOW] * 3
            assert (tries, list(inbox)) == (["PLAIN"], [])
            assert "it refuses the login: 535" in caplog.text
            assert "s3cret" not in caplog.text
            assert "s3cret" not in repr(target.settings) + repr(target._place) + repr(target._server)

    @pytest.mark.promises(
        "Handing on", "A password goes to the next server under TLS only, or on this host, or where that is allowed."
    )
    async def test_never_in_plain_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # For once this host is far away.
        monkeypatch.setattr(relay_settings.NextServer, "near", False)
        login: dict[str, Any] = {"username": "edge", "password": "s3cret %"}
        hello = b"250-next.example\r\n250 AUTH PLAIN LOGIN\r\n"
        async with next_server(EHLO=hello, AUTH=b"235 ok\r\n") as there:
            async with relay(there.url(), **login) as target:
                assert await refused(target) == "451 4.7.4 Error: the message cannot be handed on now, try again later"
                assert there.heard[0].verbs() == ["EHLO"]
            async with relay(there.url(), **login, tls="off", allow_insecure_auth=True) as target:
                await target.deliver(message(SIMPLE))
                assert there.heard[1].verbs()[:2] == ["EHLO", "AUTH"]
            with pytest.raises(ValueError, match="could leave in plain text"):
                target_from_url(there.url(), login | {"tls": "if-offered"})

    async def test_a_server_that_refuses_the_login_and_goes(self) -> None:
        def auth(heard: Any) -> bytes:
            return b"535 no\r\n" if heard.verbs().count("AUTH") == 1 else CLOSES

        hello = b"250-next.example\r\n250 AUTH PLAIN LOGIN\r\n"
        async with next_server(EHLO=hello, AUTH=auth) as there:
            async with relay(there.url(), username="edge", password="x") as target:
                assert [await refused(target) for _ in range(3)] == [NOT_NOW] * 3
            assert len(there.heard) == 1, "each new attempt may lock the account"

    async def test_a_server_that_repeats_what_it_does_not_know(self, caplog: pytest.LogCaptureFixture) -> None:
        password = base64.b64encode(b"s3cret %").decode()
        answers = {"AUTH": b"334 UGFzc3dvcmQ6\r\n", password: b"500 unknown: %s\r\n" % password.encode()}
        hello = b"250-next.example\r\n250 AUTH LOGIN\r\n"
        login: dict[str, Any] = {"username": "edge", "password": "s3cret %"}
        async with next_server(EHLO=hello, **answers) as there, relay(there.url(), **login) as target:
            assert await refused(target) == NOT_NOW
        assert "it refuses the login: 500 unknown: ********" in caplog.text
        assert password not in caplog.text

    @pytest.mark.parametrize(
        ("hello", "auth", "heard"),
        [
            (b"250 next.example\r\n", b"", NOT_NOW),
            (b"250-next.example\r\n250 AUTH X-UNKNOWN\r\n", b"", NOT_NOW),
            (b"250-next.example\r\n250 AUTH PLAIN\r\n", b"454 4.7.0 later\r\n", NOT_NOW),
            (b"250-next.example\r\n250 AUTH CRAM-MD5\r\n", b"334 no base64\r\n", NOT_NOW),
            (b"250-next.example\r\n250 AUTH PLAIN\r\n", CLOSES, UNREACHABLE),
        ],
    )
    async def test_what_else_goes_wrong(self, hello: bytes, auth: bytes, heard: str) -> None:
        async with (
            next_server(EHLO=hello, AUTH=auth) as there,
            relay(there.url(), username="edge", password="x") as target,
        ):
            assert [await refused(target) for _ in range(2)] == [heard] * 2
            assert len(there.heard) == 2  # it is tried again


class TestExtensions:
    GERMAN = b"Subject: x\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n"

    @pytest.mark.parametrize(
        ("offered", "envelope", "said"),
        [
            ("SIZE", {}, "SIZE=30"),
            ("SIZE 10", {}, "SIZE=30"),
            ("8BITMIME", {"body_type": "8bitmime"}, "BODY=8BITMIME"),
            ("X", {"body_type": "8bitmime"}, ""),
            ("SMTPUTF8", {"smtp_utf8": True}, "SMTPUTF8"),
            ("X", {"smtp_utf8": True}, ""),
        ],
    )
    async def test_what_mail_says(self, offered: str, envelope: dict[str, Any], said: str) -> None:
        hello = f"250-next.example\r\n250 {offered}\r\n".encode()
        async with next_server(EHLO=hello) as there, relay(there.url()) as target:
            await target.deliver(message(b"Subject: x\r\n\r\n" + b"x" * 14 + b"\r\n", session=session_for(**envelope)))
            assert there.heard[0].commands[1] == f"MAIL FROM:<a@example.org> {said}".strip()

    async def test_8bit_content_to_a_server_without_it(self) -> None:
        async with next_server(EHLO=b"250 next.example\r\n") as there, relay(there.url()) as target:
            refusal = "554 5.6.3 Error: the next server does not take 8-bit content (8BITMIME)"
            assert await refused(target, self.GERMAN) == refusal
            delivery = await begun(target, *[TestStreaming.BLOCK] * 8, self.GERMAN)
            with pytest.raises(Reject, match="8-bit content"):
                await delivery.commit()
            assert not any(heard.ended for heard in there.heard)
            await target.deliver(message(SIMPLE))

    @pytest.mark.parametrize(
        ("sender", "recipient", "heard"),
        [
            (
                "\u00fc@example.org",
                "b@example.com",
                "550 5.6.7 Error: the next server does not take UTF-8 in addresses",
            ),
            (
                "a@example.org",
                "\u00fc@example.com",
                "553 5.6.7 Error: the next server does not take UTF-8 in addresses",
            ),
            ("a@example.org", "<>@x", "553 5.1.3 Error: this address cannot be handed on"),
        ],
    )
    async def test_addresses_that_it_cannot_take(self, sender: str, recipient: str, heard: str) -> None:
        async with relayed(hide_smtputf8=True) as (target, _, _served):
            assert await refused(target, session=session_for(recipient, sender=sender, smtp_utf8=True)) == heard

    async def test_utf8_addresses(self) -> None:
        async with relayed() as (target, inbox, _):
            session = session_for("\u00fc@b\u00fccher.example", sender="\u00f6@example.org", smtp_utf8=True)
            await target.deliver(message(self.GERMAN, session=session))
            assert inbox[0].recipients == ["\u00fc@b\u00fccher.example"]
            assert inbox[0].envelope.smtp_utf8

    async def test_a_domain_in_unicode_has_an_ascii_form(self) -> None:
        async with next_server() as there, relay(there.url()) as target:
            await target.deliver(message(SIMPLE, session=session_for("b@b\u00fccher.example")))
            assert "RCPT TO:<b@xn--bcher-kva.example>" in there.heard[0].commands

    async def test_utf8_in_header_fields_to_a_server_without_it(self) -> None:
        async with relayed(hide_smtputf8=True) as (target, inbox, _):
            header = b"Subject: \xc3\xbc\r\n\r\n"
            answer = await refused(target, header, session=session_for(smtp_utf8=True))
            assert answer == "554 5.6.9 Error: the next server does not take UTF-8 in header fields"
            await target.deliver(message(self.GERMAN, session=session_for(smtp_utf8=True)))  # it did not need it
            assert [each.envelope.smtp_utf8 for each in inbox] == [False]

    async def test_delivery_reports(self) -> None:
        # What our own server makes of RET and ENVID, NOTIFY and ORCPT is what the next one is to make of them.
        async with relayed("lmtp") as (target, inbox, _):
            front: list[Any] = []

            async def on_data(stream: MessageStream, session: Session) -> None:
                front.append((session.envelope.dsn, session.envelope.rcpt_to[0].dsn))
                await target.deliver(message(await stream.read(), session=session))

            async with serving(on_data=on_data, hide_dsn=False) as served:
                client = await served.hello()
                assert (await client.command("MAIL FROM:<a@b.c> RET=HDRS ENVID=a+2Bb")).code == 250
                rcpt = "RCPT TO:<b@example.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@example.com"
                assert (await client.command(rcpt)).code == 250
                assert (await client.data(b"x\r\n")).code == 250
            assert [(each.envelope.dsn, each.envelope.rcpt_to[0].dsn) for each in inbox] == front
            assert front[0][0].envid == "a+b"

    @pytest.mark.parametrize(
        ("mail", "rcpt", "offered", "without"),
        [
            ("MT-PRIORITY=3", "", "MT-PRIORITY", None),
            ("BY=120;N", "", "DELIVERBY", None),
            ("BY=120;R", "", "DELIVERBY 60", "550 5.3.3 Error: the next server does not offer DELIVERBY"),
            ("HOLDFOR=60", "", "FUTURERELEASE", "550 5.3.3 Error: the next server does not offer FUTURERELEASE"),
            ("", "RRVS=2014-04-03T23:01:00Z;C", "RRVS", None),
            ("", "RRVS=2014-04-03T23:01:00Z", "RRVS", "550 5.3.3 Error: the next server does not offer RRVS"),
        ],
    )
    async def test_wishes(self, mail: str, rcpt: str, offered: str, without: str | None) -> None:
        async def on_data(stream: MessageStream, session: Session) -> None:
            [answer] = await target.deliver(message(await stream.read(), session=session))
            if isinstance(answer, Reject):
                raise answer

        front = {"deliver_by": True, "future_release": 600, "mt_priority": True, "rrvs": True, "on_data": on_data}
        for is_offered in (True, False):
            hello = f"250-next.example\r\n250 {offered if is_offered else 'X'}\r\n".encode()
            async with next_server(EHLO=hello) as there, relay(there.url()) as target, serving(**front) as served:
                client = await served.hello()
                assert (await client.command(f"MAIL FROM:<a@b.c> {mail}".strip())).code == 250
                assert (await client.command(f"RCPT TO:<b@x.example> {rcpt}".strip())).code == 250
                answer = await client.data(b"x\r\n")
                if is_offered or without is None:
                    assert answer.code == 250
                    wishes = (f" {mail}".rstrip(), f" {rcpt}".rstrip()) if is_offered else ("", "")
                    said = [f"MAIL FROM:<a@b.c>{wishes[0]}", f"RCPT TO:<b@x.example>{wishes[1]}"]
                    assert there.heard[0].commands[1:3] == said
                else:
                    assert str(answer) == without.replace("5.3.3 ", "")
                    assert there.heard[0].verbs() == ["EHLO"]

    async def test_binary(self) -> None:
        octets = b"a\0\n\r.\r\n.\r\n" * 1000
        async with relayed("lmtp", binarymime=True, bare_newline="accept") as (target, inbox, _):
            session = session_for("b@x.example", "c@x.example", body_type="binarymime")
            answers = await target.deliver(message(*[octets] * 40, session=session))
            assert len(answers) == 2
            assert [each.content for each in inbox] == [octets * 40]
            assert inbox[0].envelope.body_type == "binarymime"
        async with relayed() as (target, inbox, _):
            heard = await refused(target, octets, session=session)
            assert heard == "554 5.6.3 Error: the next server does not take BODY=BINARYMIME"

    async def test_binary_that_is_refused_in_the_middle(self) -> None:
        hello = b"250-next.example\r\n250-CHUNKING\r\n250 BINARYMIME\r\n"
        async with (
            next_server(LHLO=hello, BDAT=b"552 5.3.4 too large\r\n") as there,
            relay(there.url("lmtp")) as target,
        ):
            session = session_for("b@x.example", "c@x.example", body_type="binarymime")
            answers = await target.deliver(message(b"abc", session=session))
            assert shown(answers) == ["552 5.3.4 too large"] * 2
            await there.heard[0].closed.wait()

    async def test_a_bare_newline_is_not_handed_on(self) -> None:
        async with relayed(bare_newline="accept") as (target, inbox, _):
            heard = await refused(target, b"a\n.\r\nMAIL FROM:<x@y.example>\r\n")
            assert heard == "554 5.6.0 Error: a message with a bare CR or LF cannot be handed on"
            assert not inbox

    async def test_require_tls(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text(ca_pem())
        session = session_for(require_tls=True)
        async with relayed(hide_requiretls=False, **pem()) as (unverified, inbox, _):
            heard = await refused(unverified, session=session)
            assert heard == "550 5.7.30 Error: REQUIRETLS support required of the next server"
            async with relay(unverified.url, ca=str(tmp_path / "ca.pem")) as target:
                await target.deliver(message(SIMPLE, session=session))
            assert [each.envelope.require_tls for each in inbox] == [True]

    @pytest.mark.promises("Handing on", "A message that loops ends.")
    async def test_a_loop_ends(self) -> None:
        async with relayed() as (target, inbox, _):
            hop = b"Received: from a by b; Sat, 07 Mar 2026 09:05:03 +0000\r\n"
            await target.deliver(message(hop * 100 + b"\r\n"))
            assert await refused(target, hop * 101) == "554 5.4.6 Error: too many hops, this is a mail loop"
            assert len(inbox) == 1


class TestConfiguration:
    @pytest.mark.parametrize(
        ("url", "host", "port", "path"),
        [
            ("smtp://mx.example.com", "mx.example.com", 25, ""),
            ("SMTP://mx.example.com/", "mx.example.com", 25, ""),
            ("lmtp://127.0.0.1", "127.0.0.1", 24, ""),
            ("smtps://[::1]:4650", "::1", 4650, ""),
            ("smtps://[::1]", "::1", 465, ""),
            ("lmtp:/run/dovecot/lmtp", "", 0, "/run/dovecot/lmtp"),
            ("lmtp:///run/dovecot/lmtp", "", 0, "/run/dovecot/lmtp"),
            ("lmtp:run/a%20b", "", 0, "run/a%20b"),
            ("smtp:/run/smtp", "", 0, "/run/smtp"),
        ],
    )
    def test_urls(self, url: str, host: str, port: int, path: str) -> None:
        server = relay_settings.parse_url(url)
        assert (server.host, server.port, server.path) == (host, port, path)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("smtp:", r"'smtp:': write smtp://HOST:PORT or smtp:PATH \(a Unix socket\)"),
            ("smtp://", "write smtp://HOST:PORT"),
            ("smtps:/run/x", r"write smtps://HOST:PORT$"),
            ("smtp://host:port", "'smtp://host:port': write smtp://HOST:PORT"),
            ("smtp://host:0", "write smtp://HOST:PORT"),
            ("smtp://host:99999", "write smtp://HOST:PORT"),
            ("smtp://host/x", "write smtp://HOST:PORT"),
            ("smtp://host?x=y", "write smtp://HOST:PORT"),
            ("smtp://joe:s3cret@host:port", "'smtp://host:port': write"),
            ("smtp:joe:s3cret@host", "'smtp:host': write"),
        ],
    )
    def test_wrong_urls(self, url: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            target_from_url(url)
        assert "s3cret" not in str(error.value)

    @pytest.mark.parametrize(
        ("url", "settings", "message"),
        [
            ("smtp://h", {"tls": "maybe"}, "tls: "),
            ("smtp://h", {"tsl": "off"}, "did you mean 'tls'"),
            ("smtps://h", {"tls": "required"}, "tls: smtps:// has TLS from the start"),
            ("lmtp:/x", {"tls": "required"}, "tls: there is none on a Unix socket"),
            ("smtp://h", {"tls": "off", "ca": "x"}, "ca has no effect without TLS"),
            ("lmtp:/x", {"tls_verify": True}, "tls_verify has no effect without TLS"),
            ("smtp://h", {"key": "x"}, "key has no effect without cert"),
            ("smtp://h", {"username": "x"}, "a login is username and password"),
            ("smtp://h", {"password": "x"}, "a login is username and password"),
            ("smtp://x@h", {"username": "x", "password": "y"}, "username stands in the URL already"),
            ("smtp://x:y@h", {"password": "y"}, "password stands in the URL already"),
            ("smtp://x@h", {"password": "y", "password_file": "z"}, "there are several passwords"),
            ("smtp://x:y@h", {"tls": "off"}, "could leave in plain text"),
            ("smtp://h", {"name": "ed ge"}, "name must be a host name"),
            ("smtp://h", {"connections": 0}, "connections: "),
            ("smtp://h", {"idle": -1}, "idle: "),
        ],
    )
    def test_what_does_not_fit(self, url: str, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            target_from_url(url, settings)

    def test_a_password_of_the_wrong_type_is_not_shown(self) -> None:
        with pytest.raises(ValueError, match=r"^password: should be a valid string$"):
            target_from_url("smtp://joe@h", {"password": 271828})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"ca": "/nowhere"}, "ca /nowhere: cannot be read: no such file or directory"),
            ({"cert": "/none", "key": "/nor"}, "cert /none, key /nor: cannot be read: no such file or directory"),
            ({"username": "x", "password_file": "/nowhere"}, "password_file /nowhere: cannot be read: no such file"),
            ({"username": "x", "password_file": "/dev/null"}, "password_file /dev/null: is empty"),
        ],
    )
    async def test_files_that_cannot_be_read(self, settings: dict[str, Any], message: str) -> None:
        target = target_from_url("smtp://127.0.0.1", settings)
        with pytest.raises(ValueError, match=message):
            await target.start()
        await target.close()

    def test_a_key_with_a_password_asks_nobody(self, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret"))
        (tmp_path / "cert.pem").write_bytes(ca_pem().encode() + encrypted)
        script = "import sys; from pillarbox.deliver import relay_settings as r; r.place(r.parse_url('smtps://h'), "
        script += "r.RelaySettings(cert=sys.argv[1], name='x'))"
        command = [sys.executable, "-c", script, str(tmp_path / "cert.pem")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                process.wait(30)  # its input stays open: whoever asks for a password waits
            finally:
                process.kill()
            assert process.stderr is not None
            assert "cert.pem: cannot be read: [ssl" in process.stderr.read()

    async def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "aiosmtplib", None)
        monkeypatch.delitem(sys.modules, "pillarbox.deliver.relay_connect", raising=False)
        with pytest.raises(ValueError, match=r"smtp://h needs aiosmtplib: pip install 'pillarbox\[smtp\]'"):
            await target_from_url("smtp://h").start()

    def test_the_files_in_the_documentation(self, tmp_path: Path) -> None:
        page = (Path(__file__).parents[2] / "docs/target-relay.md").read_text(encoding="utf-8")
        urls = []
        for block in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
            (tmp_path / "pillarbox.toml").write_text(block)
            urls += [route.target.url for route in effective(str(tmp_path / "pillarbox.toml")).routes]
        assert urls == ["lmtp:/run/dovecot/lmtp", "smtp://127.0.0.1:10025", "smtp://smtp.example.net:587"]

    def test_every_setting_is_documented(self) -> None:
        page = (Path(__file__).parents[2] / "docs/target-relay.md").read_text(encoding="utf-8")
        assert not [name for name in relay_settings.RelaySettings.model_fields if f"`{name}`" not in page]

    def test_it_is_no_final_delivery(self) -> None:
        target = target_from_url("lmtp:/run/dovecot/lmtp")
        assert (target.final, target.relays) == (False, True)
