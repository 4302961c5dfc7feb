"""Extensions of one's own and the hooks of the small verbs, through sockets: whose they are, and how they end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pillarbox import Asked, Command, Conversation, Extension, Parameter, Reply, Session
from support import TIMEOUT, Client, Inbox, on_both_loops, recorded, serving


def saying(text: str) -> Command:
    return Command("XSAY", lambda conversation, argument: Reply(250, "2.0.0", text))


def small_verbs(name: str) -> dict[str, Any]:
    """Return the hooks of a listener, and an extension, that tell whose they are."""
    return {
        "extensions": [Extension(f"X{name}", [saying(name)], mail={f"X{name}": Parameter(lambda asked, value: name)})],
        "on_ehlo": lambda keywords, session: [*keywords, f"E{name}"],
        "on_vrfy": lambda address, session: f"<{name}@example.com>",
        "on_expn": lambda topic, session: [f"{name}@example.com"],
        "on_help": lambda topic, session: name,
    }


async def whose(client: Client) -> set[str]:
    """Return everyone whose hooks and extensions the client meets."""
    keywords = await client.ehlo()
    found = {name[1:] for name in keywords if name in ("XONE", "XTWO", "EONE", "ETWO")}
    for command in ("XSAY", "HELP"):
        found.add((await client.say(command)).removeprefix("250 ").removeprefix("214 "))
    for command in ("VRFY jo", "EXPN all"):
        found.add((await client.say(command)).removeprefix("250 ").strip("<>").partition("@")[0])
    accepted = [name for name in ("ONE", "TWO") if (await client.command(f"MAIL FROM:<> X{name}=1")).code == 250]
    return found | set(accepted)


async def test_a_listener_has_its_own() -> None:
    async with serving(**small_verbs("ONE")) as served:
        other = await served.server.listen(0, "127.0.0.1", **small_verbs("TWO"))
        first, second = await served.client(), await served.connect(address=other)
        assert (await second.reply()).code == 220
        assert await whose(first) == {"ONE"}
        assert await whose(second) == {"TWO"}


async def test_a_listener_without_its_own_has_the_servers() -> None:
    async with serving(**small_verbs("ONE")) as served:
        other = await served.server.listen(0, "127.0.0.1", size=5_000)
        client = await served.connect(address=other)
        assert (await client.reply()).code == 220
        assert await whose(client) == {"ONE"}


async def test_ignored_hosts_are_served_the_same() -> None:
    """They reach no on_connect, on_close and on_error, and every other hook."""
    told: list[object] = []
    tell = {"on_connect": told.append, "on_close": told.append, "on_error": lambda *what: told.append(what)}

    def fails(conversation: Conversation, argument: str) -> Reply:
        raise LookupError

    options = small_verbs("ONE")
    options["extensions"] = [*options["extensions"], Extension(commands=[Command("XFAIL", fails)])]
    with recorded(logging.INFO) as records:
        async with serving(**tell, **options, ignored_hosts=["127.0.0.1"]) as served:
            client = await served.client()
            assert await whose(client) == {"ONE"}
            assert (await client.command("XFAIL")).code == 451
            assert await client.say("QUIT") == "221 Bye"
    assert told == []
    assert [record.getMessage() for record in records if getattr(record, "address", "")] == []


@pytest.mark.parametrize("before", [[], ["MAIL FROM:<a@example.com>"]])
@on_both_loops
async def test_a_verb_that_never_ends_does_not_hold_up_the_end(before: list[str]) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(conversation: Conversation, argument: str) -> Reply:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with serving(extensions=[Extension(commands=[Command("XHANG", hang)])], close_timeout=0.1) as served:
        client = await served.hello()
        for command in before:
            assert (await client.command(command)).code == 250
        await client.send(b"XHANG\r\n")
        await asyncio.wait_for(begun.wait(), TIMEOUT)
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert ended.is_set()
        assert await client.hear() == "421 Server shutting down"
        await client.eof()


async def test_a_verb_that_asks_hears_of_the_end() -> None:
    heard: asyncio.Queue[BaseException] = asyncio.Queue()

    async def ask(conversation: Conversation, argument: str) -> Reply:
        conversation.reply(Reply(354, "", "What?"))
        try:
            return Reply(250, "2.0.0", (await conversation.read_line()).decode())
        except ConnectionError as error:
            heard.put_nowait(error)
            raise

    errors: list[object] = []
    options: dict[str, Any] = {"on_error": lambda *what: errors.append(what), "socket_timeout": 0.3}
    async with serving(extensions=[Extension(commands=[Command("XASK", ask)])], **options) as served:
        client = await served.hello()
        assert await client.say("XASK") == "354 What?"
        assert await client.say("x" * 5000) == "500 Error: Command line too long"
        assert await client.say("XASK") == "354 What?"
        await client.send(b"half")
        client.writer.write_eof()
        await client.eof()
        assert isinstance(await asyncio.wait_for(heard.get(), TIMEOUT), ConnectionError)
        silent = await served.hello()
        assert await silent.say("XASK") == "354 What?"
        assert await silent.hear() == "421 Timeout - closing connection"
        await silent.eof()
    assert errors == []


async def test_handler_timeout_bounds_verbs_and_the_small_hooks() -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    extension = Extension(commands=[Command("XHANG", hang)])
    hooks = dict.fromkeys(("on_ehlo", "on_vrfy", "on_expn", "on_help", "on_reset"), hang)
    errors: list[BaseException] = []
    options: dict[str, Any] = {**hooks, "extensions": [extension], "handler_timeout": 0.05}
    async with serving(**options, on_error=lambda error, session: errors.append(error)) as served:
        client = await served.client()
        for command in ("EHLO x", "VRFY x", "EXPN x", "HELP", "XHANG"):
            assert await client.say(command) == "451 Error: local error in processing"
        assert await client.say("RSET") == "250 Flushed"  # which cannot be refused
    assert [type(error) for error in errors] == [TimeoutError] * 6


async def test_a_hook_that_waits_for_something_cancelled_has_failed() -> None:
    """It is not the connection that was cancelled."""

    async def cancelled(*_: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    errors: list[BaseException] = []
    hooks = dict.fromkeys(("on_ehlo", "on_vrfy", "on_reset"), cancelled)
    async with serving(**hooks, on_error=lambda error, session: errors.append(error)) as served:
        client = await served.client()
        assert (await client.command("EHLO x")).code == 451
        assert (await client.command("VRFY x")).code == 451
        assert await client.say("RSET") == "250 Flushed"
        assert await client.say("NOOP") == "250 OK"
    assert [type(error) for error in errors] == [asyncio.CancelledError] * 3


async def test_a_keyword_that_is_none_is_logged_and_left_out() -> None:
    extensions = [Extension(lambda session: "TWO\r\nLINES"), Extension(lambda session: "XGOOD")]
    with recorded(logging.ERROR) as records:
        async with serving(extensions=extensions) as served:
            client = await served.client()
            keywords = await client.ehlo()
    assert "XGOOD" in keywords
    assert not {"TWO", "LINES"} & set(keywords)
    assert [record.getMessage() for record in records] == ["the EHLO keyword of an extension failed"]
    assert "is malformed" in str(records[0].exc_info)


async def test_parameters_of_ones_own_reach_the_handlers() -> None:
    inbox = Inbox()

    def priority(asked: Asked, value: str) -> int:
        asked.session.state["seen"] = value
        return int(value)

    extension = Extension("XPRIORITY", mail={"XPRIORITY": Parameter(priority)}, rcpt={"XFAST": Parameter(flag, False)})
    async with serving(extensions=[extension], on_data=inbox) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com> XPRIORITY=5 BODY=8BITMIME") == "250 Accepted"
        assert await client.say("RCPT TO:<b@example.com> XFAST") == "250 Accepted"
        assert (await client.data(b"x\r\n")).code == 250
        assert (await client.command("MAIL FROM:<a@example.com> XPRIORITY=high")).code == 451
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
    envelope = inbox[0].envelope
    assert envelope.mail_from is not None
    assert envelope.mail_from.args == {"XPRIORITY": 5, "BODY": "8BITMIME"}
    assert envelope.rcpt_to[0].args == {"XFAST": True}


def flag(asked: Asked, value: str) -> None:
    assert value == ""


async def test_a_disabled_verb_of_ones_own() -> None:
    extension = Extension("ETRN", [Command("ETRN", lambda conversation, argument: Reply(250, "2.0.0", "Queued"))])
    for disabled, code in (([], 250), (["ETRN"], 500)):
        async with serving(extensions=[extension], disabled_commands=disabled) as served:
            client = await served.client()
            assert ("ETRN" in await client.ehlo()) == (code == 250)
            assert (await client.command("ETRN example.com")).code == code


async def test_on_reset_and_on_ehlo_tell_of_every_end_of_a_transaction() -> None:
    told: list[tuple[str, str]] = []

    def on_reset(session: Session) -> None:
        told.append(("reset", str(session.envelope.mail_from)))

    def on_ehlo(keywords: list[str], session: Session) -> None:
        told.append(("ehlo", str(session.envelope.mail_from)))

    async with serving(on_reset=on_reset, on_ehlo=on_ehlo) as served:
        client = await served.hello()
        for command in ("RSET", "EHLO again.example"):
            await client.envelope()
            await client.send(b"BDAT 3\r\nabc")
            assert (await client.reply()).code == 250
            assert (await client.command(command)).code == 250
            assert (await client.command("RCPT TO:<a@example.com>")).code == 503
    assert told[1:] == [("reset", "from@example.com"), ("ehlo", "from@example.com")]
