"""Handlers that fail in every way there is, in every hook: what the client hears, and what is left of it.

Each fault of ``FAULTS`` is put into each place of ``PLACES``, on both event loops. What docs/handlers.md promises of a
bug is one row of the table: its reply, with no word of the exception; the next command works or the connection is
closed; ``on_close`` is called once; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

from leftovers import nothing_left
from pillarbox import (
    Command,
    Exchange,
    Extension,
    Mechanism,
    MessageStream,
    Parameter,
    Session,
)
from support import PLAIN, TIMEOUT, Client, Served, _factory, b64, careless, on_both_loops, pem, recorded, serving

Hook = Callable[..., Any]
SECRET = "password=hunter2 of the database at 10.0.0.1"
pytestmark = pytest.mark.filterwarnings("error")


# --- The faults


class Abrupt(BaseException):
    """What is no Exception and yet no end of the program, as pytest and trio have them."""


def raises(*_: Any) -> NoReturn:
    raise LookupError(SECRET)


async def raises_later(*_: Any) -> None:
    await asyncio.sleep(0)
    raise LookupError(SECRET)


def is_abrupt(*_: Any) -> NoReturn:
    raise Abrupt(SECRET)


async def is_abrupt_later(*_: Any) -> None:
    await asyncio.sleep(0)
    raise Abrupt(SECRET)


def says_cancelled(*_: Any) -> NoReturn:
    raise asyncio.CancelledError(SECRET)


async def awaits_what_is_cancelled(*_: Any) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel(SECRET)
    await future


async def fails_in_a_group(*_: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises_later())


async def times_out(*_: Any) -> None:
    raise TimeoutError(SECRET)


def unprintable(*_: Any) -> NoReturn:
    raise Unprintable


class Unprintable(Exception):
    def __str__(self) -> str:
        raise LookupError(SECRET)


FAULTS = [
    raises, raises_later, is_abrupt, is_abrupt_later, says_cancelled, awaits_what_is_cancelled, fails_in_a_group,
    times_out, unprintable,
]  # fmt: skip
AT_ONCE = [raises, is_abrupt, says_cancelled, unprintable]  # where nothing can be awaited


# --- The places


@dataclass(frozen=True)
class Place:
    """Where a fault can be: how it gets there, how a client reaches it, and what that client then hears."""

    name: str
    options: Callable[[Hook], dict[str, Any]]
    reach: Callable[[Served], Coroutine[Any, Any, tuple[Client, str]]]
    answer: str
    closes: bool = False
    awaits: bool = True
    logged: bool = True  # what the fault raised stands in the log
    greeted: bool = True  # on_connect and on_close take part

    def __str__(self) -> str:
        return self.name


def hook(name: str) -> Callable[[Hook], dict[str, Any]]:
    return lambda fault: {name: fault}


def says(*commands: str) -> Callable[[Served], Coroutine[Any, Any, tuple[Client, str]]]:
    """Return what says hello and these commands, and gives back the reply to the last one."""

    async def reach(served: Served) -> tuple[Client, str]:
        client = await served.hello()
        for command in commands[:-1]:
            assert (await client.command(command)).code < 400
        return client, await client.say(commands[-1])

    return reach


async def greeting(served: Served) -> tuple[Client, str]:
    client = await served.connect(careless() if served.server.options.secure else None)
    return client, await client.hear()


async def hello(served: Served) -> tuple[Client, str]:
    client = await served.client()
    return client, await client.say("EHLO client.example")


async def secured(served: Served) -> tuple[Client, str]:
    client = await served.hello()
    await client.starttls(careless())
    return client, await client.say("EHLO client.example")


async def message(served: Served) -> tuple[Client, str]:
    client = await served.hello()
    await client.envelope()
    return client, str(await client.data(b"hello\r\n" * 3))


async def chunk(served: Served) -> tuple[Client, str]:
    client = await served.hello()
    await client.envelope()
    await client.send(b"BDAT 7 LAST\r\nhello\r\n")
    return client, await client.hear()


async def first_of_two_chunks(served: Served) -> tuple[Client, str]:
    client = await served.hello()
    await client.envelope()
    await client.send(b"BDAT 7\r\nhello\r\n")
    return client, await client.hear()


async def two_recipients(served: Served) -> tuple[Client, str]:
    client = await served.hello()
    answer = await client.deliver(b"hello\r\n", "a@example.com", "b@example.com")
    return client, f"{answer} / {await client.hear()}"


async def quits(served: Served) -> tuple[Client, str]:
    client, _ = await says("NOOP")(served)
    return client, await client.say("QUIT")


async def resolve(answer: Any) -> Any:
    while hasattr(answer, "__await__"):
        answer = await answer
    return answer


def in_message(when: str) -> Callable[[Hook], dict[str, Any]]:
    """Put the fault into on_data: before it reads, in the middle, or behind the end."""

    def options(fault: Hook) -> dict[str, Any]:
        async def on_data(stream: MessageStream, session: Session) -> Any:
            if when == "middle":
                assert await stream.read(3) == b"hel"
            elif when == "end":
                assert (await stream.read()).startswith(b"hello\r\n")
            return await resolve(fault(stream, session))

        return {"on_data": on_data}

    return options


def for_a_recipient(fault: Hook) -> dict[str, Any]:
    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        await stream.read()
        return [later(fault), None]

    return {"on_data": on_data, "lmtp": True}


async def later(fault: Hook) -> Any:
    return await resolve(fault())


def in_on_error(fault: Hook) -> dict[str, Any]:
    return {"on_error": fault, "on_mail_from": raises}


def verb(fault: Hook) -> dict[str, Any]:
    return {"extensions": [Extension(None, [Command("XFAULT", fault)])]}


def parameter(fault: Hook) -> dict[str, Any]:
    return {"extensions": [Extension(None, mail={"XFAULT": Parameter(fault)}, rcpt={"XFAULT": Parameter(fault)})]}


def keyword(fault: Hook) -> dict[str, Any]:
    return {"extensions": [Extension(fault), Extension("XGOOD")]}


class FaultyMechanism(Mechanism):
    name = "X-FAULT"

    def __init__(self, fault: Hook, *, offering: bool) -> None:
        self._fault = fault
        self._offering = offering

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        return await resolve(self._fault())

    def offered(self, session: Session) -> bool:
        return bool(self._fault()) if self._offering else True


def mechanism(fault: Hook) -> dict[str, Any]:
    return {"auth_methods": ["PLAIN", FaultyMechanism(fault, offering=False)]}


def offering(fault: Hook) -> dict[str, Any]:
    return {"auth_methods": ["PLAIN", FaultyMechanism(fault, offering=True)]}


def scram(fault: Hook) -> dict[str, Any]:
    return {"auth_methods": ["SCRAM-SHA-256"], "on_scram": fault}


class Resolver:
    def __init__(self, fault: Hook) -> None:
        self._fault = fault

    async def reverse(self, ip: str) -> Any:
        return await resolve(self._fault(ip))


def resolver(fault: Hook) -> dict[str, Any]:
    return {"resolver": Resolver(fault), "disable_reverse_lookup": False}


class FaultyLogger:
    """An object with the standard methods, each of which fails."""

    def __init__(self, fault: Hook) -> None:
        self.debug = self.info = self.warning = self.error = lambda *_, **__: fault()


def logger(fault: Hook) -> dict[str, Any]:
    return {"logger": FaultyLogger(fault), "on_mail_from": raises}


def server_name(fault: Hook) -> dict[str, Any]:
    return {"sni_callback": fault, **pem()}


def behind_tls(fault: Hook) -> dict[str, Any]:
    return {"on_secure": fault, "secure": True, **pem()}


def of_a_proxy(name: str) -> Callable[[Hook], dict[str, Any]]:
    """Put the fault into a hook when XCLIENT reaches it: for on_connect that is the second time."""

    def options(fault: Hook) -> dict[str, Any]:
        def on_connect(session: Session) -> Any:
            return fault(session) if session.x_client else None

        return {name: on_connect if name == "on_connect" else fault, "use_xclient": ["127.0.0.1"]}

    return options


BUG = "451 Error: local error in processing"
BUG_CLOSING = "421 Error: local error in processing"
AUTH_BUG = "454 "
FROM, TO = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"
XCLIENT = "XCLIENT NAME=spike.example ADDR=192.0.2.9"

PLACES = [
    Place("on_connect", hook("on_connect"), greeting, BUG_CLOSING, closes=True),
    Place("on_connect after XCLIENT", of_a_proxy("on_connect"), says(XCLIENT), BUG_CLOSING, closes=True),
    Place("on_secure", hook("on_secure"), secured, BUG_CLOSING, closes=True),
    Place("on_secure, implicit", behind_tls, greeting, BUG_CLOSING, closes=True),
    Place("on_ehlo", hook("on_ehlo"), hello, BUG),
    Place("on_auth", hook("on_auth"), says(f"AUTH PLAIN {PLAIN}"), AUTH_BUG),
    Place("on_auth by XCLIENT", of_a_proxy("on_auth"), says("XCLIENT LOGIN=ann"), AUTH_BUG, closes=True),
    Place("on_scram", scram, says("AUTH SCRAM-SHA-256 " + b64("n,,n=ann,r=abcdefgh")), AUTH_BUG),
    Place("mechanism", mechanism, says("AUTH X-FAULT"), AUTH_BUG),
    Place("mechanism.offered", offering, says("EHLO again.example"), "250 ", awaits=False),
    Place("on_mail_from", hook("on_mail_from"), says(FROM), BUG),
    Place("on_rcpt_to", hook("on_rcpt_to"), says(FROM, TO), BUG),
    Place("on_data before reading", in_message("start"), message, BUG),
    Place("on_data in the middle", in_message("middle"), message, BUG),
    Place("on_data behind the end", in_message("end"), message, BUG),
    Place("on_data before reading a chunk", in_message("start"), chunk, BUG),
    Place("on_data in a chunk", in_message("middle"), chunk, BUG),
    Place("on_data behind the last chunk", in_message("end"), chunk, BUG),
    Place("on_data in the first chunk", in_message("middle"), first_of_two_chunks, BUG),
    Place("on_data for a recipient", for_a_recipient, two_recipients, f"{BUG} / 250 OK: message accepted"),
    Place("on_reset", hook("on_reset"), says(FROM, "RSET"), "250 Flushed"),
    Place("on_vrfy", hook("on_vrfy"), says("VRFY ann"), BUG),
    Place("on_expn", hook("on_expn"), says("EXPN all"), BUG),
    Place("on_help", hook("on_help"), says("HELP"), BUG),
    Place("on_close", hook("on_close"), quits, "221 Bye", closes=True),
    Place("on_error", in_on_error, says(FROM), BUG),
    Place("a verb", verb, says("XFAULT now"), BUG),
    Place("a parameter of MAIL", parameter, says(FROM + " XFAULT=1"), BUG, awaits=False),
    Place("a parameter of RCPT", parameter, says(FROM, TO + " XFAULT=1"), BUG, awaits=False),
    Place("a keyword", keyword, hello, "250 ", awaits=False),
    Place("sni_callback", server_name, secured, "250 ", awaits=False),
    Place("resolver", resolver, greeting, "220 ", logged=False),
    Place("logger", logger, says(FROM), BUG, awaits=False, logged=False),
]
CASES = [
    pytest.param(place, fault, id=f"{place}-{fault.__name__}")
    for place in PLACES
    for fault in (FAULTS if place.awaits else AT_ONCE)
]


# --- What is looked at


@dataclass
class Watched:
    """A server with a fault in it, and how often its connections were closed."""

    served: Served
    closed: list[str] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)

    async def gone(self) -> None:
        """Wait until the server has forgotten all connections."""
        async with asyncio.timeout(TIMEOUT):
            while self.served.server._connections.all:
                await asyncio.sleep(0.005)
        assert self.served.server.connections == []


@asynccontextmanager
async def faulty(options: dict[str, Any], **more: Any) -> AsyncIterator[Watched]:
    """Serve with these options, counting on_close, and demand that nothing is left in the end."""
    closed: list[str] = []
    on_close = options.pop("on_close", None)

    def counts(session: Session) -> Any:
        closed.append(session.id)
        return on_close(session) if on_close is not None else None

    async with nothing_left():
        with recorded() as records:
            async with serving(allow_insecure_auth=True, on_close=counts, **options, **more) as served:
                watched = Watched(served, closed, records)
                yield watched
                for client in served.clients:
                    await client.close()
                await watched.gone()
        assert len(closed) == len(set(closed)), "on_close was called twice"


def traced(records: list[logging.LogRecord]) -> list[str]:
    """Return the tracebacks in the log."""
    return [logging.Formatter().format(record) for record in records if record.exc_info]


async def still_serves(client: Client, place: Place) -> None:
    """Demand that the next command works, or that the connection was closed behind the reply."""
    if place.closes:
        await client.eof()
        return
    assert await client.say("NOOP") == "250 OK"
    assert await client.say("QUIT") == "221 Bye"
    await client.eof()


# --- A handler raises


@pytest.mark.parametrize(("place", "fault"), CASES)
@on_both_loops
async def test_a_handler_that_fails(place: Place, fault: Hook) -> None:
    async with faulty(place.options(fault)) as watched:
        client, answer = await place.reach(watched.served)
        assert answer.startswith(place.answer)
        assert "hunter2" not in answer
        await still_serves(client, place)
        await watched.gone()
        assert len(watched.closed) == 1
    if place.logged:
        assert any(fault.__name__ in trace for trace in traced(watched.records)), "no traceback of the fault"


# --- It answers what nobody can use


class Hopeless:
    """An answer with which nothing can be done: every use of it fails."""

    def _fails(self, *_: Any) -> NoReturn:
        raise LookupError(SECRET)

    __str__ = __bool__ = __iter__ = __len__ = __eq__ = _fails
    __hash__ = None  # type: ignore[assignment]


def hopeless(*_: Any) -> Any:
    return Hopeless()


def fails_while_read(*_: Any) -> Any:
    return (raises() for _ in range(2))


def number(*_: Any) -> Any:
    return 42


# What is not in the table takes an answer for what it says, or takes none at all.
USELESS = {
    ("on_ehlo", number): BUG, ("on_ehlo", hopeless): BUG, ("on_ehlo", fails_while_read): BUG,
    ("on_auth", number): "235 ", ("on_auth", hopeless): AUTH_BUG, ("on_auth", fails_while_read): "235 ",
    ("on_auth by XCLIENT", number): "220 ", ("on_auth by XCLIENT", fails_while_read): "220 ",
    ("on_scram", number): AUTH_BUG, ("on_scram", hopeless): AUTH_BUG, ("on_scram", fails_while_read): AUTH_BUG,
    ("mechanism", number): "235 ", ("mechanism", hopeless): AUTH_BUG, ("mechanism", fails_while_read): "235 ",
    ("on_vrfy", number): "250 42", ("on_vrfy", hopeless): BUG, ("on_vrfy", fails_while_read): "250 <generator",
    ("on_expn", number): BUG, ("on_expn", hopeless): BUG, ("on_expn", fails_while_read): BUG,
    ("on_help", number): "214 42", ("on_help", hopeless): BUG, ("on_help", fails_while_read): "214 <generator",
    ("a verb", number): BUG, ("a verb", hopeless): BUG, ("a verb", fails_while_read): BUG,
}  # fmt: skip
TAKES_ANYTHING = {  # on_data: 250 for a message that is safe; an error would have it sent again
    "on_connect": "220 ", "on_connect after XCLIENT": "220 ", "on_secure": "250 ", "on_secure, implicit": "220 ",
    "on_mail_from": "250 Accepted", "on_rcpt_to": "250 Accepted", "on_reset": "250 Flushed", "on_close": "221 Bye",
    "on_data before reading": "250 ", "on_data in the middle": "250 ", "on_data behind the end": "250 ",
    "on_data before reading a chunk": "250 ", "on_data in a chunk": "250 ", "on_data behind the last chunk": "250 ",
    "on_data in the first chunk": "250 7 octets received", "on_data for a recipient": "250 ", "on_error": BUG,
    "on_auth by XCLIENT": AUTH_BUG, "mechanism.offered": "250 ", "a parameter of MAIL": "250 ",
    "a parameter of RCPT": "250 ", "a keyword": "250 ", "sni_callback": "250 ", "resolver": "220 ", "logger": BUG,
}  # fmt: skip


@pytest.mark.parametrize("answers", [number, hopeless, fails_while_read])
@pytest.mark.parametrize("place", PLACES, ids=str)
@on_both_loops
async def test_an_answer_that_is_of_no_use(place: Place, answers: Hook) -> None:
    expected = USELESS.get((place.name, answers)) or TAKES_ANYTHING[place.name]
    async with faulty(place.options(answers)) as watched:
        client, answer = await place.reach(watched.served)
        assert answer.startswith(expected)
        assert "hunter2" not in answer
        if answer[:3] not in ("454", "221") or not place.closes:
            assert await client.say("NOOP") == "250 OK"
            assert await client.say("QUIT") == "221 Bye"
        await client.eof()
        await watched.gone()
        assert len(watched.closed) == 1


# --- It hangs, or is cancelled


class Hanging:
    """A hook that never ends by itself, and how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, *_: Any) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise


WAITS = [place for place in PLACES if place.awaits]
HANDLERS = [place for place in WAITS if place.name != "resolver"]  # that has a limit of its own


# What a mechanism awaits is the client, for the most part: only what it asks the application is limited.
@pytest.mark.parametrize("place", [place for place in HANDLERS if place.name != "mechanism"], ids=str)
@on_both_loops
async def test_a_handler_that_hangs_with_a_timeout(place: Place) -> None:
    hanging = Hanging()
    async with faulty(place.options(hanging), handler_timeout=0.1) as watched:
        client, answer = await place.reach(watched.served)
        assert answer.startswith(place.answer)
        await still_serves(client, place)
        await watched.gone()
        assert len(watched.closed) == 1
        assert hanging.ended == ["CancelledError"]


@pytest.mark.parametrize("place", WAITS, ids=str)
@on_both_loops
async def test_the_server_closes_while_a_handler_hangs(place: Place) -> None:
    hanging = Hanging()
    async with faulty(place.options(hanging), close_timeout=0.05) as watched:
        reaching = asyncio.create_task(place.reach(watched.served))
        await asyncio.wait_for(hanging.begun.wait(), TIMEOUT)
        await asyncio.wait_for(watched.served.server.close(), TIMEOUT)
        with contextlib.suppress(AssertionError, ConnectionError):  # the client was closed where it waits for a reply
            _, answer = await reaching
            assert answer in ("421 Server shutting down", "221 Bye", "250 7 octets received")
        await watched.gone()
        assert len(watched.closed) == (0 if place.name == "resolver" else 1)  # on_connect was not reached
    assert hanging.ended in ([], ["CancelledError"]) if place.name == "resolver" else ["CancelledError"]


@pytest.mark.parametrize("place", WAITS, ids=str)
@on_both_loops
async def test_a_client_leaves_while_a_handler_hangs(place: Place) -> None:
    hanging = Hanging()
    async with faulty(place.options(hanging), close_timeout=0.05) as watched:
        reaching = asyncio.create_task(place.reach(watched.served))
        await asyncio.wait_for(hanging.begun.wait(), TIMEOUT)
        for client in watched.served.clients:
            client.writer.transport.abort()
        # The client's own wait ends somehow: in uvloop also by RuntimeError.
        with contextlib.suppress(AssertionError, ConnectionError, RuntimeError):
            await reaching
        await asyncio.wait_for(watched.served.server.close(), TIMEOUT)
        await watched.gone()
        assert len(watched.closed) == (0 if place.name == "resolver" else 1)


@on_both_loops
async def test_on_close_behind_an_on_error_that_hangs() -> None:
    hanging = Hanging()
    async with faulty({"on_error": hanging}, close_timeout=0.05) as watched:
        client = await watched.served.hello()
        assert await client.say("STARTTLS") == "220 Ready to start TLS"
        await client.send(b"this is no ClientHello\r\n")
        await asyncio.wait_for(hanging.begun.wait(), TIMEOUT)
        await asyncio.wait_for(watched.served.server.close(), TIMEOUT)
        await watched.gone()
        assert len(watched.closed) == 1
    assert hanging.ended == ["CancelledError"]


async def cancels_its_own_task(*_: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize("place", HANDLERS, ids=str)
@on_both_loops
async def test_a_handler_that_cancels_its_own_task(place: Place) -> None:
    """It asks for the end of its connection, and gets no more than that."""
    async with faulty(place.options(cancels_its_own_task)) as watched:
        try:
            client, answer = await place.reach(watched.served)
        except AssertionError:  # closed where a reply was due
            assert not place.closes
        else:
            assert answer in ("421 Server shutting down", "221 Bye", "250 7 octets received")
            if answer.startswith("250"):
                assert await client.say("NOOP") == "421 Server shutting down"
            await client.eof()
        await watched.gone()
        assert len(watched.closed) == 1


# --- It ends the program


def ends_the_program(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def exits(*_: Any) -> NoReturn:
    raise SystemExit(3)


# The functions that uvloop or OpenSSL calls have nobody above them to tell.
ENDING = [place for place in HANDLERS if place.name != "sni_callback"]


# The loop does not live to see the end of what still closes. uvloop warns of that in the middle of its own end, which
# an error there (as warnings are in tests) would make endless.
@pytest.mark.parametrize("place", ENDING, ids=str)
@pytest.mark.parametrize("ends", [ends_the_program, exits])
@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_what_ends_the_program(place: Place, ends: Hook, loop_name: str) -> None:
    closed: list[str] = []

    async def program() -> None:
        options = {"on_close": lambda session: closed.append(session.id), **place.options(ends)}
        async with serving(allow_insecure_auth=True, **options) as served:
            await place.reach(served)
            await asyncio.sleep(TIMEOUT)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with asyncio.Runner(loop_factory=_factory(loop_name)) as runner, pytest.raises((KeyboardInterrupt, SystemExit)):
            runner.run(program())
        gc.collect()  # asyncio tells of what ended a task when that is collected: here, and not in another test
