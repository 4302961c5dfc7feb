"""Limits, once more: what gets around them, and who is honest and must not be hurt by them."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from pillarbox import (
    Command,
    Extension,
    Reject,
    Reply,
    Session,
)
from support import Client, recorded, serving


def no_one(*_: Any) -> None:
    """Refuse, whoever asks."""
    raise Reject


async def replies_until_closed(client: Client, command: str, most: int = 400) -> list[str]:
    """Return the replies to a command that is said again and again, up to the 421 that ends it."""
    replies: list[str] = []
    while not (replies and replies[-1].startswith("421")):
        assert len(replies) < most, "it never ends"
        replies.append(await client.say(command))
    await client.eof()
    return replies


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
        assert len(await replies_until_closed(client, command)) == 7


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
