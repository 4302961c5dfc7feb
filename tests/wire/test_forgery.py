"""No string of a handler, an option or a resolver forges a reply or a line of a log; no exception's text gets out."""

from __future__ import annotations

import json
import logging
import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import pytest

from pillarbox import (
    AuthRequest,
    Command,
    ConfigurationError,
    Extension,
    InvalidCredential,
    Mechanism,
    Parameter,
    Reject,
    Reply,
    Session,
    SMTPServer,
)
from support import PLAIN, Client, b64, careless, on_both_loops, pem, recorded, serving

FORGED = "fine\r\n250 forged\n551 more\r\0\x1b[2J\x85\u2028end"
NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SECRET = "password=hunter2 at 10.0.0.1"
MAIL = "MAIL FROM:<a@example.com> SMTPUTF8"
RCPT = "RCPT TO:<b@example.com>"


def giving(answer: object) -> Any:
    """Return a function that gives this answer, or raises it."""

    def hook(*_: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return hook


class Own(Mechanism):
    """A mechanism that ends as it is told to."""

    name = "X-OWN"

    def __init__(self, answer: object) -> None:
        self._answer = giving(answer)

    async def authenticate(self, exchange: Any, initial: bytes | None) -> object:
        return self._answer()


def with_hook(hook: str, *said: str, **more: Any) -> Any:
    """Return what makes the options of a server whose hook gives an answer, and what a client says to it."""
    return pytest.param(lambda answer: {hook: giving(answer), **more}, said, id=f"{hook} {said[-1][:4]}")


def with_extension(make: Any, *said: str, name: str) -> Any:
    return pytest.param(lambda answer: {"extensions": [make(giving(answer))]}, said, id=name)


OPEN: dict[str, Any] = {"allow_insecure_auth": True}
ASKED = [
    with_hook("on_ehlo", "EHLO x"),
    with_hook("on_auth", f"AUTH PLAIN {PLAIN}", **OPEN),
    with_hook("on_auth", f"AUTH LOGIN {b64('ann')}", b64("x"), **OPEN),
    with_hook("on_scram", "AUTH SCRAM-SHA-256 " + b64("n,,n=ann,r=abc"), auth_methods=["SCRAM-SHA-256"], **OPEN),
    with_hook("on_auth", "XCLIENT LOGIN=ann", use_xclient=["127.0.0.1"]),
    with_hook("on_mail_from", MAIL),
    with_hook("on_rcpt_to", MAIL, RCPT),
    with_hook("on_data", MAIL, RCPT, "DATA", "."),
    with_hook("on_data", MAIL, RCPT, "BDAT 0 LAST"),
    with_hook("on_vrfy", "VRFY ann"),
    with_hook("on_vrfy", "VRFY ann SMTPUTF8"),
    with_hook("on_expn", "EXPN list"),
    with_hook("on_help", "HELP"),
    with_extension(lambda run: Extension(commands=[Command("XPING", run)]), "XPING", name="a verb"),
    with_extension(lambda run: Extension(mail={"XP": Parameter(run)}), "MAIL FROM:<> XP=1", name="a parameter"),
    with_extension(lambda run: Extension(rcpt={"XP": Parameter(run)}), MAIL, RCPT + " XP=1", name="of a recipient"),
    pytest.param(lambda answer: {"auth_methods": [Own(answer)], **OPEN}, ("AUTH X-OWN",), id="a mechanism"),
]


async def last_answer(client: Client, said: Sequence[str]) -> Any:
    """Say hello and these lines; return the reply to the last one, whose form is checked as it is read."""
    if not said[0].startswith("EHLO"):
        await client.ehlo()
    answers = [await client.command(line) for line in said]
    assert all(answer.code in (250, 334, 354) for answer in answers[:-1])
    return answers[-1]


# --- Replies


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize(("made", "said"), ASKED)
async def test_no_refusal_forges_a_reply(made: Any, said: tuple[str, ...]) -> None:
    async with serving(**made(Reject(554, FORGED))) as served:
        client = await served.client()
        answer = await last_answer(client, said)
        assert answer.code == (550 if said[0].startswith("XCLIENT") else 554)
        assert len(answer.lines) == 1
        assert not NOT_IN_A_LINE.search(answer.lines[0])
        assert answer.lines[0].startswith("fine")
        if answer.code == 554:
            assert await client.say("NOOP") == "250 OK"


ANSWERS: list[tuple[str, Any, tuple[str, ...], int]] = [
    ("on_vrfy", FORGED, ("VRFY ann",), 252),  # not ASCII, and the client has not said SMTPUTF8
    ("on_vrfy", FORGED, ("VRFY ann SMTPUTF8",), 250),
    ("on_vrfy", FORGED.encode("ascii", "ignore").decode(), ("VRFY ann",), 250),
    ("on_expn", [FORGED, FORGED], ("EXPN list SMTPUTF8",), 250),
    ("on_help", FORGED, ("HELP",), 214),
    ("on_help", "", ("HELP",), 214),
    ("on_data", FORGED, (MAIL, RCPT, "DATA", "."), 250),
    ("on_ehlo", ["XA", "XB\r\n250 forged"], ("EHLO x",), 451),
    ("on_ehlo", ["X" * 507], ("EHLO x",), 451),
]


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize(("hook", "answer", "said", "code"), ANSWERS, ids=range(len(ANSWERS)))
async def test_no_answer_forges_a_reply(hook: str, answer: Any, said: tuple[str, ...], code: int) -> None:
    async with serving(**{hook: giving(answer)}) as served:
        client = await served.client()
        reply = await last_answer(client, said)
        assert reply.code == code
        assert not any(NOT_IN_A_LINE.search(line) for line in reply.lines)
        assert not any(line.startswith("forged") for line in reply.lines)
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
async def test_no_reply_of_ones_own_forges_another() -> None:
    replies = {"XA": Reply(250, "2.0.0", FORGED), "XB": Reply(550, "5.0.0", FORGED)}
    verbs = [Command(verb, giving(reply)) for verb, reply in replies.items()]
    async with serving(extensions=[Extension(commands=verbs)]) as served:
        client = await served.hello()
        for verb, reply in replies.items():
            answer = await client.command(verb)
            assert (answer.code, len(answer.lines)) == (reply.code, 1)
            assert not NOT_IN_A_LINE.search(answer.lines[0])


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("keyword", ["XA\r\n250 forged", "XA\0", "X" * 507, "", "X\u00e4", 5])
async def test_a_keyword_that_could_forge_a_line_is_left_out(keyword: Any) -> None:
    with recorded(logging.ERROR) as records:
        async with serving(extensions=[Extension(giving(keyword)), Extension("XGOOD")]) as served:
            client = await served.client()
            offered = await client.ehlo()
            assert "XGOOD" in offered
            assert "XA" not in offered
    assert "EHLO keyword" in records[0].getMessage()


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("option", ["banner", "helo_response", "auth_required_message"])
def test_no_option_forges_a_reply(option: str) -> None:
    options: dict[str, Any] = {option: FORGED}
    with pytest.raises(ConfigurationError, match=f"option {option}: must not hold control characters"):
        SMTPServer(**options)


@pytest.mark.promises(
    "Replies and logs",
    "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
)
@pytest.mark.parametrize("option", ["banner", "helo_response", "auth_required_message"])
@pytest.mark.parametrize("text", ["long " * 300, "x" * 1500], ids=["words", "one word"])
async def test_a_long_option_fits_the_lines_of_a_reply(option: str, text: str) -> None:
    async with serving(**{option: text, "auth_optional": False, "allow_insecure_auth": True}) as served:
        client = await served.connect()
        greeting = await client.reply()
        hello = await client.command("EHLO x")
        needed = await client.command("MAIL FROM:<a@example.com>")
    assert (greeting.code, hello.code, needed.code) == (220, 250, 530)


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("name", ["evil\r\n250 forged", "a" * 600, "a\0b", "\x1b[2J", "<b>x</b>", "\u00e4.example", ""])
async def test_no_name_of_dns_forges_a_reply(name: str) -> None:
    class Names:
        async def reverse(self, ip: str) -> Sequence[str]:
            return [name]

    async with serving(resolver=Names(), disable_reverse_lookup=False) as served:
        client = await served.client()
        answer = await client.command("HELO x")
        assert str(answer).endswith("Nice to meet you, [127.0.0.1]")
        assert served.server.connections[0].client_hostname == "[127.0.0.1]"


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("method", ["XOAUTH2", "OAUTHBEARER"])
async def test_no_data_of_a_failed_token_forges_a_reply(method: str) -> None:
    told = {"status": FORGED, "more": [FORGED, Session]}
    token = {"XOAUTH2": "user=ann\1auth=Bearer t\1\1", "OAUTHBEARER": "n,a=ann,\1auth=Bearer t\1\1"}[method]
    options: dict[str, Any] = {"auth_methods": [method], "on_auth": giving(Reject(535, FORGED, data=told))}
    async with serving(**options, **OPEN) as served:
        client = await served.hello()
        challenge = await client.command(f"AUTH {method} {b64(token)}")
        assert (challenge.code, len(challenge.lines)) == (334, 1)
        assert json.loads(b64decode(challenge.lines[0]))["status"] == FORGED
        answer = await client.command("")
        assert (answer.code, len(answer.lines)) == (535, 1)
        assert not NOT_IN_A_LINE.search(answer.lines[0])


# --- Exceptions


@pytest.mark.promises("Replies and logs", "The text of an exception never reaches the client.")
@pytest.mark.parametrize(("made", "said"), ASKED)
@pytest.mark.parametrize("kind", [LookupError, UnicodeDecodeError, BaseException, InvalidCredential])
async def test_no_text_of_an_exception_reaches_the_client(made: Any, said: tuple[str, ...], kind: Any) -> None:
    error = UnicodeDecodeError("ascii", SECRET.encode(), 0, 1, SECRET) if kind is UnicodeDecodeError else kind(SECRET)
    seen: list[BaseException] = []
    options = {**made(error), "on_error": lambda error, _: seen.append(error), "hide_enhanced_status_codes": False}
    async with serving(**options) as served:
        client = await served.client()
        answer = await last_answer(client, said)
        assert answer.code in (421, 451, 454, 500, 501)
        assert not any(word in str(answer) for word in ("hunter2", "10.0.0.1", "Error(", kind.__name__))
    malformed = kind is InvalidCredential and said[0] == "AUTH X-OWN"  # that one means: what the client sent is none
    assert seen == ([] if malformed else [error])


@pytest.mark.promises("Replies and logs", "The text of an exception never reaches the client.")
@pytest.mark.parametrize("hook", ["on_connect", "on_secure"])
@on_both_loops
async def test_no_text_of_an_exception_at_the_door_reaches_the_client(hook: str) -> None:
    async with serving(**{hook: giving(LookupError(SECRET))}, secure=True, **pem()) as served:
        client = await served.connect(careless())
        assert await client.hear() == "421 Error: local error in processing"
        await client.eof()


@pytest.mark.promises("Replies and logs", "The text of an exception never reaches the client.")
@pytest.mark.parametrize("hook", ["on_reset", "on_close", "on_error"])
async def test_no_text_of_an_exception_without_a_reply_reaches_the_client(hook: str) -> None:
    broken = {hook: giving(LookupError(SECRET)), "on_mail_from": giving(LookupError(SECRET))}
    async with serving(**broken) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<>") == "451 Error: local error in processing"
        assert await client.say("RSET") == "250 Flushed"
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()


# --- Logs


def first_lines(records: list[logging.LogRecord]) -> list[str]:
    """Return what a text log writes of each record, without tracebacks."""
    return [record.getMessage() for record in records if record.name.startswith("pillarbox")]


@pytest.mark.promises("Replies and logs", "No text of a client or a handler breaks out of its line of a log.")
@pytest.mark.parametrize(("made", "said"), ASKED)
async def test_no_refusal_forges_a_line_of_a_log(made: Any, said: tuple[str, ...]) -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(**made(Reject(554, FORGED))) as served:
            await last_answer(await served.client(), said)
    assert records
    assert [line for line in first_lines(records) if NOT_IN_A_LINE.search(line)] == []


@pytest.mark.promises("Replies and logs", "No text of a client or a handler breaks out of its line of a log.")
async def test_no_answer_forges_a_line_of_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    def on_auth(auth: AuthRequest, session: Session) -> str:
        return FORGED  # of a token that names nobody: it is the name that is logged

    token = b64("n,,\1auth=Bearer t\1\1")
    for logger in (False, True):
        options: dict[str, Any] = {"on_auth": on_auth, "on_data": giving(FORGED), "on_vrfy": giving(FORGED), **OPEN}
        with recorded(logging.DEBUG) as records:
            async with serving(auth_methods=["OAUTHBEARER"], logger=logger, **options) as served:
                client = await served.hello()
                assert (await client.command(f"AUTH OAUTHBEARER {token}")).code == 235
                assert (await client.command("VRFY ann SMTPUTF8")).code == 250
                await client.deliver()
    written = capsys.readouterr().err.splitlines()
    assert [line for line in first_lines(records) if NOT_IN_A_LINE.search(line)] == []
    assert len([line for line in written if "authenticated as fine" in line]) == 1
    assert not any(line.startswith(("250", "551")) for line in written)
