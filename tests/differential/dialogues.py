"""The scripted dialogues: every verb, order, parameter, form of address, line end and end of data."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from differential.forms import (
    ADDRESSES,
    DSN_PARAMETERS,
    FALSE_ENDS,
    FORMS,
    MAIL_PARAMETERS,
    RCPT_DSN_PARAMETERS,
    RCPT_FORMS,
    RCPT_PARAMETERS,
    SMUGGLED,
)
from differential.play import TLS, Dialogue, Step, answer, content, group, raw, step

EHLO = "EHLO client.example.org"
HELO = "HELO client.example.org"
MAIL = "MAIL FROM:<ann@example.org>"
RCPT = "RCPT TO:<bob@example.com>"
BEGUN = (EHLO, MAIL, RCPT)
QUIT = "QUIT"

TOKEN = base64.b64encode(b"\0alice\0secret").decode()
WRONG = base64.b64encode(b"\0alice\0wrong").decode()


def dialogue(name: str, *said: str | Step, needs: str = "") -> Dialogue:
    """Return a dialogue; it ends with QUIT, so that a server that has closed is found out."""
    return Dialogue(name, tuple(map(step, (*said, QUIT))), frozenset(needs.split()))


def _hellos() -> Iterator[Dialogue]:
    for verb in ("EHLO", "HELO"):
        for name, argument in {
            "a domain": " client.example.org",
            "nothing": "",
            "a space": " ",
            "two words": " client.example.org more",
            "an IPv4 literal": " [192.0.2.1]",
            "an IPv6 literal": " [IPv6:2001:db8::1]",
            "a literal that is none": " [999.1.1.1]",
            "a bare address": " 192.0.2.1",
            "an underscore": " my_pc",
            "a single label": " localhost",
            "a leading hyphen": " -x.example.org",
            "a trailing dot": " client.example.org.",
            "UTF-8": " grüße.example",
            "two spaces before the name": "  client.example.org",
            "a space behind the name": " client.example.org ",
            "a tab behind the verb": "\tclient.example.org",
            "a control character": " client\x01.example.org",
        }.items():
            yield dialogue(f"{verb} with {name}", verb + argument, MAIL)
    yield dialogue("EHLO with 255 octets", "EHLO " + ("a" * 50 + ".") * 5, MAIL)
    yield dialogue("EHLO twice", EHLO, EHLO, MAIL)
    yield dialogue("HELO behind EHLO", EHLO, HELO, MAIL)
    yield dialogue("EHLO in a transaction forgets it", *BEGUN, EHLO, RCPT, "DATA")
    yield dialogue("HELO in a transaction forgets it", *BEGUN, HELO, RCPT, "DATA")
    yield dialogue("LHLO to an SMTP server", "LHLO client.example.org")
    yield dialogue("ehlo in small letters", "ehlo client.example.org", MAIL)
    yield dialogue("EhLo in mixed letters", "EhLo client.example.org", MAIL)
    yield dialogue("a refused EHLO leaves the session", EHLO, "EHLO", MAIL)
    yield dialogue("parameters after HELO", HELO, MAIL + " SIZE=100", MAIL)
    yield dialogue("a message after HELO", HELO, MAIL, RCPT, "DATA", content())


def _order() -> Iterator[Dialogue]:
    for said in (MAIL, RCPT, "DATA", "RSET", "NOOP", "VRFY bob@example.com", "HELP", "QUIT", "EXPN list", "AUTH PLAIN"):
        yield dialogue(f"{said} before EHLO", said)
    yield dialogue("RCPT before MAIL", EHLO, RCPT)
    yield dialogue("DATA before MAIL", EHLO, "DATA")
    yield dialogue("DATA before RCPT", EHLO, MAIL, "DATA")
    yield dialogue("MAIL twice", EHLO, MAIL, MAIL, RCPT)
    yield dialogue("MAIL behind RCPT", *BEGUN, MAIL, "DATA", content())
    yield dialogue("RSET ends the transaction", *BEGUN, "RSET", RCPT, MAIL, "DATA")
    yield dialogue("RSET outside a transaction", EHLO, "RSET", "RSET", MAIL)
    yield dialogue("NOOP in a transaction", *BEGUN, "NOOP", "DATA", content())
    yield dialogue("VRFY in a transaction", *BEGUN, "VRFY bob@example.com", "DATA", content())
    yield dialogue("HELP in a transaction", *BEGUN, "HELP", "DATA", content())
    yield dialogue("two messages", *BEGUN, "DATA", content(), MAIL, RCPT, "DATA", content())
    yield dialogue("MAIL is needed again", *BEGUN, "DATA", content(), RCPT, "DATA")
    yield dialogue("a refused MAIL begins nothing", EHLO, "MAIL FROM:<a@>", RCPT)
    yield dialogue("a refused RCPT adds nothing", EHLO, MAIL, "RCPT TO:<a@>", "DATA")
    yield dialogue("a refused RCPT takes nothing", *BEGUN, "RCPT TO:<a@>", "DATA", content())
    yield dialogue("three recipients", *BEGUN, "RCPT TO:<c@example.com>", "RCPT TO:<d@example.com>", "DATA", content())
    yield dialogue("a recipient twice", *BEGUN, RCPT, "DATA", content())
    yield dialogue("a recipient twice, in another case", *BEGUN, "RCPT TO:<BOB@example.com>", "DATA", content())
    yield dialogue(
        "a recipient twice, the domain in another case", *BEGUN, "RCPT TO:<bob@EXAMPLE.com>", "DATA", content()
    )


def _verbs() -> Iterator[Dialogue]:
    for line in (
        "FOO",
        "FOO bar",
        "MAILFROM:<ann@example.org>",
        "MAIL",
        "MAIL ",
        "RCPT",
        "RSET x",
        "NOOP x",
        "NOOP one two",
        "QUIT x",
        "HELP",
        "HELP MAIL",
        "HELP nonsense",
        "VRFY",
        "VRFY bob",
        "VRFY <bob@example.com>",
        "VRFY bob@example.com",
        "VRFY Bob Smith",
        "EXPN",
        "EXPN list",
        "TURN",
        "SEND FROM:<ann@example.org>",
        "SOML FROM:<ann@example.org>",
        "SAML FROM:<ann@example.org>",
        "ETRN example.com",
        "XCLIENT NAME=x",
        "XFORWARD NAME=x",
        "STARTTLS x",
        "250 OK",
        ".",
        "",
        " ",
        " NOOP",
        "\tNOOP",
        "NOOP ",
        "NOOP\t",
        "RSET ",
        "RSET  ",
        "noop",
        "rset",
        "n\u0131op",
        "ſtarttls",
        "NOOP \x00",
        "NOOP \x07",
        "NOOP grüße",
        "VRFY grüße@example.com",
    ):
        yield dialogue(f"the line {line!r}", EHLO, line, "NOOP")
    yield dialogue("an octet that is not UTF-8", EHLO, raw(b"NOOP \xff\r\n"), "NOOP")
    yield dialogue("a verb that is not UTF-8", EHLO, raw(b"\xff\xfe\r\n"), "NOOP")
    yield dialogue("DATA with a space behind it", *BEGUN, "DATA ", content())
    yield dialogue("DATA with a word behind it", *BEGUN, "DATA x", content(), "NOOP")
    yield dialogue("data in small letters", EHLO, MAIL.lower(), RCPT.lower(), "data", content(), "quit")
    yield dialogue("an HTTP request", raw(b"GET / HTTP/1.1\r\n"))
    yield dialogue("an HTTP request behind EHLO", EHLO, raw(b"POST / HTTP/1.1\r\n"))
    yield dialogue("QUIT in small letters", "quit")
    yield dialogue("QUIT in a transaction", *BEGUN)
    yield dialogue("VRFY SMTPUTF8", EHLO, "VRFY grüße@example.com SMTPUTF8", needs="SMTPUTF8")


def _line_ends() -> Iterator[Dialogue]:
    yield dialogue("a bare LF", EHLO, raw(b"NOOP\n"), "NOOP")
    yield dialogue("a bare LF behind EHLO", raw(b"EHLO client.example.org\n"), MAIL)
    yield dialogue("a bare LF behind MAIL", EHLO, raw(MAIL.encode() + b"\n"), RCPT)
    yield dialogue("CR CR LF", EHLO, raw(b"NOOP\r\r\n"), "NOOP")
    yield dialogue("CR CR LF behind MAIL", EHLO, raw(MAIL.encode() + b"\r\r\n"), RCPT)
    yield dialogue("a bare CR within a line", EHLO, raw(b"NOOP\rRSET\r\n"), "NOOP")
    yield dialogue("a bare CR within MAIL", EHLO, raw(b"MAIL FROM:<ann@example.org>\rRCPT TO:<a@b.c>\r\n"), RCPT)
    yield dialogue("LF CR", EHLO, Step(b"NOOP\n\rNOOP\r\n", 2), "NOOP")
    for length in (500, 512, 600, 1000, 2000, 4000, 5000, 20_000):
        padding = "x" * (length - len("NOOP \r\n"))
        yield dialogue(f"a NOOP of {length} octets", EHLO, "NOOP " + padding, "NOOP")
    yield dialogue("a MAIL of 512 octets", EHLO, MAIL + " " * (510 - len(MAIL)), RCPT)
    yield dialogue("an unknown verb of 600 octets", EHLO, "X" * 598, "NOOP")


def _addresses() -> Iterator[Dialogue]:
    for address, what in ADDRESSES.items():
        sent = ("DATA", content())
        yield dialogue(f"a sender: {what}", EHLO, f"MAIL FROM:<{address}>", RCPT, *sent)
        yield dialogue(f"a recipient: {what}", EHLO, MAIL, f"RCPT TO:<{address}>", *sent)
    for form in FORMS:
        yield dialogue(f"the form {form!r}", EHLO, form, RCPT)
    for form in RCPT_FORMS:
        yield dialogue(f"the form {form!r}", EHLO, MAIL, form, "DATA", content())


def _parameters() -> Iterator[Dialogue]:
    for words in MAIL_PARAMETERS:
        yield dialogue(f"MAIL with {words}", EHLO, f"{MAIL} {words}", RCPT)
    for words in DSN_PARAMETERS:
        yield dialogue(f"MAIL with {words}", EHLO, f"{MAIL} {words}", RCPT, needs="DSN")
    for words in RCPT_PARAMETERS:
        yield dialogue(f"RCPT with {words}", EHLO, MAIL, f"{RCPT} {words}", "DATA", content())
    for words in RCPT_DSN_PARAMETERS:
        yield dialogue(f"RCPT with {words}", EHLO, MAIL, f"{RCPT} {words}", "DATA", content(), needs="DSN")
    yield dialogue("MAIL behind one that was too large", EHLO, MAIL + " SIZE=1000001", MAIL, RCPT)
    yield dialogue("RCPT behind a MAIL that was too large", EHLO, MAIL + " SIZE=1000001", RCPT, MAIL)


def _utf8() -> Iterator[Dialogue]:
    for name, mail, rcpt in (
        ("a sender in UTF-8", "MAIL FROM:<grüße@example.org> SMTPUTF8", RCPT),
        ("a domain in UTF-8", "MAIL FROM:<ann@grüße.example> SMTPUTF8", RCPT),
        ("a recipient in UTF-8", MAIL + " SMTPUTF8", "RCPT TO:<grüße@example.com>"),
        ("both in UTF-8", "MAIL FROM:<grüße@grüße.example> SMTPUTF8", "RCPT TO:<grüße@grüße.example>"),
        ("quoted UTF-8", 'MAIL FROM:<"grü ße"@example.org> SMTPUTF8', RCPT),
        ("SMTPUTF8 with a value", MAIL + " SMTPUTF8=1", RCPT),
        ("SMTPUTF8 in small letters", "MAIL FROM:<grüße@example.org> smtputf8", RCPT),
        ("SMTPUTF8 twice", MAIL + " SMTPUTF8 SMTPUTF8", RCPT),
        ("SMTPUTF8 and BODY", "MAIL FROM:<grüße@example.org> BODY=8BITMIME SMTPUTF8", RCPT),
        ("a recipient in UTF-8 without SMTPUTF8", MAIL, "RCPT TO:<grüße@example.com>"),
    ):
        yield dialogue(name, EHLO, mail, rcpt, "DATA", content(), needs="SMTPUTF8")
    yield dialogue(
        "an address that is Latin-1", EHLO, raw(b"MAIL FROM:<gr\xfc\xdfe@example.org> SMTPUTF8\r\n"), needs="SMTPUTF8"
    )
    yield dialogue("a body in UTF-8", EHLO, MAIL + " BODY=8BITMIME", RCPT, "DATA", content("grüße\r\n.\r\n".encode()))
    yield dialogue("a body in UTF-8 without 8BITMIME", *BEGUN, "DATA", content("grüße\r\n.\r\n".encode()))


def _content() -> Iterator[Dialogue]:
    for end in FALSE_ENDS:
        yield dialogue(f"{end!r} is no end of data", *BEGUN, "DATA", content(b"one" + end + SMUGGLED))
        yield dialogue(f"{end!r} within a message", *BEGUN, "DATA", content(b"one" + end + b"two\r\n.\r\n"))
    for name, octets in {
        "an empty message": b".\r\n",
        "an empty line": b"\r\n.\r\n",
        "a first line of two dots": b"..\r\n.\r\n",
        "a first line that begins with a dot": b".one\r\n.\r\n",
        "dots that begin lines": b"one\r\n..two\r\n...three\r\n.four\r\n.\r\n",
        "a dot behind a bare LF": b"one\n..two\n.three\r\n.\r\n",
        "a dot behind a bare CR": b"one\r..two\r\n.\r\n",
        "bare LFs": b"one\ntwo\nthree\r\n.\r\n",
        "bare CRs": b"one\rtwo\r\n.\r\n",
        "a CR before a CRLF": b"one\r\r\n.\r\n",
        "a NUL": b"one\0two\r\n.\r\n",
        "octets above 127": bytes(range(128, 256)) + b"\r\n.\r\n",
        "control characters": b"one\x01\x07\x1b\r\n.\r\n",
        "a line of 998 octets": b"x" * 998 + b"\r\n.\r\n",
        "a line of 1,500 octets": b"x" * 1500 + b"\r\n.\r\n",
        "a line of 5,000 octets": b"x" * 5000 + b"\r\n.\r\n",
        "a line of 100,000 octets": b"x" * 100_000 + b"\r\n.\r\n",
        "a message over the limit": (b"x" * 70 + b"\r\n") * 15_000 + b".\r\n",
        "a command behind the end": b"one\r\n.\r\nNOOP\r\n",
        "a transaction behind the end": b"one\r\n.\r\n" + f"{MAIL}\r\n{RCPT}\r\nRSET\r\n".encode(),
        "two ends": b"one\r\n.\r\n.\r\n",
        "Received lines": b"Received: from x\r\n" * 30 + b"\r\n.\r\n",
    }.items():
        yield dialogue(name, *BEGUN, "DATA", content(octets), MAIL)


def _chunk(octets: bytes, last: bool = False, command: str = "BDAT") -> Step:
    return raw(f"{command} {len(octets)}{' LAST' if last else ''}\r\n".encode() + octets)


def _chunks() -> Iterator[Dialogue]:
    hello = b"Hello.\r\n"
    for name, *said in (
        ("one chunk", *BEGUN, _chunk(hello, True)),
        ("two chunks", *BEGUN, _chunk(hello), _chunk(hello, True)),
        ("an empty last chunk", *BEGUN, _chunk(hello), _chunk(b"", True)),
        ("an empty message in chunks", *BEGUN, _chunk(b"", True)),
        ("an empty chunk", *BEGUN, _chunk(b""), _chunk(hello, True)),
        ("bdat in small letters", *BEGUN, _chunk(hello, True, "bdat")),
        ("last in small letters", *BEGUN, raw(b"BDAT 8 last\r\n" + hello)),
        ("a dot in a chunk", *BEGUN, _chunk(b"a\r\n.\r\nb\r\n", True)),
        ("commands in a chunk", *BEGUN, _chunk(b"RSET\r\nQUIT\r\n", True)),
        ("a chunk without a line end", *BEGUN, _chunk(b"abc", True)),
        ("a CRLF cut by chunks", *BEGUN, _chunk(b"abc\r"), _chunk(b"\ndef\r\n", True)),
        ("a chunk before MAIL", EHLO, _chunk(hello, True), MAIL),
        ("a chunk before RCPT", EHLO, MAIL, _chunk(hello, True), RCPT),
        ("a chunk before RCPT, then MAIL", EHLO, MAIL, _chunk(hello, True), MAIL),
        ("a chunk before EHLO", _chunk(hello, True), EHLO),
        ("a chunk behind a refused RCPT", EHLO, MAIL, "RCPT TO:<a@>", _chunk(hello, True)),
        ("DATA behind a chunk", *BEGUN, _chunk(hello), "DATA"),
        ("RCPT behind a chunk", *BEGUN, _chunk(hello), "RCPT TO:<c@example.com>"),
        ("MAIL behind a chunk", *BEGUN, _chunk(hello), MAIL),
        ("NOOP between chunks", *BEGUN, _chunk(hello), "NOOP", _chunk(hello, True)),
        ("RSET between chunks", *BEGUN, _chunk(hello), "RSET", _chunk(hello, True), MAIL),
        ("EHLO between chunks", *BEGUN, _chunk(hello), EHLO, _chunk(hello, True), MAIL),
        ("a chunk behind the last", *BEGUN, _chunk(hello, True), _chunk(hello, True), MAIL),
        ("two messages in chunks", *BEGUN, _chunk(hello, True), MAIL, RCPT, _chunk(hello, True)),
        ("chunks that are pipelined", *BEGUN, Step(b"BDAT 8\r\n" + hello + b"BDAT 8 LAST\r\n" + hello, 2)),
        ("a transaction that is pipelined", EHLO, Step(f"{MAIL}\r\n{RCPT}\r\nBDAT 3 LAST\r\n".encode() + b"a\r\n", 3)),
        ("a chunk over the limit", *BEGUN, _chunk(b"x" * 1_100_000, True), MAIL),
        ("a chunk with a NUL", *BEGUN, _chunk(b"a\0b\r\n", True)),
        ("BINARYMIME that is not offered", EHLO, MAIL + " BODY=BINARYMIME", RCPT),
        ("BDAT without a size", *BEGUN, raw(b"BDAT\r\n")),
        ("BDAT with a size that is no number", *BEGUN, raw(b"BDAT x\r\n")),
        ("BDAT with a sign", *BEGUN, raw(b"BDAT +3\r\n")),
        ("BDAT with a negative size", *BEGUN, raw(b"BDAT -1\r\n")),
        ("BDAT with a hexadecimal size", *BEGUN, raw(b"BDAT 0x1\r\n")),
        ("BDAT with a huge size", *BEGUN, raw(b"BDAT 99999999999999999999999\r\n")),
        ("BDAT with another word", *BEGUN, raw(b"BDAT 3 FIRST\r\n")),
        ("BDAT with two words", *BEGUN, raw(b"BDAT 3 LAST LAST\r\n")),
        ("BDAT with two spaces", *BEGUN, raw(b"BDAT  0 LAST\r\n")),
        ("BDAT LAST without a size", *BEGUN, raw(b"BDAT LAST\r\n")),
    ):
        yield dialogue(name, *said, needs="CHUNKING")


def _pipelining() -> Iterator[Dialogue]:
    yield dialogue("a transaction in one group", EHLO, group(MAIL, RCPT, "DATA"), content())
    yield dialogue("RSET in a group", EHLO, group("RSET", MAIL, RCPT, "DATA"), content())
    yield dialogue("a refused RCPT in a group", EHLO, group(MAIL, "RCPT TO:<a@>", RCPT, "DATA"), content())
    yield dialogue("all RCPTs refused in a group", EHLO, group(MAIL, "RCPT TO:<a@>", "DATA"), "NOOP")
    yield dialogue("three recipients in a group", EHLO, group(MAIL, RCPT, RCPT, RCPT), "DATA", content())
    yield dialogue("a group before EHLO", group(MAIL, RCPT, RCPT), EHLO)
    yield dialogue("two NOOPs in a group", EHLO, group("NOOP", "NOOP"), "NOOP")
    yield dialogue("QUIT at a group's end", EHLO, group(MAIL, RCPT, "QUIT"))
    yield dialogue("commands behind QUIT", EHLO, Step(b"QUIT\r\nNOOP\r\n"))
    yield dialogue("a command behind EHLO", Step(f"{EHLO}\r\n{MAIL}\r\n".encode(), 2))
    yield dialogue("a command behind HELO", Step(f"{HELO}\r\n{MAIL}\r\n".encode(), 2))
    yield dialogue("a message behind DATA", *BEGUN, Step(b"DATA\r\none\r\n.\r\n", 2), "NOOP")
    yield dialogue("a message behind a refused DATA", EHLO, MAIL, raw(b"DATA\r\none\r\n.\r\n"), "NOOP")
    yield dialogue("a command behind STARTTLS", EHLO, raw(b"STARTTLS\r\nNOOP\r\n"), needs="STARTTLS")
    yield dialogue("half a command behind STARTTLS", EHLO, raw(b"STARTTLS\r\nNO"), needs="STARTTLS")
    yield dialogue("VRFY within a group", EHLO, group("VRFY bob@example.com", MAIL, RCPT), "DATA", content())
    yield dialogue("a group of a hundred", EHLO, group(MAIL, *[RCPT] * 98, "RSET"), MAIL)


def _tls() -> Iterator[Dialogue]:
    for name, *said in (
        ("STARTTLS before EHLO", "STARTTLS", TLS, EHLO, MAIL),
        ("a message under TLS", EHLO, "STARTTLS", TLS, *BEGUN, "DATA", content()),
        ("MAIL under TLS without EHLO", EHLO, "STARTTLS", TLS, MAIL, EHLO, MAIL),
        ("STARTTLS under TLS", EHLO, "STARTTLS", TLS, EHLO, "STARTTLS"),
        ("STARTTLS in a transaction", *BEGUN, "STARTTLS", TLS, RCPT, EHLO, RCPT, MAIL),
        ("starttls in small letters", EHLO, "starttls", TLS, EHLO),
        ("STARTTLS with a space behind it", EHLO, "STARTTLS ", TLS, EHLO),
        ("STARTTLS with a word behind it", EHLO, "STARTTLS now", "NOOP"),
        ("REQUIRETLS under TLS", EHLO, "STARTTLS", TLS, EHLO, MAIL + " REQUIRETLS"),
    ):
        yield dialogue(name, *said, needs="STARTTLS")


def _auth() -> Iterator[Dialogue]:
    for name, *said in (
        ("AUTH PLAIN", EHLO, f"AUTH PLAIN {TOKEN}", MAIL),
        ("auth plain in small letters", EHLO, f"auth plain {TOKEN}", MAIL),
        ("AUTH PLAIN with a wrong password", EHLO, f"AUTH PLAIN {WRONG}", MAIL),
        ("AUTH PLAIN in two steps", EHLO, "AUTH PLAIN", answer(TOKEN), MAIL),
        ("AUTH PLAIN with a wrong password in two steps", EHLO, "AUTH PLAIN", answer(WRONG), MAIL),
        ("AUTH that is cancelled", EHLO, "AUTH PLAIN", answer("*"), MAIL),
        ("AUTH PLAIN with an empty answer", EHLO, "AUTH PLAIN", answer(""), MAIL),
        ("AUTH PLAIN with = for nothing", EHLO, "AUTH PLAIN =", MAIL),
        ("AUTH PLAIN with what is no base64", EHLO, "AUTH PLAIN !!!", MAIL),
        ("AUTH PLAIN with base64 cut short", EHLO, "AUTH PLAIN AGFsaWNl\\", MAIL),
        ("AUTH PLAIN without NULs", EHLO, "AUTH PLAIN YWxpY2U=", MAIL),
        ("AUTH PLAIN with a third word", EHLO, f"AUTH PLAIN {TOKEN} x", MAIL),
        ("AUTH of an unknown mechanism", EHLO, "AUTH FOO", MAIL),
        ("AUTH without a mechanism", EHLO, "AUTH", MAIL),
        ("AUTH twice", EHLO, f"AUTH PLAIN {TOKEN}", f"AUTH PLAIN {TOKEN}", MAIL),
        ("AUTH in a transaction", EHLO, MAIL, f"AUTH PLAIN {TOKEN}", RCPT),
        ("AUTH behind a failed one", EHLO, f"AUTH PLAIN {WRONG}", f"AUTH PLAIN {TOKEN}", MAIL),
        ("AUTH after HELO", HELO, f"AUTH PLAIN {TOKEN}", MAIL),
        ("AUTH LOGIN", EHLO, "AUTH LOGIN", answer("YWxpY2U="), answer("c2VjcmV0"), MAIL),
        ("AUTH LOGIN with the user name", EHLO, "AUTH LOGIN YWxpY2U=", answer("c2VjcmV0"), MAIL),
        ("AUTH LOGIN with a wrong password", EHLO, "AUTH LOGIN", answer("YWxpY2U="), answer("eA=="), MAIL),
        ("AUTH LOGIN that is cancelled", EHLO, "AUTH LOGIN", answer("YWxpY2U="), answer("*"), MAIL),
        ("the parameter AUTH", EHLO, MAIL + " AUTH=<>", RCPT),
        ("the parameter AUTH with a mailbox", EHLO, MAIL + " AUTH=ann+40example.org", RCPT),
        ("the parameter AUTH that is no xtext", EHLO, MAIL + " AUTH=a+zz", RCPT),
        ("a command behind AUTH", EHLO, Step(f"AUTH PLAIN {TOKEN}\r\nNOOP\r\n".encode(), 2)),
    ):
        yield dialogue(name, *said, needs="AUTH")


def all_of_them() -> list[Dialogue]:
    """Return the whole table; each name stands once."""
    makers = (
        _hellos, _order, _verbs, _line_ends, _addresses, _parameters, _utf8, _content, _chunks, _pipelining, _tls,
        _auth,
    )  # fmt: skip
    return [one for make in makers for one in make()]


DIALOGUES = all_of_them()
