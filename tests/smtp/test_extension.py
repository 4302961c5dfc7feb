"""Extensions of an application's own, and the hooks of EHLO, RSET, VRFY, EXPN and HELP."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from pillarbox import (
    Asked,
    Command,
    ConfigurationError,
    Conversation,
    Extension,
    Parameter,
    Phase,
    Reject,
    Reply,
    Session,
    SMTPServer,
)
from transcript import Replay, replay

HELLO = "S: 220\nC: HELO x\nS: 250\n"


async def announced(**options: Any) -> set[str]:
    said = await Replay(**options).run([b"EHLO x\r\n"])
    return {line[4:] for line in said[1][1:]}


# --- Keywords


async def test_a_keyword_is_announced() -> None:
    assert "XCOUNTRY DE AT" in await announced(extensions=[Extension("XCOUNTRY DE AT")])


@pytest.mark.promises(
    "Replies and logs",
    "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
)
async def test_a_keyword_fills_a_line() -> None:
    keyword = "X" * (512 - len("250-\r\n"))
    assert keyword in await announced(extensions=[Extension(keyword)])


async def test_a_keyword_may_depend_on_the_session() -> None:
    extension = Extension(lambda session: "XLOCAL" if session.remote_address == "192.0.2.1" else None)
    assert "XLOCAL" in await announced(extensions=[extension])
    assert "XLOCAL" not in await announced(extensions=[extension], session=Session(remote_address="192.0.2.2"))


async def test_a_keyword_that_fails_costs_only_itself() -> None:
    def fail(session: Session) -> str:
        raise RuntimeError

    assert await announced(extensions=[Extension(fail), Extension("XGOOD")]) == (await announced()) | {"XGOOD"}


@pytest.mark.parametrize("keyword", ["", " X", "X ", "X\r\nY", "Xé", "X" * 507, 5])
def test_a_malformed_keyword_is_refused(keyword: Any) -> None:
    with pytest.raises(ConfigurationError, match="EHLO keyword"):
        Extension(keyword)


# --- Verbs


def greet(conversation: Conversation, argument: str) -> Reply:
    return Reply(250, "2.0.0", f"Hello {argument}, {conversation.session.remote_address}")


async def question(conversation: Conversation, argument: str) -> Reply:
    conversation.reply(Reply(354, "", "And?"))
    answer = await conversation.read_line()
    if answer == b"no":
        raise Reject(text="Why not?")
    return Reply(250, "2.0.0", answer.decode())


async def test_a_verb_answers() -> None:
    extension = Extension(commands=[Command("XGREET", greet), Command("XASK", question, last_in_group=True)])
    text = (
        HELLO
        + """
        C: xgreet there
        S: 250 Hello there, 192.0.2.1
        C: XASK
        S: 354 And?
        C: yes
        S: 250 yes
        C: XASK
        S: 354 And?
        C: no
        S: 550 Why not?
        C: NOOP
        S: 250 OK
    """
    )
    await replay(text, extensions=[extension])


async def test_a_verb_needs_what_it_says() -> None:
    commands = [
        Command("XMAIL", greet, needs=Phase.HELLO | Phase.MAIL),
        Command("XAUTH", greet, needs=Phase.AUTH),
        Command("XONCE", greet, clashes=((Phase.MAIL, Reply(503, "5.5.1", "too late")),)),
    ]
    text = """
        S: 220
        C: XMAIL
        S: 503 Error: send HELO/EHLO first
        C: HELO x
        S: 250
        C: XMAIL
        S: 503 Error: need MAIL command
        C: XAUTH
        S: 250
        C: XONCE
        S: 250
        C: MAIL FROM:<a@example.org>
        S: 250
        C: XMAIL
        S: 250
        C: XONCE
        S: 503 too late
    """
    await replay(text, extensions=[Extension(commands=commands)])
    closed = "S: 220\nC: HELO x\nS: 250\nC: XAUTH\nS: 530 Error: authentication Required"
    await replay(closed, extensions=[Extension(commands=commands)], auth_optional=False)


async def test_a_verb_that_fails_is_the_applications_failure() -> None:
    seen: list[BaseException] = []

    async def fail(conversation: Conversation, argument: str) -> Reply:
        raise RuntimeError("secret")

    def wrong(conversation: Conversation, argument: str) -> Any:
        return "250 OK"

    extension = Extension(commands=[Command("XFAIL", fail), Command("XWRONG", wrong)])
    text = HELLO + "C: XFAIL\nS: 451 Error: local error in processing\nC: XWRONG\nS: 451\nC: NOOP\nS: 250"
    await replay(text, extensions=[extension], on_error=lambda error, session: seen.append(error))
    assert [type(error) for error in seen] == [RuntimeError, TypeError]


async def test_a_verb_that_forgets_its_reply_is_the_applications_failure() -> None:
    """The client would wait for it in vain."""
    seen: list[BaseException] = []

    async def forgets(conversation: Conversation, argument: str) -> None:
        await asyncio.sleep(0)

    async def replies(conversation: Conversation, argument: str) -> None:
        conversation.reply(Reply(250, "2.0.0", "Here"))

    extension = Extension(commands=[Command("XFORGET", cast("Any", forgets)), Command("XREPLY", cast("Any", replies))])
    text = HELLO + "C: XREPLY\nS: 250 Here\nC: XFORGET\nS: 451\nC: XREPLY\nS: 250 Here\n"
    await replay(text, extensions=[extension], on_error=lambda error, session: seen.append(error))
    assert [str(error) for error in seen] == ["XFORGET returned NoneType and not a Reply: the client waits for one"]


async def test_a_refusal_that_is_returned_is_one() -> None:
    def refuses(conversation: Conversation, argument: str) -> Reply:
        return Reply(421 if argument else 550, "", "No")

    extension = Extension(commands=[Command("XNO", refuses)])
    done = await replay(HELLO + "C: XNO\nS: 550 No\nC: NOOP\nS: 250 OK", extensions=[extension])
    assert done.session.error == "550 No"
    await replay(HELLO + "C: XNO 1\nS: 421 No\nX", extensions=[extension])


async def test_a_verb_of_lmtp_is_unknown_to_smtp() -> None:
    extension = Extension("XPING", [Command("XPING", greet, lmtp=True)])
    await replay(HELLO + "C: XPING\nS: 500 Error: command not recognized", extensions=[extension])


@pytest.mark.parametrize("verb", ["", "ping", "X PING", "X\r\n", "É"])
def test_a_malformed_verb_is_refused(verb: str) -> None:
    with pytest.raises(ConfigurationError, match="verb"):
        Command(verb, greet)


# --- Parameters


def country(asked: Asked, value: str) -> str:
    if value not in ("DE", "AT"):
        raise Reject(text=f"unknown country, {asked.session.remote_address}")
    return value.lower()


async def test_a_parameter_is_read_and_stands_in_args() -> None:
    seen: list[tuple[object, object]] = []
    parameter = {"XCOUNTRY": Parameter(country)}
    flag = {"XFAST": Parameter(lambda asked, value: None, takes_value=False)}
    text = (
        HELLO
        + """
        C: MAIL FROM:<a@example.org> XCOUNTRY=FR
        S: 501 unknown country, 192.0.2.1
        C: MAIL FROM:<a@example.org> XCOUNTRY
        S: 501 Error: parameter XCOUNTRY needs a value
        C: MAIL FROM:<a@example.org> XCOUNTRY=DE XFAST=1
        S: 501 Error: parameter XFAST takes no value
        C: MAIL FROM:<a@example.org> xcountry=DE xfast
        S: 250 Accepted
        C: RCPT TO:<b@example.com> XCOUNTRY=AT
        S: 250 Accepted
        C: RCPT TO:<b@example.com> XFAST
        S: 555 Error: parameter XFAST is not supported
    """
    )
    await replay(
        text,
        extensions=[Extension(mail=parameter | flag, rcpt=parameter)],
        on_rcpt_to=lambda address, session: seen.append((address.args, session.envelope.mail_from.args)),
    )
    assert seen == [({"XCOUNTRY": "at"}, {"XCOUNTRY": "de", "XFAST": True})]


async def test_a_refusal_that_a_parameter_returns_refuses_too() -> None:
    extension = Extension(mail={"XNO": Parameter(lambda asked, value: Reject(550, "No"))})
    text = HELLO + "C: MAIL FROM:<a@example.org> XNO=1\nS: 550 No\nC: MAIL FROM:<a@example.org>\nS: 250"
    await replay(text, extensions=[extension])


async def test_a_parameter_that_fails_is_the_applications_failure() -> None:
    seen: list[BaseException] = []

    def fail(asked: Asked, value: str) -> None:
        raise ZeroDivisionError

    text = HELLO + "C: MAIL FROM:<a@example.org> XFAIL=1\nS: 451\nC: MAIL FROM:<a@example.org>\nS: 250"
    extension = Extension(mail={"XFAIL": Parameter(fail)})
    await replay(text, extensions=[extension], on_error=lambda error, session: seen.append(error))
    assert [type(error) for error in seen] == [ZeroDivisionError]


@pytest.mark.parametrize(
    "extension",
    [
        Extension(commands=[Command("MAIL", greet)]),
        Extension(commands=[Command("XA", greet), Command("XA", greet)]),
        Extension(mail={"SIZE": Parameter(country)}),
        Extension(rcpt={"NOTIFY": Parameter(country)}),
    ],
)
def test_what_is_there_already_is_refused_at_construction(extension: Extension) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        SMTPServer(extensions=[extension])


async def wait_for_it(*_: Any) -> str:
    raise AssertionError


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: Command("xping", greet), r"verb 'xping' must be in upper case: 'XPING'"),
        (lambda: Command(5, greet), "name of a verb must be a string, not int"),  # type: ignore[arg-type]
        (lambda: Command("XPING", None), r"run must be a function run\(conversation, argument\)"),  # type: ignore[arg-type]
        (lambda: Extension(mail={"xc": Parameter(country)}), r"parameter 'xc' must be in upper case: 'XC'"),
        (lambda: Extension(mail={"X C": Parameter(country)}), "parameter 'X C' is malformed"),
        (lambda: Extension(rcpt={"XC": country}), r"XC: must be a pillarbox\.Parameter, not function"),  # type: ignore[dict-item]
        (lambda: Extension(rcpt=["XC"]), r"rcpt must map keywords to pillarbox\.Parameter"),  # type: ignore[arg-type]
        (lambda: Extension(commands=Command("XA", greet)), r"must be a list of pillarbox\.Command"),  # type: ignore[arg-type]
        (lambda: Extension(commands=[greet]), r"must be a list of pillarbox\.Command"),  # type: ignore[list-item]
        (lambda: Parameter(wait_for_it), "plain function .* not `async def`.* on_mail_from"),
        (lambda: Parameter("DE"), "plain function"),  # type: ignore[arg-type]
        (lambda: Extension(wait_for_it), "keyword must be a string or a plain function, not `async def`"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_told_when_it_is_made(make: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        make()


async def test_what_cannot_be_awaited_is_a_failure_without_a_warning() -> None:
    seen: list[BaseException] = []
    extension = Extension(lambda session: cast("str", wait_for_it()), mail={"XC": Parameter(lambda *_: wait_for_it())})
    text = "S: 220\nC: HELO x\nS: 250\nC: MAIL FROM:<a@example.org> XC=1\nS: 451\nC: NOOP\nS: 250"
    await replay(text, extensions=[extension], on_error=lambda error, session: seen.append(error))
    assert [type(error) for error in seen] == [TypeError]
    assert await announced(extensions=[extension]) == await announced()


def test_something_else_is_no_extension() -> None:
    with pytest.raises(ConfigurationError, match=r"extensions: must be a list of pillarbox\.Extension"):
        SMTPServer(extensions=["PIPELINING"])  # type: ignore[list-item]


# --- on_ehlo


async def test_on_ehlo_changes_what_is_announced() -> None:
    def on_ehlo(keywords: list[str], session: Session) -> list[str] | None:
        if session.host_name_appears_as == "old.example":
            return ["8BITMIME"]
        keywords.remove("PIPELINING")
        return None

    said = await Replay(on_ehlo=on_ehlo).run([b"EHLO old.example\r\n", b"EHLO new.example\r\n", b"HELO x\r\n"])
    assert [line[4:] for line in said[1][1:]] == ["8BITMIME"]
    assert {line[4:] for line in said[2][1:]} == await announced() - {"PIPELINING"}
    assert len(said[3]) == 1


async def test_on_ehlo_refuses_and_nothing_has_changed() -> None:
    def on_ehlo(keywords: list[str], session: Session) -> None:
        if session.host_name_appears_as == "bad.example":
            raise Reject
        if session.host_name_appears_as == "worse.example":
            raise RuntimeError

    text = """
        S: 220
        C: EHLO bad.example
        S: 550 Error: access denied
        C: EHLO worse.example
        S: 451
        C: MAIL FROM:<a@example.org>
        S: 503 Error: send HELO/EHLO first
        C: HELO x
        S: 250
        C: MAIL FROM:<a@example.org>
        S: 250
        C: HELO bad.example
        S: 550
        C: RCPT TO:<b@example.com>
        S: 250
    """
    done = await replay(text, on_ehlo=on_ehlo)
    assert (done.session.host_name_appears_as, done.session.opening_command) == ("x", "HELO")


@pytest.mark.parametrize("answer", [["A\r\nB"], [5], 5, [""], "8BITMIME"])
async def test_what_on_ehlo_returns_must_be_keywords(answer: Any) -> None:
    seen: list[BaseException] = []
    await replay(
        "S: 220\nC: EHLO x\nS: 451 Error: local error in processing\nC: NOOP\nS: 250",
        on_ehlo=lambda keywords, session: answer,
        on_error=lambda error, session: seen.append(error),
    )
    assert len(seen) == 1


# --- on_reset, on_vrfy, on_expn, on_help


async def test_on_reset_sees_what_is_forgotten_and_cannot_refuse() -> None:
    seen: list[str] = []

    def on_reset(session: Session) -> None:
        seen.append(str(session.envelope.mail_from))
        raise Reject(550)

    text = HELLO + "C: MAIL FROM:<a@example.org>\nS: 250\nC: RSET\nS: 250 Flushed\nC: MAIL FROM:<b@example.org>\nS: 250"
    await replay(text, on_reset=on_reset, on_error=lambda error, session: None)
    assert seen == ["a@example.org"]


async def test_on_vrfy() -> None:
    def on_vrfy(address: str, session: Session) -> str | None:
        if address == "jo":
            return "Jo Doe <jo@example.com>"
        if address == "je":
            return "Jé Doe <jé@example.com>"
        if address == "nobody":
            raise Reject
        return None

    text = (
        HELLO
        + """
        C: VRFY jo
        S: 250 2.1.5 Jo Doe <jo@example.com>
        C: VRFY je
        S: 252 2.6.8 The mailbox can only be shown in UTF-8
        C: VRFY je SMTPUTF8
        S: 250 2.1.5 Jé Doe <jé@example.com>
        C: VRFY nobody
        S: 550 5.1.1 Error: no such user
        C: VRFY other
        S: 252 2.0.0 Cannot VRFY user, but will accept message and attempt delivery
        C: VRFY
        S: 501 5.5.4 Error: syntax: VRFY address
    """
    )
    await replay(text, on_vrfy=on_vrfy, hide_enhanced_status_codes=False)
    assert "VRFY" in await announced(on_vrfy=on_vrfy)
    assert "VRFY" not in await announced()


async def test_on_expn() -> None:
    def on_expn(name: str, session: Session) -> list[str]:
        return {"staff": ["a@example.com", "b@example.com"], "one": ["c@example.com"]}.get(name, [])

    text = (
        HELLO
        + """
        C: EXPN staff
        S: 250-2.1.5 a@example.com
        S: 250 2.1.5 b@example.com
        C: EXPN one
        S: 250 2.1.5 c@example.com
        C: EXPN none
        S: 550 5.1.1 Error: no such mailing list
        C: EXPN
        S: 501 5.5.4 Error: syntax: EXPN list
    """
    )
    await replay(text, on_expn=on_expn, hide_enhanced_status_codes=False)
    assert "EXPN" in await announced(on_expn=on_expn)
    await replay(HELLO + "C: EXPN staff\nS: 500 Error: command not recognized")


async def test_on_help() -> None:
    def on_help(topic: str, session: Session) -> str | None:
        if topic == "XYZ":
            raise Reject
        return f"About {topic}:\nmuch" if topic else None

    text = (
        HELLO
        + """
        C: HELP MAIL
        S: 214-About MAIL:
        S: 214 much
        C: HELP
        S: 214 See https://www.rfc-editor.org/rfc/rfc5321 for details
        C: HELP XYZ
        S: 504 Error: no help on that
    """
    )
    await replay(text, on_help=on_help)
    assert "HELP" in await announced(on_help=on_help)
