"""SMTP extensions: disabled_commands and the options that hide a keyword."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillarbox import AuthRequest, Command, Extension, MessageStream, Recipient, Reject, Reply, Session
from support import PLAIN, Inbox, careless, serving


async def test_what_is_advertised_by_default() -> None:
    async with serving() as served:
        client = await served.client()
        assert await client.ehlo() == {
            "PIPELINING": "",
            "8BITMIME": "",
            "SMTPUTF8": "",
            "CHUNKING": "",
            "LIMITS": "RCPTMAX=1000",
            "STARTTLS": "",
        }


@pytest.mark.parametrize(
    ("option", "keyword"),
    [
        ("hide_pipelining", "PIPELINING"),
        ("hide_8bitmime", "8BITMIME"),
        ("hide_smtputf8", "SMTPUTF8"),
        ("hide_chunking", "CHUNKING"),
        ("hide_limits", "LIMITS"),
        ("hide_8bitmime", "SMTPUTF8"),  # RFC 6531 3.1: not without 8BITMIME
    ],
)
async def test_a_hidden_keyword(option: str, keyword: str) -> None:
    async with serving(**{option: True}) as served:
        client = await served.client()
        assert keyword not in await client.ehlo()


@pytest.mark.parametrize(
    ("option", "keyword"), [("hide_enhanced_status_codes", "ENHANCEDSTATUSCODES"), ("hide_dsn", "DSN")]
)
async def test_a_keyword_that_is_hidden_by_default(option: str, keyword: str) -> None:
    async with serving(**{option: False}) as served:
        client = await served.client()
        assert keyword in await client.ehlo()
    async with serving(**{option: True}) as served:
        client = await served.client()
        assert keyword not in await client.ehlo()


async def test_hide_requiretls_false_advertises_it_under_tls_only() -> None:
    async with serving(hide_requiretls=False) as served:
        client = await served.client()
        assert "REQUIRETLS" not in await client.ehlo()
        assert (await client.command("MAIL FROM:<a@example.com> REQUIRETLS")).code == 530
        await client.starttls(careless())
        assert "REQUIRETLS" in await client.ehlo()
        assert await client.say("MAIL FROM:<a@example.com> REQUIRETLS") == "250 Accepted"
    async with serving() as served:
        client = await served.client()
        await client.starttls(careless())
        assert "REQUIRETLS" not in await client.ehlo()


async def test_hiding_stops_advertising_and_nothing_else() -> None:
    inbox = Inbox()
    hidden = {
        "hide_pipelining": True,
        "hide_8bitmime": True,
        "hide_smtputf8": True,
        "hide_chunking": True,
        "hide_limits": True,
    }
    async with serving(**hidden, on_data=inbox) as served:
        client = await served.client()
        await client.starttls(careless())
        assert await client.ehlo() == {"AUTH": "LOGIN PLAIN"}
        await client.send(
            "MAIL FROM:<ä@example.com> BODY=8BITMIME SMTPUTF8 REQUIRETLS SIZE=5\r\nRCPT TO:<a@example.com>\r\n".encode()
        )
        assert await client.hear() == "250 Accepted"
        assert await client.hear() == "250 Accepted"
        assert str(await client.data(b"hello\r\n")) == "250 OK: message queued"
    envelope = inbox[0].envelope
    assert (envelope.body_type, envelope.smtp_utf8, envelope.require_tls) == ("8bitmime", True, True)
    assert envelope.mail_from is not None
    assert envelope.mail_from.address == "ä@example.com"
    assert envelope.mail_from.args == {"BODY": "8BITMIME", "SMTPUTF8": True, "REQUIRETLS": True, "SIZE": "5"}


@pytest.mark.parametrize(
    "parameters",
    [
        "BODY=9BITMIME",
        "BODY",
        "BODY=",
        "SMTPUTF8=1",
        "SMTPUTF8=",
        "REQUIRETLS=yes",
        "SIZE",
        "SIZE=",
        "SIZE=-1",
        "SIZE=1x",
    ],
)
async def test_hidden_parameters_are_still_checked(parameters: str) -> None:
    async with serving(hide_8bitmime=True, hide_smtputf8=True) as served:
        client = await served.hello()
        assert (await client.command(f"MAIL FROM:<a@example.com> {parameters}")).code == 501
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"


async def test_dsn_parameters() -> None:
    inbox = Inbox()
    async with serving(hide_dsn=False, on_data=inbox) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com> RET=hdrs ENVID=QQ+2B314") == "250 Accepted"
        first = "RCPT TO:<b@example.com> NOTIFY=success,FAILURE ORCPT=rfc822;b+2Bc@example.com"
        assert await client.say(first) == "250 Accepted"
        assert await client.say("RCPT TO:<c@example.com> NOTIFY=NEVER") == "250 Accepted"
        await client.data(b"hello\r\n")
    envelope = inbox[0].envelope
    assert (envelope.dsn.ret, envelope.dsn.envid) == ("HDRS", "QQ+314")
    assert (envelope.rcpt_to[0].dsn.notify, envelope.rcpt_to[0].dsn.orcpt) == (
        ("SUCCESS", "FAILURE"),
        ("rfc822", "b+c@example.com"),
    )
    assert (envelope.rcpt_to[1].dsn.notify, envelope.rcpt_to[1].dsn.orcpt) == (("NEVER",), None)


BAD_DSN = [
    "MAIL FROM:<a@example.com> RET=SOME",
    "MAIL FROM:<a@example.com> RET",
    "MAIL FROM:<a@example.com> ENVID=+0D+0A",
    "MAIL FROM:<a@example.com> ENVID=a+2b",
    "RCPT TO:<a@example.com> NOTIFY=NEVER,SUCCESS",
    "RCPT TO:<a@example.com> NOTIFY=SOMETIMES",
    "RCPT TO:<a@example.com> NOTIFY",
    "RCPT TO:<a@example.com> NOTIFY=",
    "RCPT TO:<a@example.com> ORCPT=b@example.com",
    "RCPT TO:<a@example.com> ORCPT=rfc822;+ZZ",
]


@pytest.mark.parametrize("command", BAD_DSN)
async def test_dsn_values_are_checked(command: str) -> None:
    async with serving(hide_dsn=False) as served:
        client = await served.hello()
        if command.startswith("RCPT"):
            await client.say("MAIL FROM:<a@example.com>")
        assert (await client.command(command)).code == 501


async def test_under_hide_dsn_the_parameters_are_left_raw() -> None:
    inbox = Inbox()
    async with serving(hide_dsn=True, on_data=inbox) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com> RET=some ENVID=a+2b") == "250 Accepted"
        assert await client.say("RCPT TO:<b@example.com> NOTIFY=x,y ORCPT=z") == "250 Accepted"
        await client.data(b"hello\r\n")
    envelope = inbox[0].envelope
    assert envelope.mail_from is not None
    assert envelope.mail_from.args == {"RET": "some", "ENVID": "a+2b"}
    assert envelope.rcpt_to[0].args == {"NOTIFY": "x,y", "ORCPT": "z"}
    assert (envelope.dsn.ret, envelope.dsn.envid, envelope.rcpt_to[0].dsn.notify) == (None, None, ())


ENHANCED = [
    ("EHLO a b", "501 5.5.4 "),
    ("MAIL FROM:<a@example.com>", "250 2.1.0 Accepted"),
    ("MAIL FROM:<a@example.com>", "503 5.5.1 Error: nested MAIL command"),
    ("RCPT TO:<a b>", "501 5.1.3 Error: Bad recipient address syntax"),
    ("RCPT TO:<a@example.com>", "250 2.1.5 Accepted"),
    ("RCPT TO:<nobody@example.com>", "550 5.1.1 "),
    ("RCPT TO:<later@example.com>", "451 4.7.1 Later"),
    ("DATA", "354 End data with"),
    (".", "250 2.6.0 OK: message queued"),
    ("MAIL FROM:<a@example.com> BODY=x", "501 5.5.4 "),
    ("MAIL FROM:<a@example.com> FOO=x", "555 5.5.4 "),
    ("MAIL FROM:<a@example.com> SIZE=99999", "552 5.3.4 Error: message exceeds fixed maximum message size 999"),
    ("XYZZY", "500 5.5.2 Error: command not recognized"),
    ("NOOP", "250 2.0.0 OK"),
    (f"AUTH PLAIN {PLAIN}", "235 2.7.0 Authentication successful"),
    ("QUIT", "221 2.0.0 Bye"),
]


async def test_enhanced_status_codes_on_every_reply_but_greeting_and_hello() -> None:
    def on_rcpt_to(address: Recipient, session: Session) -> None:
        if address.address.startswith("nobody"):
            raise Reject
        if address.address.startswith("later"):
            raise Reject(451, "Later", enhanced="4.7.1")

    async with serving(
        name="mx.example.net",
        size=999,
        hide_enhanced_status_codes=False,
        allow_insecure_auth=True,
        on_rcpt_to=on_rcpt_to,
        on_auth=lambda _auth, _session: True,
    ) as served:
        client = await served.connect()
        assert await client.hear() == "220 mx.example.net ESMTP"
        first = (await client.command("EHLO client.example")).lines[0]
        assert first == "mx.example.net Nice to meet you, [127.0.0.1]"
        for command, answer in ENHANCED:
            assert (await client.say(command)).startswith(answer), command


async def test_a_failed_auth_has_its_enhanced_code() -> None:
    async with serving(
        hide_enhanced_status_codes=False,
        auth_optional=False,
        allow_insecure_auth=True,
        on_auth=lambda _auth, _session: None,
    ) as served:
        client = await served.hello()
        assert (await client.say("MAIL FROM:<a@example.com>")).startswith("530 5.7.0 ")
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).startswith("535 5.7.8 ")


async def test_an_enhanced_code_stands_on_each_line_of_a_long_reply() -> None:
    async def on_data(stream: MessageStream, session: Session) -> str:
        return "word " * 200

    async with serving(hide_enhanced_status_codes=False, on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        answer = await client.data(b"hello\r\n")
    assert len(answer.lines) > 1
    assert all(line.startswith("2.6.0 ") for line in answer.lines)


CLOSING: list[tuple[dict[str, Any], list[str], str]] = [
    ({"socket_timeout": 0.2}, [], "421 4.4.2 Timeout - closing connection"),
    ({}, ["XYZZY"] * 10, "421 4.7.0 Error: too many unrecognized commands"),
    ({}, ["GET / HTTP/1.1"], "421 4.7.0 HTTP requests not allowed"),
    (
        {"auth_optional": False, "max_allowed_unauthenticated_commands": 2},
        ["NOOP", "NOOP"],
        "421 4.7.0 Error: too many unauthenticated commands",
    ),
    (
        {"handler_timeout": 0.1, "on_mail_from": lambda *_: asyncio.sleep(9)},
        ["MAIL FROM:<a@example.com>"],
        "451 4.3.0 ",
    ),
    ({}, ["HELO"], "501 5.5.4 Error: syntax: HELO hostname"),
    ({}, ["EHLO x", "RCPT TO:<a@example.com>"], "503 5.5.1 Error: need MAIL command"),
    ({}, ["NOOP " + "x" * 5000], "500 5.5.2 Error: Command line too long"),
    ({"on_connect": lambda _: None}, ["XCLIENT NAME=x"], "550 5.7.0 "),
]


@pytest.mark.parametrize(("options", "commands", "answer"), CLOSING)
async def test_the_enhanced_codes_of_refusals(options: dict[str, Any], commands: list[str], answer: str) -> None:
    async with serving(hide_enhanced_status_codes=False, **options) as served:
        client = await served.hello()
        heard = ""
        for command in commands:
            heard = await client.say(command)
        if not commands:
            heard = await client.hear()
        assert heard.startswith(answer)


async def test_the_enhanced_codes_of_who_may_not_enter() -> None:
    async with serving(hide_enhanced_status_codes=False, max_clients=1, name="mx.example.net") as served:
        first = await served.hello()
        second = await served.connect()
        assert await second.hear() == "421 4.3.2 mx.example.net Too many connected clients, try again in a moment"
        await served.server.close()
        assert await first.hear() == "421 4.3.2 Server shutting down"


async def test_without_them_a_rejects_code_stays_away() -> None:
    def on_mail_from(*_: object) -> None:
        raise Reject(451, "Later", enhanced="4.7.1")

    async with serving(on_mail_from=on_mail_from) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "451 Later"


# --- disabled_commands


@pytest.mark.parametrize("command", ["VRFY ann", "HELP", "NOOP", "RSET", "STARTTLS", "AUTH PLAIN", "XCLIENT NAME=x"])
async def test_a_disabled_command_answers_as_unknown(command: str) -> None:
    async with serving(disabled_commands=[command.split(maxsplit=1)[0].lower()], use_xclient=True) as served:
        client = await served.hello()
        assert await client.say(command) == "500 Error: command not recognized"


@pytest.mark.parametrize("verb", ["STARTTLS", "AUTH", "XCLIENT", "XFORWARD"])
async def test_the_extension_of_a_disabled_command_is_not_advertised(verb: str) -> None:
    everything: dict[str, Any] = {"allow_insecure_auth": True, "use_xclient": True, "use_xforward": True}
    async with serving(**everything) as served:
        client = await served.client()
        assert verb in await client.ehlo()
    async with serving(**everything, disabled_commands=[verb]) as served:
        client = await served.client()
        assert verb not in await client.ehlo()


async def test_disabling_auth_lifts_the_need_to_authenticate() -> None:
    async with serving(auth_optional=False, disabled_commands=["AUTH"]) as served:
        client = await served.hello()
        assert await client.deliver() == "250 OK: message queued"


@pytest.mark.parametrize("options", [{"disabled_commands": ["STARTTLS"]}, {"hide_starttls": True}])
async def test_without_starttls_auth_does_not_wait_for_it(options: dict[str, Any]) -> None:
    def on_auth(auth: AuthRequest, session: Session) -> bool:
        return True

    async with serving(**options, on_auth=on_auth) as served:
        client = await served.client()
        offered = await client.ehlo()
        assert "STARTTLS" not in offered
        assert offered["AUTH"] == "LOGIN PLAIN"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"


async def test_binarymime() -> None:
    inbox = Inbox()
    async with serving(binarymime=True, on_data=inbox) as served:
        client = await served.client()
        assert "BINARYMIME" in await client.ehlo()
        await client.say("MAIL FROM:<a@example.com> BODY=BINARYMIME")
        await client.say("RCPT TO:<b@example.com>")
        await client.send(b"BDAT 5\r\n\0\n\r\xff.")
        assert await client.hear() == "250 5 octets received"
        await client.send(b"BDAT 0 LAST\r\n")
        assert await client.hear() == "250 OK: message queued"
    assert [message.content for message in inbox] == [b"\0\n\r\xff."]
    async with serving() as served:
        client = await served.client()
        assert "BINARYMIME" not in await client.ehlo()
        assert (await client.command("MAIL FROM:<a@example.com> BODY=BINARYMIME")).code == 501


async def test_extensions_and_the_handlers_of_small_verbs() -> None:
    ping = Command("XPING", lambda conversation, argument: Reply(250, "2.0.0", f"pong {argument}"))
    heard: list[str] = []
    options = {
        "extensions": [Extension("XPING", [ping])],
        "on_ehlo": lambda keywords, session: [*keywords, "XMORE"],
        "on_reset": lambda session: heard.append(session.id),
        "on_vrfy": lambda address, session: f"<{address}@example.com>",
        "on_expn": lambda name, session: [f"{name}-1@example.com", f"{name}-2@example.com"],
        "on_help": lambda topic, session: f"about {topic}",
    }
    async with serving(**options) as served:
        client = await served.client()
        assert {"XPING", "XMORE", "VRFY", "EXPN", "HELP"} <= (await client.ehlo()).keys()
        assert await client.say("XPING 5") == "250 pong 5"
        assert await client.say("VRFY jo") == "250 <jo@example.com>"
        assert (await client.command("EXPN all")).lines == ["all-1@example.com", "all-2@example.com"]
        assert await client.say("HELP MAIL") == "214 about MAIL"
        assert await client.say("RSET") == "250 Flushed"
    assert len(heard) == 1
