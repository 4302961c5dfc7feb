"""Limits, once more: what gets around them, and who is honest and must not be hurt by them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from pillarbox import (
    AuthRequest,
    Command,
    ConfigurationError,
    Extension,
    MessageStream,
    Recipient,
    Reject,
    Reply,
    Session,
    SMTPServer,
)
from pillarbox.smtp import limits
from support import PLAIN, TIMEOUT, Client, b64, on_both_loops, recorded, serving


def no_one(*_: Any) -> None:
    """Refuse, whoever asks."""
    raise Reject


# --- Counted once, and counted at all


@pytest.mark.parametrize("command", ["VRFY someone", "EXPN list", "HELP it", "EHLO again.example"])
async def test_junk_that_the_application_refuses_counts_once(command: str) -> None:
    greeted: list[str] = []

    def on_ehlo(keywords: list[str], session: Session) -> None:
        greeted.append("")
        if len(greeted) > 1:
            raise Reject

    async with serving(max_junk_commands=6, on_vrfy=no_one, on_expn=no_one, on_help=no_one, on_ehlo=on_ehlo) as served:
        client = await served.hello()
        assert len(await client.said_until_closed(command)) == 7


async def test_a_verb_of_the_application_that_returns_an_error_is_no_error_of_the_client() -> None:
    def refuse(conversation: Any, argument: str) -> Reply:
        return Reply(501, "5.5.4", "Not so")

    async with serving(max_errors=3, extensions=[Extension(commands=[Command("XPING", refuse)])]) as served:
        client = await served.hello()
        for _ in range(6):
            assert await client.say("XPING") == "501 Not so"


async def test_chunks_sent_ahead_of_a_refusal_are_no_errors() -> None:
    # RFC 3030 2: "the receiver SMTP MUST be prepared to accept and discard additional BDAT chunks already in the
    # pipeline after the failed BDAT".
    async with serving(max_errors=3, on_data=no_one) as served:
        client = await served.hello()
        await client.envelope()
        await client.send(b"BDAT 3\r\nabc" * 20)
        codes = [(await client.reply()).code for _ in range(20)]
        assert 421 not in codes
        assert await client.say("RSET") == "250 Flushed"


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("chunk", ["BDAT 0", "BDAT 0 LAST"])
@pytest.mark.parametrize("when", ["before MAIL", "in a message", "after a refusal"])
async def test_empty_chunks_without_end_are_junk(when: str, chunk: str, lmtp: bool) -> None:
    if when == "in a message" and chunk == "BDAT 0 LAST":
        pytest.skip("that ends it")
    refusing = {"on_data": no_one} if when == "after a refusal" else {}
    async with serving(max_junk_commands=30, max_errors=30, lmtp=lmtp, **refusing) as served:
        client = await served.hello()
        if when != "before MAIL":
            await client.envelope()
        if when == "after a refusal":
            assert (await client.command("BDAT 0")).code in (250, 450)
            assert (await client.command("BDAT 3\r\nabc")).code in (250, 450, 503)
        with contextlib.suppress(ConnectionError):
            await client.send(f"{chunk}\r\n".encode() * 200)
        rest = await client.rest()
        assert rest.splitlines()[-1].startswith(b"421"), rest[-200:]


async def test_malformed_recipients_do_not_fill_the_log() -> None:
    async with serving(max_refused_recipients=10) as served:
        client = await served.hello()
        await client.envelope()
        with recorded(logging.INFO) as records:
            for _ in range(50):
                assert (await client.command("RCPT TO:<a..b@example.com>")).code in (501, 452)
        assert len(records) <= 11


async def test_recipients_without_end_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_OVERSHOOT", 20)
    async with serving(max_refused_recipients=10) as served:
        client = await served.hello()
        await client.envelope()
        with recorded(logging.INFO) as records:
            replies = await client.said_until_closed("RCPT TO:<a..b@example.com>")
        assert [reply[:3] for reply in replies] == ["501"] * 10 + ["452"] * 19 + ["421"]
        assert len(records) == 12


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
@pytest.mark.parametrize("lmtp", [False, True])
async def test_a_message_that_is_refused_does_not_begin_the_counts_anew(how: str, lmtp: bool) -> None:
    def known(address: Recipient, session: Session) -> None:
        if address.address != "known@example.com":
            raise Reject(550, "No such user")

    async with serving(max_refused_recipients=4, max_errors=4, on_rcpt_to=known, lmtp=lmtp) as served:
        client = await served.hello()
        codes = []
        for _ in range(2):
            await client.envelope("a@example.com", "known@example.com")
            codes += [(await client.command("RCPT TO:<guess@example.com>")).code for _ in range(3)]
            if how == "DATA":
                assert (await client.data(b"a NUL \0 is refused\r\n")).code == 550
            else:
                await client.send(b"BDAT 3 LAST\r\n\0\r\n")
                assert (await client.reply()).code == 550
        assert codes == [550] * 4 + [452] * 2


async def test_in_lmtp_one_recipient_that_is_accepted_is_enough() -> None:
    def on_data(stream: MessageStream, session: Session) -> list[Any]:
        return [Reject(550, "Full"), None, Reject(550, "Full")]

    async with serving(lmtp=True, max_errors=3, on_data=on_data) as served:
        client = await served.hello()
        for _ in range(3):
            assert (await client.command("FOO")).code == 500
            assert (await client.command("FOO")).code == 500
            await client.envelope("a@example.com", *(f"r{n}@example.com" for n in range(3)))
            assert (await client.data(b"x\r\n")).code == 550
            assert [(await client.reply()).code for _ in range(2)] == [250, 550]


# --- Logins


def only_right(auth: AuthRequest, session: Session) -> bool:
    """Refuse every password but one."""
    return "secret" in (auth.password, auth.access_token)


@pytest.mark.parametrize("option", ["rates_per_address", "rates_per_account", "rates_over_all"])
async def test_logins_at_once_do_not_get_around_a_rate(option: str) -> None:
    together = asyncio.Event()
    waiting: list[str] = []

    async def on_auth(auth: AuthRequest, session: Session) -> bool:
        waiting.append(auth.password)
        if len(waiting) == 12:
            together.set()
        await together.wait()
        return auth.password == "5"

    options: dict[str, Any] = {option: {"auth_failures": "3/hour"}}
    async with serving(on_auth=on_auth, allow_insecure_auth=True, **options) as served:
        clients = [await served.hello() for _ in range(12)]
        for n, client in enumerate(clients):
            await client.send(f"AUTH PLAIN {b64(chr(0) + 'ann' + chr(0) + str(n))}\r\n".encode())
        codes = [(await client.reply()).code for client in clients]
        # Twelve guesses at once are no more than three, and what was right does not show.
        assert sorted(codes, reverse=True) == [535] * 3 + [454 if option == "rates_per_account" else 421] * 9


# The latter two are "ann" where names are prepared (RFC 4013 2.1): some characters are mapped to nothing.
@pytest.mark.parametrize("third", ["ann", "a\N{SOFT HYPHEN}nn", "an\N{ZERO WIDTH JOINER}n"])
async def test_a_rate_of_an_account_holds_however_its_name_is_written(third: str) -> None:
    async with serving(
        rates_per_account={"auth_failures": "2/hour"}, on_auth=only_right, allow_insecure_auth=True
    ) as served:
        codes = []
        for name in ("Ann", "ANN", third):
            client = await served.hello()
            codes.append((await client.command("AUTH PLAIN " + b64(f"\0{name}\0wrong"))).code)
        assert codes == [535, 535, 454]


async def test_a_login_that_cannot_be_checked_now_is_no_failed_one() -> None:
    def on_auth(auth: AuthRequest, session: Session) -> bool:
        if auth.password == "later":
            raise Reject(454, "The directory is away")
        return only_right(auth, session)

    async with serving(
        rates_per_account={"auth_failures": "2/hour"}, on_auth=on_auth, allow_insecure_auth=True
    ) as served:
        client = await served.hello()
        for _ in range(5):
            assert (await client.command("AUTH PLAIN " + b64("\0ann\0later"))).code == 454
        assert (await client.command("AUTH PLAIN " + PLAIN)).code == 235


# --- Time


@on_both_loops
async def test_pieces_of_commands_between_chunks_do_not_get_around_the_rate() -> None:
    async with serving(min_data_rate=1000, socket_timeout=0.5, command_timeout=60.0) as served:
        client = await served.hello()
        await client.envelope()

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                await client.send(b"BD")
                for _ in range(100):
                    await asyncio.sleep(0.1)
                    await client.send(b"AT 1\r\nxBD")

        task = asyncio.create_task(dribble())
        try:
            async with asyncio.timeout(TIMEOUT):
                while (heard := await client.hear()).startswith("250"):
                    pass
        finally:
            task.cancel()
        assert heard == "421 Timeout - the message comes too slowly"


@on_both_loops
async def test_a_handler_that_stopped_waiting_may_take_its_time() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream.read(), 0.05)
        await asyncio.sleep(1.2)
        await stream.read()

    async with serving(socket_timeout=0.4, min_data_rate=100_000, on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        await asyncio.sleep(0.9)
        await client.send(b"x\r\n.\r\n")
        assert await client.hear() == "250 OK: message queued"


@on_both_loops
async def test_a_proxy_header_in_pieces_does_not_get_around_its_time() -> None:
    async with serving(use_proxy=["127.0.0.1"], proxy_timeout=0.4) as served:
        client = await served.connect()

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                for octet in b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 25".ljust(200):
                    await client.send(bytes((octet,)))
                    await asyncio.sleep(0.015)

        began = asyncio.get_running_loop().time()
        task = asyncio.create_task(dribble())
        try:
            assert await client.line() == b"* BAD Invalid PROXY header\r\n"
            assert asyncio.get_running_loop().time() - began < 0.8
        finally:
            task.cancel()


async def test_a_delay_that_is_set_is_the_delay_even_where_it_is_long() -> None:
    waited: list[float] = []

    class Wire:
        async def delay(self, seconds: float) -> None:
            waited.append(seconds)

    class Service:
        class options:  # noqa: N801
            auth_failure_delay = 45.0

    class Conversation:
        auth_failures = 0
        service = Service
        wire = Wire()

    await limits.login_failed(Conversation)  # type: ignore[arg-type]
    assert waited == [45.0]


# --- State


async def test_a_connection_that_is_refused_holds_no_place() -> None:
    async with serving(use_proxy=["127.0.0.1"], max_clients=2, max_clients_per_address=1, name="mx.test") as served:

        async def from_(address: str) -> tuple[Client, str]:
            client = await served.connect()
            await client.send(f"PROXY TCP4 {address} 192.0.2.25 4000 25\r\nEHLO".encode())
            return client, await client.hear()

        first = await served.connect()
        await first.send(b"PROXY TCP4 192.0.2.1 192.0.2.25 4000 25\r\n")
        assert (await first.hear())[:3] == "220"
        _, said = await from_("192.0.2.1")
        assert "Too many connections" in said
        other = await served.connect()  # while that one lingers
        await other.send(b"PROXY TCP4 192.0.2.2 192.0.2.25 4000 25\r\n")
        assert (await other.hear())[:3] == "220"


async def test_a_store_that_hangs_costs_one_wait_and_not_one_for_each_command() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    rates = {"recipients": "100/hour", "messages": "100/hour"}
    async with (
        silent,
        serving(rates_over_all=rates, rates_per_address=rates, rate_store=f"redis://127.0.0.1:{port}/0") as served,
    ):
        client = await served.hello()
        began = asyncio.get_running_loop().time()
        assert await client.deliver(b"x\r\n", *(f"r{n}@example.com" for n in range(10))) == "250 OK: message queued"
        assert asyncio.get_running_loop().time() - began < 2.5


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port/0", "redis://:hidden@127.0.0.1:port/x", "rediss://"])
async def test_a_url_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="option rate_store: must be") as failure:
        SMTPServer(rates_over_all={"messages": "1/hour"}, rate_store=url)
    assert "hidden" not in str(failure.value)
