"""What the server must withstand: STARTTLS, commands, replies and logs, and whom it trusts."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import shutil
import ssl
import struct
import sys
from base64 import b64decode
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from pillarbox import AuthRequest, HandshakeFailed, MessageStream, Reject, ScramKeys, Session
from scram_client import ScramClient
from splits import KINDS, Parts, every_way, secured, under
from support import (
    PLAIN,
    TIMEOUT,
    Client,
    Inbox,
    Sessions,
    b64,
    careless,
    on_both_loops,
    pem,
    recorded,
    serving,
    trusting,
)


async def in_parts(client: Client, octets: bytes, *cuts: int) -> None:
    """Send octets cut at these places, so that the server reads each part by itself."""
    for begin, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
        await client.send(octets[begin:end])
        for _ in range(3):
            await asyncio.sleep(0)


# --- STARTTLS


@pytest.mark.promises(
    "TLS", "What stands behind STARTTLS, be it part of a line, is never run under TLS: 554, and the connection ends."
)
@pytest.mark.parametrize("forbid", [True, False])
@pytest.mark.parametrize(
    "behind", [b"N", b"NOOP\r\n", b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<x@", b"\x16\x03\x01", b"\n"]
)
@on_both_loops
async def test_bytes_behind_starttls_are_never_executed(behind: bytes, forbid: bool) -> None:
    async with serving(forbid_unauth_pipelining=forbid) as served:
        client = await served.hello()
        await client.send(b"STARTTLS\r\n" + behind)
        assert (await client.reply()).code == 554
        await client.eof()


@pytest.mark.promises(
    "TLS", "What stands behind STARTTLS, be it part of a line, is never run under TLS: 554, and the connection ends."
)
@on_both_loops
async def test_a_client_hello_in_the_same_segment_is_refused_too() -> None:
    async with serving() as served:
        client = await served.hello()
        await client.send(b"STARTTLS\r\n" + Handshake(careless()).hello())
        assert (await client.reply()).code == 554
        await client.eof()


@pytest.mark.promises(
    "TLS", "Nothing said before the handshake counts after it: hello, envelope, login, XCLIENT, XFORWARD."
)
@on_both_loops
async def test_nothing_of_the_plaintext_session_survives_starttls() -> None:
    async with serving(
        allow_insecure_auth=True,
        auth_optional=False,
        on_auth=lambda *_: True,
        use_xclient=["127.0.0.1"],
        use_xforward=True,
    ) as served:
        client = await served.hello()
        assert (await client.command("XFORWARD NAME=spooled.example")).code == 250
        assert (await client.command("XCLIENT ADDR=192.0.2.7 PORT=7 NAME=spoofed.example LOGIN=bob")).code == 220
        await client.ehlo()
        await client.say("MAIL FROM:<evil@example.com>")
        await client.say("RCPT TO:<evil@example.com>")
        session = served.server.connections[0]
        assert session.user == "bob"
        await client.starttls(careless())
        for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<a@example.com>", "DATA", "AUTH LOGIN"):
            assert await client.say(command) == "503 Error: send HELO/EHLO first"
        assert (session.user, session.opening_command, session.host_name_appears_as) == (None, None, None)
        assert (session.envelope.mail_from, session.envelope.rcpt_to) == (None, [])
        assert (session.x_client, session.x_forward) == ({}, {})
        assert (session.remote_address, session.client_hostname) == ("127.0.0.1", "[127.0.0.1]")
        assert session.remote_port == client.writer.get_extra_info("sockname")[1]
        offered = await client.ehlo()
        assert "AUTH" in offered
        assert "XCLIENT" in offered
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 530
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert await client.say("RCPT TO:<a@example.com>") == "503 Error: need MAIL command"


@pytest.mark.promises(
    "TLS", "The handshake has a deadline of its own, which a client that sends in drops does not move."
)
@on_both_loops
async def test_the_handshake_has_a_deadline_that_dripping_does_not_move() -> None:
    hello = Handshake(careless()).hello()
    async with serving(handshake_timeout=0.3) as served:
        client = await served.hello()
        assert await client.say("STARTTLS") == "220 Ready to start TLS"
        ended = asyncio.create_task(client.eof())
        with contextlib.suppress(ConnectionError):
            for octet in hello[:-1]:
                if ended.done():
                    break
                await client.send(bytes([octet]))
                await asyncio.sleep(0.02)
        await asyncio.wait_for(ended, 2)


@pytest.mark.promises("TLS", "What is no handshake ends the connection, and nothing of it is run.")
@pytest.mark.parametrize("secure", [False, True])
@on_both_loops
async def test_garbage_for_a_client_hello_ends_the_connection(secure: bool) -> None:
    async with serving(secure=secure) as served:
        client = await (served.connect() if secure else served.hello())
        if not secure:
            assert await client.say("STARTTLS") == "220 Ready to start TLS"
        await client.send(b"EHLO client.example\r\nMAIL FROM:<a@example.com>\r\n")
        rest = await client.rest()
        assert b"250" not in rest
        assert b"Accepted" not in rest


@pytest.mark.promises("TLS", "A server name that is none chooses no certificate and reaches no callback.")
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@on_both_loops
async def test_a_server_name_outside_ascii_ends_the_handshake(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/security.md says of it: CPython tells ``sys.unraisablehook`` and no log."""
    asked: list[str] = []
    errors: list[Exception] = []
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append((found.exc_type, found.object)))
    told = asyncio.Event()

    def on_error(error: Exception, session: Session) -> None:
        errors.append(error)
        told.set()

    name = b"\xffa\r\n: b.example"
    placeholder = b"q" * len(name)
    async with serving(sni_callback=asked.append, on_error=on_error, **secured(kind)) as served:
        client = await (served.hello() if kind == "starttls" else served.connect())
        if kind == "starttls":
            assert (await client.command("STARTTLS")).code == 220
        hello = Handshake(careless(), placeholder.decode()).hello()
        assert placeholder in hello
        await client.send(hello.replace(placeholder, name))
        assert b"220 " not in await client.rest()
        await asyncio.wait_for(told.wait(), TIMEOUT)
        await under(kind, served)  # and others are served
    assert [type(error) for error in errors] == [HandshakeFailed]
    assert unraisable == [(UnicodeDecodeError, name)]
    assert asked == ["localhost"]


@pytest.mark.promises("TLS", "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.")
async def test_what_every_context_forbids() -> None:
    hosts = {"a.example.net": pem("a.example.net")}
    async with serving(sni_options=hosts, **pem()) as served:
        for listener in [endpoint.listener for endpoint in served.server._endpoints]:
            names: Any = listener.tls.context.sni_callback
            for context in (listener.tls.context, *names.hosts.values()):
                assert context.options & ssl.OP_NO_RENEGOTIATION
                assert context.options & ssl.OP_NO_COMPRESSION
                assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.promises("TLS", "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.")
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
async def test_nothing_is_compressed(kind: str) -> None:
    context = careless()
    context.options &= ~ssl.OP_NO_COMPRESSION  # the client would
    async with serving(**secured(kind)) as served:
        client = await served.client(context) if kind == "implicit" else await served.hello()
        if kind == "starttls":
            await client.starttls(context)
        assert client.writer.get_extra_info("compression") is None


@pytest.mark.promises("TLS", "STARTTLS does not reset the limits of a connection.")
async def test_the_limits_of_a_connection_count_on_under_tls() -> None:
    """They are no knowledge that the client gave, and STARTTLS must not be the way around them."""
    async with serving(max_messages=2) as served:
        client = await served.hello()
        await client.deliver()
        await client.starttls(careless())
        await client.ehlo()
        assert await client.deliver() == "250 OK: message queued"
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 421


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
@pytest.mark.promises(
    "TLS", "Nothing said before the handshake counts after it: hello, envelope, login, XCLIENT, XFORWARD."
)
@pytest.mark.parametrize("lmtp", [False, True])
async def test_under_tls_a_chunk_waits_for_a_new_hello_too(lmtp: bool) -> None:
    async with serving(lmtp=lmtp) as served:
        client = await served.hello()
        await client.envelope()
        await client.starttls(careless())
        await client.send(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
        assert await client.hear() == f"503 Error: send {'LHLO' if lmtp else 'HELO/EHLO'} first"
        assert await client.hear() == "250 OK"


@pytest.mark.promises("TLS", "By default TLS 1.2 is the oldest version; there is no compression and no renegotiation.")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed here")
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@on_both_loops
async def test_no_renegotiation(kind: str) -> None:
    """Openssl's client renegotiates at the letter R; under TLS 1.2 the server must not take part."""
    async with serving(**secured(kind)) as served:
        host, port = served.address
        how = ["-starttls", "smtp"] if kind == "starttls" else []
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-quiet", "-no_ign_eof", "-tls1_2", "-connect", f"{host}:{port}", *how),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        if not how:  # else it keeps to itself what came before the handshake
            greeting = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
            assert greeting.startswith(b"220 ")
        _, errors = await asyncio.wait_for(process.communicate(b"R\n"), TIMEOUT)
    assert b"no renegotiation" in errors


# --- Commands


@pytest.mark.promises("Commands", "Keywords are ASCII: no other letter of Unicode passes for one of theirs.")
@pytest.mark.parametrize(
    "line",
    ["\u017fTARTTLS", "MA\u0131L FROM:<a@example.com>", "NOOP\u2028", "\u212aICK", "\uff4e\uff4f\uff4f\uff50"],
)
async def test_keywords_are_ascii(line: str) -> None:
    async with serving() as served:
        client = await served.hello()
        assert await client.say(line) == "500 Error: command not recognized"


@pytest.mark.promises("Commands", "Keywords are ASCII: no other letter of Unicode passes for one of theirs.")
@pytest.mark.parametrize(
    "parameter", ["\u017fIZE=5", "BODY\u200b=7BIT", "\u0130=1", "SMTPUTF\uff18", "BODY=8B\u0131TMIME"]
)
async def test_parameters_are_ascii(parameter: str) -> None:
    async with serving(lenient_parameters=True) as served:
        client = await served.hello()
        assert (await client.command(f"MAIL FROM:<a@example.com> {parameter}")).code == 501


@pytest.mark.promises("Commands", "Keywords are ASCII: no other letter of Unicode passes for one of theirs.")
@pytest.mark.parametrize("mechanism", ["PLA\u0131N", "\u212aRB", "LOGIN\u200b", "L\u00f6GIN"])
async def test_mechanisms_are_ascii(mechanism: str) -> None:
    async with serving(allow_insecure_auth=True) as served:
        client = await served.hello()
        assert (await client.command(f"AUTH {mechanism}")).code in (501, 504)


@pytest.mark.promises("Commands", "Control characters, NUL and malformed UTF-8 in a command are refused.")
@pytest.mark.parametrize(
    "line",
    [
        b"NO\0OP",
        b"\0NOOP",
        b"NOOP \0",
        b"NOOP\rQUIT",
        b"NOOP \rQUIT",
        b"NOOP \x1b[2J",
        b"EHLO a\0b",
        b"EHLO a\x07b",
        b"EHLO a\x7fb",
        b"HELO \xc2\x85",
        b"MAIL FROM:<a\0@example.com>",
        b"MAIL FROM:<a@example.com>\0",
        b"MAIL FROM:<a@example.com> SIZE=1\0",
        b"MAIL FROM:<a\xff@example.com> SMTPUTF8",
        b"MAIL FROM:<a@example.com>\rRCPT TO:<b@example.com>",
        b"MAIL FROM:<\xe2\x80\x8ba@example.com> SMTPUTF8",
        b"VRFY a\tb",
        b"RSET \x01",
    ],
)
async def test_control_characters_in_a_command(line: bytes) -> None:
    async with serving() as served:
        client = await served.hello()
        await client.send(line + b"\r\n")
        assert (await client.reply()).code in (500, 501)
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        await client.say("QUIT")
        await client.eof()


@pytest.mark.promises("Commands", "A parameter twice, a flag with a value, a value left out: 501. An unknown one: 555.")
@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ("SIZE=1 SIZE=1", 501),
        ("SIZE=1 size=2", 501),
        ("SMTPUTF8 SMTPUTF8", 501),
        ("BODY=7BIT BODY=8BITMIME", 501),
        ("XYZ=1", 555),
        ("XYZ", 555),
        ("BODY", 501),
        ("BODY=", 501),
        ("SIZE", 501),
        ("SIZE=", 501),
        ("SIZE=0x10", 501),
        ("SIZE=٣", 501),
        ("SIZE=" + "9" * 21, 501),
        ("SMTPUTF8=", 501),
        ("SMTPUTF8=yes", 501),
        ("REQUIRETLS=1", 501),
        ("=1", 501),
        ("SIZE==1", 501),
        ("RET", 501),
        ("RET=", 501),
        ("ENVID=", 501),
        ("AUTH", 501),
        ("AUTH=", 501),
        ("AUTH=a+zz", 501),
        ("AUTH=a+2b", 501),
        ("ENVID=+00", 501),
        ("ENVID=+0A", 501),
        ("ENVID=a+", 501),
    ],
)
async def test_parameters_of_mail(parameters: str, code: int) -> None:
    with recorded(logging.WARNING) as records:
        async with serving(hide_dsn=False) as served:
            client = await served.hello()
            assert (await client.command(f"MAIL FROM:<a@example.com> {parameters}")).code == code
            assert await client.say("MAIL FROM:<a@example.com> AUTH=<>") == "250 Accepted"
            assert served.server.connections[0].envelope.body_type == "7bit"
    assert records == []


@pytest.mark.promises("Commands", "A parameter twice, a flag with a value, a value left out: 501. An unknown one: 555.")
@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ("NOTIFY=NEVER NOTIFY=NEVER", 501),
        ("NOTIFY", 501),
        ("NOTIFY=", 501),
        ("NOTIFY=,", 501),
        ("NOTIFY=SUCCESS,", 501),
        ("NOTIFY=never,success", 501),
        ("ORCPT", 501),
        ("ORCPT=", 501),
        ("ORCPT=;", 501),
        ("ORCPT=rfc822;", 501),
        ("ORCPT=rfc822;a+0D+0Ab", 501),
        ("XYZ", 555),
        ("SIZE=1", 555),
    ],
)
async def test_parameters_of_rcpt(parameters: str, code: int) -> None:
    with recorded(logging.WARNING) as records:
        async with serving(hide_dsn=False) as served:
            client = await served.hello()
            await client.say("MAIL FROM:<a@example.com>")
            assert (await client.command(f"RCPT TO:<a@example.com> {parameters}")).code == code
            assert await client.say("DATA") == "503 Error: need RCPT command"
            assert await client.say("RCPT TO:<a@example.com>") == "250 Accepted"
    assert records == []


OUT_OF_TURN = [
    ("EHLO client.example", ""),
    ("HELO client.example", ""),
    ("AUTH PLAIN", ""),
    (f"AUTH PLAIN {PLAIN}", ""),
    ("AUTH LOGIN", ""),
    ("AUTH NONE", ""),
    ("DATA", "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"),
    ("DATA", ""),
    ("DATA", "MAIL FROM:<a@example.com>\r\n"),
    ("DATA now", "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"),
]


@pytest.mark.promises(
    "Commands", "What waits behind HELO, EHLO, AUTH, STARTTLS or DATA is never run: 554, and the connection ends."
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("command", "before"), OUT_OF_TURN)
@on_both_loops
async def test_what_waits_behind_a_command_out_of_turn_is_never_run(command: str, before: str, kind: str) -> None:
    async with serving(allow_insecure_auth=True, on_auth=lambda *_: True, **secured(kind)) as served:
        for behind in (b"N", b"\n", b"NOOP\r\n", b"RSET\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<x@"):
            client = await under(kind, served)
            for line in before.splitlines():
                assert (await client.command(line)).code == 250
            await client.send(command.encode() + b"\r\n" + behind)
            assert await client.hear() == "554 Error: SMTP protocol synchronization"
            client.writer.write(b"NOOP\r\n")  # nor is what comes later
            if kind == "plain":
                await client.eof()
            else:  # where the server waits for the client's end of TLS
                await client.close()


@pytest.mark.promises(
    "Commands", "With forbid_unauth_pipelining off, what waits behind a refused DATA still ends the connection."
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refused", [True, False])
@on_both_loops
async def test_where_it_is_allowed_bytes_behind_data_are_data_or_close(refused: bool, kind: str) -> None:
    inbox = Inbox()
    options = {
        "on_data": inbox,
        "forbid_unauth_pipelining": False,
        "on_rcpt_to": says(Reject(550) if refused else None),
    }
    async with serving(**options, **secured(kind)) as served:
        client = await under(kind, served)
        await client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\nNOOP\r\n.\r\nRSET\r\n")
        codes = [(await client.reply()).code for _ in range(4)]
        if refused:
            assert codes == [250, 550, 503, 554]
        else:
            assert [*codes, (await client.reply()).code] == [250, 250, 354, 250, 250]
            assert inbox[0].content == b"NOOP\r\n"


@pytest.mark.promises("Commands", "An HTTP request ends the connection with 421.")
@pytest.mark.parametrize(
    "line", ["GET / HTTP/1.1", "POST /x HTTP/1.0", "CONNECT example.com:25 HTTP/1.1", "get / http/1.1"]
)
async def test_http_is_sent_away(line: str) -> None:
    async with serving() as served:
        client = await served.client()
        await client.send(line.encode() + b"\r\nHost: example.com\r\n\r\nMAIL FROM:<a@example.com>\r\n")
        assert await client.hear() == "421 HTTP requests not allowed"
        await client.eof()


async def test_the_tenth_unknown_command_and_what_resets_the_count() -> None:
    async with serving() as served:
        client = await served.hello()
        for _ in range(9):
            assert await client.say("XYZZY") == "500 Error: command not recognized"
        assert await client.deliver() == "250 OK: message queued"
        for _ in range(9):
            assert await client.say("XYZZY") == "500 Error: command not recognized"
        assert await client.say("XYZZY") == "421 Error: too many unrecognized commands"
        await client.eof()


SEQUENCE = [
    ("RCPT TO:<a@example.com>", "503 Error: send HELO/EHLO first"),
    ("EHLO", "501 Error: syntax: EHLO hostname"),
    ("EHLO a b", "501 Error: syntax: EHLO hostname"),
    ("HELO", "501 Error: syntax: HELO hostname"),
    ("HELO client.example", None),
    ("RCPT TO:<a@example.com>", "503 Error: need MAIL command"),
    ("DATA", "503 Error: need MAIL command"),
    ("MAIL FROM:a@example.com", "501 Error: Bad sender address syntax"),
    ("MAIL TO:<a@example.com>", "501 Error: Bad sender address syntax"),
    ("MAIL", "501 Error: Bad sender address syntax"),
    ("MAIL FROM:<>", "250 Accepted"),
    ("MAIL FROM:<>", "503 Error: nested MAIL command"),
    ("DATA", "503 Error: need RCPT command"),
    ("RCPT TO:<>", "501 Error: Bad recipient address syntax"),
    ("RCPT TO:<b@example.com", "501 Error: Bad recipient address syntax"),
    ("RCPT TO:<b@example.com>", "250 Accepted"),
    ("RSET", "250 Flushed"),
    ("RCPT TO:<b@example.com>", "503 Error: need MAIL command"),
    ("NOOP what ever", "250 OK"),
    ("EXPN list", "500 Error: command not recognized"),
    ("", "500 Error: command not recognized"),
]


async def test_commands_out_of_sequence() -> None:
    async with serving(max_errors=None) as served:
        client = await served.client()
        for command, answer in SEQUENCE:
            heard = await client.say(command)
            assert answer is None or heard == answer, command
        assert (await client.command("HELP")).code == 214
        assert (await client.command("VRFY ann")).code == 252
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()


# --- Replies and logs

FORGED = "fine\r\n250 forged\n551 more\r\0\x1b[2J\x85\u2028end"


def says(answer: object) -> Any:
    """Return a hook that gives this answer, or raises it."""

    async def hook(*_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return hook


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize(
    ("hook", "command"),
    [
        ("on_auth", f"AUTH PLAIN {PLAIN}"),
        ("on_mail_from", "MAIL FROM:<a@example.com> SMTPUTF8"),
        ("on_rcpt_to", "RCPT TO:<a@example.com>"),
        ("on_data", "."),
    ],
)
async def test_no_handler_forges_a_reply(hook: str, command: str) -> None:
    async with serving(**{hook: says(Reject(550, FORGED))}, allow_insecure_auth=True) as served:
        client = await served.hello()
        before = ["MAIL FROM:<a@example.com> SMTPUTF8", "RCPT TO:<a@example.com>", "DATA"]
        for line in before[: {"on_rcpt_to": 1, "on_data": 3}.get(hook, 0)]:
            await client.command(line)
        answer = await client.command(command)
        assert answer.code == 550
        assert len(answer.lines) == 1
        check_clean(answer.lines[0])
        assert await client.say("NOOP") == "250 OK"


def check_clean(line: str) -> None:
    assert line.startswith("fine")
    assert line.endswith("end")
    assert not set(line) & set("\r\n\0\x1b\x85\u2028")


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("lmtp", [False, True])
async def test_no_text_of_on_data_forges_a_reply(lmtp: bool) -> None:
    answer: Any = [FORGED, Reject(450, FORGED)] if lmtp else FORGED
    async with serving(on_data=says(answer), lmtp=lmtp) as served:
        client = await served.hello()
        assert (await client.command("MAIL FROM:<a@example.com> SMTPUTF8")).code == 250
        for recipient in "ab"[: 2 if lmtp else 1]:
            await client.command(f"RCPT TO:<{recipient}@example.com>")
        first = await client.data(b"hello\r\n")
        assert (first.code, len(first.lines)) == (250, 1)
        check_clean(first.lines[0])
        if lmtp:
            second = await client.reply()
            assert (second.code, len(second.lines)) == (450, 1)
            check_clean(second.lines[0])
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.promises(
    "Replies and logs",
    "No text of a handler, an option or DNS breaks out of its reply or puts control characters into it.",
)
@pytest.mark.parametrize("hook", ["on_connect", "on_secure"])
async def test_no_refusal_at_the_door_forges_a_reply(hook: str) -> None:
    async with serving(**{hook: says(Reject(554, FORGED))}, secure=True) as served:
        client = await served.connect(careless())
        answer = await client.reply()
        assert (answer.code, len(answer.lines)) == (554, 1)
        assert answer.lines[0].startswith("fine")
        await client.eof()


@pytest.mark.promises(
    "Replies and logs",
    "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
)
@pytest.mark.parametrize(
    "text", ["word " * 500, "x" * 2000, "\u00e4\u20ac\U0001f600" * 300, "x " + "y" * 511 + " z", ""], ids=len
)
@pytest.mark.parametrize("codes", [False, True])
async def test_a_long_reply_has_lines_of_512_octets(text: str, codes: bool) -> None:
    async with serving(on_data=says(text), hide_enhanced_status_codes=not codes) as served:
        client = await served.hello()
        for command in ("MAIL FROM:<a@example.com> SMTPUTF8", "RCPT TO:<a@example.com>", "DATA"):
            assert (await client.command(command)).code in (250, 354)
        answer = await client.command(".")  # each line's length is checked there
        assert answer.code == 250
        start = "2.6.0 " if codes else ""
        assert all(line.startswith(start) for line in answer.lines)
        said = "".join(line.removeprefix(start) for line in answer.lines)
        assert said.replace(" ", "") == text.replace(" ", "").encode("ascii", "replace").decode()
        assert (await client.command("NOOP")).code == 250


async def test_a_long_reply_in_utf8_is_cut_between_characters() -> None:
    text = "\u00e4\u20ac\U0001f600" * 300  # only 551 may have it (RFC 6531 3.7.4.1)
    async with serving(on_rcpt_to=says(Reject(551, text))) as served:
        client = await served.hello()
        await client.command("MAIL FROM:<a@example.com> SMTPUTF8")
        answer = await client.command("RCPT TO:<a@example.com>")
        assert (answer.code, "".join(answer.lines)) == (551, text)


async def test_without_smtputf8_a_reply_is_ascii() -> None:
    async with serving(on_data=says("gr\u00fc\u00dfe")) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.data(b"hello\r\n")).lines[0].isascii()


@pytest.mark.promises(
    "Replies and logs",
    "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
)
async def test_a_long_host_name_does_not_break_the_hello() -> None:
    class Names:
        async def reverse(self, ip: str) -> Sequence[str]:
            return ["a" * 60 + (".b" * 97)]

    async with serving(
        resolver=Names(), disable_reverse_lookup=False, helo_response="x" * 300 + " %s %s", name="n" * 200
    ) as served:
        client = await served.client()
        assert "PIPELINING" in await client.ehlo()
        assert (await client.command("HELO x")).code == 250


@pytest.mark.promises("Replies and logs", "No text of a client or a handler breaks out of its line of a log.")
async def test_no_client_forges_a_line_of_the_log() -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(
            use_xclient=True, allow_insecure_auth=True, on_mail_from=says(Reject(550, FORGED))
        ) as served:
            client = await served.hello()
            for line in (
                b"NOOP \x1b[2J\rINFO forged",
                b"XYZ\rINFO forged",
                "NOOP \u2028INFO forged\u0085".encode(),
                b"EHLO \xff\xfe",
                b"MAIL FROM:<a\rb@example.com>",
                b"MAIL FROM:<a@example.com>",
                b"XCLIENT NAME=+0D+0Aforged",
                b"AUTH PLAIN " + b64("\0a\r\nINFO forged\0x").encode(),
            ):
                await client.send(line + b"\r\n")
                await client.reply()
    assert records
    for record in records:
        if record.name.startswith("pillarbox"):
            assert not set(record.getMessage()) & set("\r\n\x1b\x85\u2028"), record.getMessage()


SECRET = "S3cr3tPassw0rd"
ANN = ScramKeys.from_password(SECRET, iterations=4096)
TOKEN = b64(f"\0ann\0{SECRET}")
XOAUTH2 = b64(f"user=ann\1auth=Bearer {SECRET}\1\1")
OAUTHBEARER = b64(f"n,a=ann,\1auth=Bearer {SECRET}\1\1")
SCRAM = b64(f"n,,n=ann,r={SECRET}")  # of a client that takes its password for the nonce
EXCHANGES: list[list[str]] = [
    [f"AUTH OAUTHBEARER {OAUTHBEARER}", ""],
    ["AUTH OAUTHBEARER", OAUTHBEARER, "AQ=="],
    [f"AUTH OAUTHBEARRER {OAUTHBEARER}"],
    [f"AUTH SCRAM-SHA-256 {SCRAM}", "*"],
    ["AUTH SCRAM-SHA-256", SCRAM, b64(f"c=biws,r={SECRET},p={b64(SECRET)}")],
    [f"AUTH SCRAM-SHA-265 {SCRAM}", "*"],
    [f"AUTH EXTERNAL {TOKEN}"],
    [f"AUTH ANONYMOUS {TOKEN}"],
    [f"AUTH NTLM {TOKEN}", TOKEN],
    [f"AUTH\u00a0PLAIN {TOKEN}"],
    [f"AUTH PLAIN {TOKEN}\rNOOP"],
    [f"LOGIN ann {SECRET}"],
    [f"USER ann\r\nPASS {SECRET}"],
    [f"AUTH PLAIN {TOKEN}"],
    ["AUTH PLAIN", TOKEN],
    ["AUTH PLAIN", f"{TOKEN}!"],
    ["AUTH PLAIN", b64(f"\0ann\0{SECRET}\0x")],
    ["AUTH PLAIN", SECRET],
    [f"AUTH PLAIN {SECRET}"],
    [f"auth plain {TOKEN}"],
    [f"AUTH  PLAIN {TOKEN}"],
    [f"AUTH PLAIN  {TOKEN}"],
    [f"AUTH\tPLAIN\t{TOKEN}"],
    [f"AUTH PLAIN\t{TOKEN}"],
    [f"AUTH PLAIN={TOKEN}"],
    [f"AUTH PLAIN:{TOKEN}"],
    [f"AUTH PLAIN{TOKEN}"],
    [f"AUTH {TOKEN}"],
    [f"AUTH {SECRET}"],
    [f"AUTH={TOKEN}"],
    [f"AUTHPLAIN {TOKEN}"],
    [f"AUHT PLAIN {TOKEN}"],
    [f"AUTH PLIAN {TOKEN}"],
    [f"AUTH PLAIN {TOKEN} {TOKEN}"],
    [f"AUTH PLAIN {TOKEN}\x00"],
    [f"AUTH PLAIN \u017f{TOKEN}"],
    ["AUTH LOGIN", b64("ann"), b64(SECRET)],
    [f"AUTH LOGIN {b64('ann')}", b64(SECRET)],
    ["AUTH LOGIN", b64("ann"), SECRET],
    ["AUTH LOGIN", "*", b64(SECRET)],
    ["AUTH LOGN", b64("ann"), b64(SECRET)],
    [f"AUTH LOGIN {b64('ann')} {b64(SECRET)}"],
    ["AUTH CRAM-MD5", "CRAM"],
    [f"AUTH CRAM-MD5 {TOKEN}"],
    [f"AUTH XOAUTH2 {XOAUTH2}", ""],
    ["AUTH XOAUTH2", XOAUTH2, "*"],
    [f"AUTH XOAUTH2 {b64(f'user=ann auth=Bearer {SECRET}')}"],
    [f"AUTH XOAUTH {XOAUTH2}"],
    [SECRET],
    [TOKEN],
    [f"AUTH PLAIN {b64(SECRET * 900)}"],
]


def accepts(auth: AuthRequest, session: Session) -> bool:
    return auth.validate_password(SECRET) or auth.access_token == SECRET


def refuses(auth: AuthRequest, session: Session) -> bool:
    repr(auth)
    return False


def breaks(auth: AuthRequest, session: Session) -> bool:
    raise LookupError(f"the table of {auth!r} is gone")


@pytest.mark.promises(
    "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
)
@pytest.mark.parametrize(
    "options",
    [
        {"on_auth": accepts},
        {"on_auth": refuses},
        {"on_auth": breaks},
        {},
        {"allow_insecure_auth": False},
        {"disabled_commands": ["AUTH"]},
        {"auth_methods": ["CRAM-MD5"]},
        {"lmtp": True, "on_auth": refuses},
    ],
    ids=["accepted", "refused", "broken", "default", "before TLS", "disabled", "other methods", "lmtp"],
)
@pytest.mark.parametrize("hello", [True, False])
async def test_no_credential_reaches_a_log(options: dict[str, Any], hello: bool) -> None:
    everything = {
        "allow_insecure_auth": True,
        "auth_methods": [
            "PLAIN",
            "LOGIN",
            "CRAM-MD5",
            "XOAUTH2",
            "OAUTHBEARER",
            "SCRAM-SHA-256",
            "EXTERNAL",
            "ANONYMOUS",
        ],
        "on_scram": lambda *_: ANN,
        "hide_enhanced_status_codes": False,
        **options,
    }
    secrets = {
        SECRET,
        TOKEN,
        b64(SECRET),
        XOAUTH2,
        TOKEN[4:-4],
        XOAUTH2[12:-4],
        OAUTHBEARER,
        SCRAM,
        SCRAM[8:-4],
        b64(f"\0ann\0{SECRET}\0x")[:-4],
    }
    leaks = []
    async with serving(**everything) as served:
        for exchange in EXCHANGES:
            with recorded(logging.DEBUG) as records:
                client = await (served.hello() if hello else served.client())
                secrets |= await say_all(client, exchange)
                await client.close()
            text = "\n".join(shown(record) for record in records)
            # In any case: what stands in a keyword's place may be shown in upper case.
            leaks += [(exchange, secret) for secret in secrets if secret.lower() in text.lower()]
    assert leaks == []


async def say_all(client: Client, exchange: list[str]) -> set[str]:
    """Say the lines as a client does that does not listen; return the secrets that were made on the way."""
    made = set()
    answer = None
    for line in exchange:
        if line == "CRAM" and answer is not None and answer.code == 334:
            digest = hmac.new(SECRET.encode(), b64decode(answer.lines[0]), "md5").hexdigest()
            line = b64(f"ann {digest}")  # noqa: PLW2901
            made |= {digest, line}
        answer = await client.command(line)
        if answer.code == 421:
            break
    return made


def shown(record: logging.LogRecord) -> str:
    """Return all that a handler could show of a record."""
    return logging.Formatter().format(record) + repr(record.__dict__)


@pytest.mark.promises(
    "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
)
@pytest.mark.parametrize("forbid", [True, False])
async def test_no_pipelined_credential_reaches_a_log(forbid: bool) -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(allow_insecure_auth=True, forbid_unauth_pipelining=forbid, on_auth=refuses) as served:
            for exchange in EXCHANGES:
                client = await served.hello()
                await client.send("".join(line + "\r\n" for line in [*exchange, "QUIT"]).encode())
                client.writer.write_eof()
                await client.rest()
                await client.close()
    text = "\n".join(map(shown, records)).lower()
    assert [secret for secret in (SECRET, TOKEN, b64(SECRET), XOAUTH2) if secret.lower() in text] == []


@pytest.mark.promises("Logins", "Passwords, digests and proofs are compared in constant time.")
@pytest.mark.parametrize("guess", [SECRET, "wrong", "", "S"])
@pytest.mark.parametrize("method", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
async def test_passwords_are_compared_in_constant_time(
    method: str, guess: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer to "is it that one?" is ``hmac.compare_digest``'s: where that says no, nobody gets in."""
    options = {"on_auth": lambda auth, _: auth.verified or auth.validate_password(SECRET), "on_scram": lambda *_: ANN}
    results: list[bool] = []

    def compared(one: Any, other: Any) -> bool:
        results.append(_compare(one, other))
        return results[-1]

    _compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compared)
    async with serving(auth_methods=[method], allow_insecure_auth=True, **options) as served:
        client = await served.hello()
        code = await log_in(client, method, guess)
        assert code == (235 if guess == SECRET else 535)
        compares = bool(guess) or method not in ("PLAIN", "LOGIN")  # no password is none to compare
        assert bool(results) == compares
        assert (bool(results) and all(results)) == (code == 235)
        results.clear()
        monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
        again = await served.hello()
        assert await log_in(again, method, SECRET) == 535


async def log_in(client: Client, method: str, password: str) -> int:
    """Log in as "ann" and return the code of the last reply."""
    if method == "PLAIN":
        return (await client.command(f"AUTH PLAIN {b64(chr(0) + 'ann' + chr(0) + password)}")).code
    if method == "LOGIN":
        await client.command(f"AUTH LOGIN {b64('ann')}")
        return (await client.command(b64(password))).code
    if method == "CRAM-MD5":
        challenge = b64decode((await client.command("AUTH CRAM-MD5")).lines[0])
        digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
        return (await client.command(b64(f"ann {digest}"))).code
    scram = ScramClient("ann", password)
    asked = await client.command(f"AUTH SCRAM-SHA-256 {scram.first()}")
    await client.command(scram.final(asked.lines[0]))
    return (await client.command("")).code


@pytest.mark.promises(
    "Replies and logs", "Passwords and tokens, and what they could be guessed from, reach no log at any level."
)
def test_no_repr_shows_a_credential() -> None:
    request = AuthRequest("PLAIN", "ann", password=SECRET, access_token=SECRET)
    assert SECRET not in f"{request!r} {request}"


# --- Trust: PROXY

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(family: int, source: str, destination: str, *, command: int = 0x21, more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    addresses = ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", 51234, 25)
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(addresses) + len(more)) + addresses + more


OWN = None
HEADERS = [
    (V1, ("192.0.2.7", 51234)),
    (b"PROXY TCP6 2001:DB8::7 2001:db8:0:0::1 51234 25\r\n", ("2001:db8::7", 51234)),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 51234 25\r\n", ("192.0.2.7", 51234)),
    (b"PROXY UNKNOWN\r\n", OWN),
    (b"PROXY UNKNOWN 2001:db8::7 2001:db8::1 51234 25\r\n", OWN),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535" + b"x" * 48 + b"\r\n", OWN),
    (v2(0x11, "192.0.2.7", "198.51.100.1"), ("192.0.2.7", 51234)),
    (v2(0x21, "2001:db8::7", "2001:db8::1"), ("2001:db8::7", 51234)),
    (v2(0x11, "192.0.2.7", "198.51.100.1", more=b"\x04\0\x03abc"), ("192.0.2.7", 51234)),
    (v2(0x11, "192.0.2.7", "198.51.100.1", command=0x20), OWN),
    (SIGNATURE + b"\x20\x00\x00\x00", OWN),
    (SIGNATURE + b"\x21\x00\x00\x00", OWN),
    (SIGNATURE + b"\x21\x31\x00\xd8" + b"\0" * 216, OWN),
]


@pytest.mark.promises("Proxies", "However a PROXY header is cut into packets, it means the same.")
@pytest.mark.parametrize(("header", "peer"), HEADERS, ids=range(len(HEADERS)))
@on_both_loops
async def test_a_proxy_header_at_every_split(header: bytes, peer: tuple[str, int] | None, parts: Parts) -> None:
    sessions = Sessions()
    async with serving(use_proxy=["127.0.0.1"], on_connect=sessions) as served:
        for cuts in every_way(header):
            client = await served.connect()
            await parts.send(client, header, cuts)
            assert (await client.reply()).code == 220, cuts
            assert await client.say("NOOP") == "250 OK"
            expected = peer or client.writer.get_extra_info("sockname")[:2]
            session = sessions.pop()
            assert (session.remote_address, session.remote_port) == expected
            assert session.client_hostname == f"[{expected[0]}]"
            await client.close()


BAD_HEADERS = [
    b"EHLO client.example\r\n",
    b"\r\nX",
    b"proxy TCP4 192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY TCP5 192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25 1\r\n",
    b"PROXY TCP4  192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2.777 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 51234 25\r\n",
    b"PROXY TCP6 192.0.2.7 198.51.100.1 51234 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 +5 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 \xb2 25\r\n",
    b"PROXY TCP4 192.0.2.7\0 198.51.100.1 51234 25\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 octets
    b"PROXY UNKNOWN" + b"x" * 95,
    b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\n" + b"x" * 80,
    SIGNATURE + b"\x11\x11\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x22\x11\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x21\x11\x00\x0b" + b"\0" * 11,
    SIGNATURE + b"\x21\x21\x00\x0c" + b"\0" * 12,
    SIGNATURE + b"\x21\x11\xff\xff",
    SIGNATURE[:-1] + b"X",
]


@pytest.mark.promises(
    "Proxies", "A PROXY header has limits of length and time, and a malformed one ends the connection."
)
@pytest.mark.parametrize("header", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
@on_both_loops
async def test_a_bad_proxy_header(header: bytes, parts: Parts) -> None:
    called: list[str] = []
    hooks = {name: lambda *_, name=name: called.append(name) for name in ("on_connect", "on_close")}
    async with serving(use_proxy=True, **hooks) as served:
        for cuts in every_way(header)[:2]:
            client = await served.connect()
            await parts.send(client, header, cuts)
            assert await client.rest() == b"* BAD Invalid PROXY header\r\n"
            assert served.server.connections == []
    assert called == []


async def test_a_client_that_sends_no_header_and_leaves_reaches_no_hook() -> None:
    called: list[str] = []
    hooks = {name: lambda *_, name=name: called.append(name) for name in ("on_connect", "on_close", "on_error")}
    async with serving(use_proxy=True, **hooks) as served:
        for octets in (b"", V1[:10], SIGNATURE):
            client = await served.connect()
            if octets:
                await client.send(octets)
            client.writer.write_eof()
            await client.rest()
    assert called == []


@pytest.mark.promises(
    "Proxies", "A second PROXY header is not read, and what follows the first one before the greeting is refused."
)
async def test_a_second_proxy_header_is_not_read() -> None:
    second = V1.replace(b"192.0.2.7", b"203.0.113.9")
    async with serving(use_proxy=True) as served:
        client = await served.connect()
        await client.send(V1)
        assert (await client.reply()).code == 220
        await client.send(second)
        assert await client.hear() == "500 Error: command not recognized"
        assert served.server.connections[0].remote_address == "192.0.2.7"


@pytest.mark.promises(
    "Proxies", "A second PROXY header is not read, and what follows the first one before the greeting is refused."
)
async def test_input_behind_the_proxy_header_talks_too_soon() -> None:
    for behind in (V1.replace(b"192.0.2.7", b"203.0.113.9"), b"EHLO client.example\r\n"):
        async with serving(use_proxy=True, name="mx.example.net") as served:
            client = await served.connect()
            await client.send(V1 + behind)
            assert await client.hear() == "421 mx.example.net You talk too soon"
            await client.eof()


class Handshake:
    """A TLS client whose octets the test sends itself."""

    def __init__(self, context: ssl.SSLContext, name: str = "localhost") -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def hello(self) -> bytes:
        """Return the ClientHello."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    async def finish(self, client: Client) -> None:
        """Do the rest of the handshake."""
        await self._until(self.tls.do_handshake, client)

    async def line(self, client: Client) -> bytes:
        """Read one line under TLS."""
        line = b""
        while not line.endswith(b"\n"):
            line += await self._until(lambda: self.tls.read(1), client)
        return line

    async def say(self, client: Client, octets: bytes) -> bytes:
        """Send under TLS and read one line."""
        self.tls.write(octets)
        await client.send(self.outgoing.read())
        return await self.line(client)

    async def _until(self, step: Any, client: Client) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                if self.outgoing.pending:
                    await client.send(self.outgoing.read())
                octets = await asyncio.wait_for(client.reader.read(65536), TIMEOUT)
                assert octets, "closed in the handshake"
                self.incoming.write(octets)
            else:
                if self.outgoing.pending:
                    await client.send(self.outgoing.read())
                return result


@pytest.mark.parametrize("header", [V1, v2(0x11, "192.0.2.7", "198.51.100.1")], ids=["v1", "v2"])
@on_both_loops
async def test_proxy_header_and_client_hello(header: bytes) -> None:
    async with serving(use_proxy=True, secure=True, name="mx.example.net", **pem()) as served:
        size = len(header)
        hello = len(Handshake(trusting()).hello())
        for cuts in ((), (size,), (size + 1,), (size - 1,), (5, size + 5), (size + hello - 1,), (size, size + 100)):
            client = await served.connect()
            handshake = Handshake(trusting())
            await in_parts(client, header + handshake.hello(), *cuts)
            await handshake.finish(client)
            assert await handshake.line(client) == b"220 mx.example.net ESMTP\r\n", cuts
            assert await handshake.say(client, b"NOOP\r\n") == b"250 OK\r\n"
            session = served.server.connections[-1]
            assert session.secure
            assert "192.0.2.7" in {session.remote_address for session in served.server.connections}


# --- Trust: XCLIENT and XFORWARD

BAD_ATTRIBUTES = [
    "",
    "NAME",
    "NAME=a NAME=b",
    "ADDR=192.0.2.777",
    "ADDR=",
    "ADDR=client.example.org",
    "PORT=65536",
    "PORT=x",
    "PORT=-1",
    "PROTO=H+20P",
    "NAME=a+0D+0Ab",
    "NAME=a+00",
    "NAME=a+2b",
    "NAME=a+",
    "NAME=a=b",
    "HELO=a+20b",
    "UNKNOWN=1",
    "\u017fOURCE=1",
    "=x",
]


@pytest.mark.promises("Commands", "xtext is strict, and no CR, LF or NUL comes out of it.")
@pytest.mark.promises("Proxies", "XCLIENT or XFORWARD that is refused changes nothing.")
@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
@pytest.mark.parametrize("bad", BAD_ATTRIBUTES)
async def test_a_bad_attribute_changes_nothing(verb: str, bad: str) -> None:
    connects: list[str] = []
    async with serving(
        use_xclient=["127.0.0.1"],
        use_xforward=["127.0.0.1"],
        on_auth=lambda *_: True,
        on_connect=lambda session: connects.append(session.remote_address),
    ) as served:
        client = await served.hello()
        session = served.server.connections[0]
        before = (session.remote_address, session.remote_port, session.client_hostname, session.host_name_appears_as)
        good = "DESTADDR=198.51.100.1 LOGIN=bob" if verb == "XCLIENT" else "IDENT=1"
        answers = [await client.command(f"{verb} {bad}"), await client.command(f"{verb} {good} {bad}".strip())]
        assert answers[0].code == 501
        if bad:
            assert answers[1].code == 501
            after = (session.remote_address, session.remote_port, session.client_hostname, session.host_name_appears_as)
            assert after == before
            assert (session.x_client, session.x_forward, session.user) == ({}, {}, None)
            assert connects == ["127.0.0.1"]
            assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
async def test_not_within_a_transaction(verb: str) -> None:
    async with serving(use_xclient=["127.0.0.1"], use_xforward=["127.0.0.1"]) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command(f"{verb} NAME=client.example.org")).code == 503
        assert str(await client.data(b"hello\r\n")) == "250 OK: message queued"


async def test_xclient_login() -> None:
    requests: list[AuthRequest] = []

    def on_auth(auth: AuthRequest, session: Session) -> bool:
        requests.append(auth)
        return auth.username == "bob"

    async with serving(use_xclient=["127.0.0.1"], auth_optional=False, on_auth=on_auth) as served:
        client = await served.client()
        assert (await client.command("XCLIENT LOGIN=bob")).code == 220
        session = served.server.connections[0]
        assert session.user == "bob"
        await client.ehlo()
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        await client.say("RSET")
        assert (await client.command("XCLIENT LOGIN=")).code == 220  # de-authenticates
        assert session.user is None
        await client.ehlo()
        assert (await client.command("MAIL FROM:<a@example.com>")).code == 530
        assert (await client.command("XCLIENT ADDR=192.0.2.7 LOGIN=eve")).code == 550
        await client.eof()
    assert [(auth.method, auth.username, auth.password) for auth in requests] == [
        ("XCLIENT", "bob", ""), ("XCLIENT", "eve", ""),
    ]  # fmt: skip


async def test_xclient_runs_on_connect_again_and_its_reject_is_the_reply() -> None:
    def on_connect(session: Session) -> None:
        if session.remote_address == "192.0.2.7":
            raise Reject(554, "Not you")

    async with serving(use_xclient=["127.0.0.1"], on_connect=on_connect) as served:
        client = await served.hello()
        assert await client.say("XCLIENT ADDR=192.0.2.7") == "554 Not you"


async def test_xclient_under_tls_keeps_tls() -> None:
    async with serving(use_xclient=["127.0.0.1"], on_auth=lambda *_: True) as served:
        client = await served.hello()
        await client.starttls(careless())
        await client.ehlo()
        assert (await client.command("XCLIENT ADDR=192.0.2.7")).code == 220
        assert served.server.connections[0].secure
        offered = await client.ehlo()
        assert "STARTTLS" not in offered
        assert "AUTH" in offered


@pytest.mark.promises(
    "Proxies", "XCLIENT and XFORWARD are announced to listed addresses, and refused with 550 to all others."
)
async def test_trust_follows_the_address_of_the_proxy_header() -> None:
    for trusted, code in ((["127.0.0.1"], 550), (["192.0.2.7"], 220)):
        async with serving(use_proxy=["127.0.0.1"], use_xclient=trusted) as served:
            client = await served.connect()
            await client.send(V1)
            assert (await client.reply()).code == 220
            assert ("XCLIENT" in await client.ehlo()) == (code == 220)
            assert (await client.command("XCLIENT NAME=x.example")).code == code


# --- Exhaustion


async def sent_until_it_stalls(client: Client, octets: bytes) -> int:
    """Send again and again until the kernel takes no more for a while; return how many octets it took."""
    client.writer.transport.set_write_buffer_limits(high=0)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 * 2**20:
            client.writer.write(octets)
            await asyncio.wait_for(client.writer.drain(), 0.3)
            sent += len(octets)
    return sent


@pytest.mark.promises("Memory", "A client that reads no replies is paused, and then the connection ends.")
@on_both_loops
async def test_a_client_that_never_reads_is_paused_and_then_closed() -> None:
    closed = asyncio.Event()
    async with serving(reply_timeout=1.0, max_junk_commands=None, on_close=lambda _: closed.set()) as served:
        client = await served.hello()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        # What the kernel's buffers hold, and no more: the server's memory is bounded.
        assert await sent_until_it_stalls(client, b"HELP\r\n" * 10_000) < 32 * 2**20
        await asyncio.wait_for(closed.wait(), TIMEOUT)
        client.writer.transport.abort()


@pytest.mark.promises("Memory", "A client that sends faster than it is served, or than its message is read, is paused.")
async def test_a_client_that_pipelines_faster_than_it_is_served_is_paused() -> None:
    go = asyncio.Event()

    async def on_mail_from(*_: object) -> None:
        await go.wait()

    async with serving(on_mail_from=on_mail_from) as served:
        client = await served.hello()
        await client.send(b"MAIL FROM:<a@example.com>\r\n")
        assert await sent_until_it_stalls(client, b"RSET\r\n" * 10_000) < 32 * 2**20
        client.writer.transport.abort()
        go.set()


# --- Nothing lost


@pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
async def test_a_message_that_never_ended_reaches_nobody() -> None:
    finished: list[bytes] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        finished.append(await stream.read())

    async with serving(on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        await client.send(b"half\r\n.\r")
        client.writer.write_eof()
        await client.rest()
    assert finished == []
