"""What of a message can be searched: decoded, bounded, and never a reason to refuse it."""

from __future__ import annotations

import logging
from email.message import EmailMessage

import pytest

from messages import kept
from pillarbox.deliver import content
from pillarbox.deliver.content import HEADERS, LINES, PARTS, TEXT, Content, content_of


def made(text: str = "Hello.", **headers: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message.set_content(text)
    return message


def nested(depth: int, innermost: bytes = b"") -> bytes:
    opening = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n"
    return b"".join(opening % (number, number) for number in range(depth)) + innermost


class TestHeaders:
    def test_the_common_ones(self) -> None:
        found = content_of(
            bytes(
                made(
                    Subject="Grüße aus Köln",
                    From="Änne <anne@example.org>",
                    To="b@example.com, c@example.com",
                    Cc="d@example.com",
                    Date="Sat, 07 Mar 2026 09:05:03 +0100",
                    Message_ID="<1@example.org>",
                )
            )
        )
        assert found.subject == "Grüße aus Köln"
        assert found.sender == "Änne <anne@example.org>"
        assert (found.to, found.cc) == ("b@example.com, c@example.com", "d@example.com")
        assert (found.date, found.message_id) == ("Sat, 07 Mar 2026 09:05:03 +0100", "<1@example.org>")
        assert "Subject: Grüße aus Köln\n" in found.headers

    def test_none_of_them(self) -> None:
        assert content_of(b"\r\nHello.\r\n") == Content(text="Hello.\r\n")
        assert content_of(b"") == Content()

    @pytest.mark.parametrize(
        ("value", "decoded"),
        [
            (b"plain", "plain"),
            (b"folded\r\n\tand\r\n  again", "folded and  again"),
            ("Grüße (RFC 6532)".encode(), "Grüße (RFC 6532)"),
            (b"=?iso-8859-1?q?Gr=FC=DFe?= =?utf-8?b?w6TDpA==?= x", "Grüßeää x"),
            ("ä =?utf-8?q?=C3=B6?= ü".encode(), "ä ö ü"),
            (b"=?no-such-charset?q?=C3=B6?=", "ö"),
            (b"=?punycode?q?abc?=", "abc"),
            (b"=?utf-8?b?x?=", "=?utf-8?b?x?="),
            (b"\xff\0\\u0041", "\ufffd\ufffd\\u0041"),
        ],
    )
    def test_values_are_decoded(self, value: bytes, decoded: str) -> None:
        assert content_of(b"Subject: " + value + b"\r\n\r\n").subject == decoded

    def test_the_first_counts(self) -> None:
        found = content_of(b"Subject: one\r\nSUBJECT: two\r\n\r\n")
        assert found.subject == "one"
        assert found.headers == "Subject: one\nSUBJECT: two\n"

    @pytest.mark.parametrize("one", [b"X: " + b"y" * 10_000, b"X: " + b"=?a?q?" * 200, b"X: " + b"=?a?q?x?= " * 100])
    def test_they_are_bounded(self, one: bytes) -> None:
        found = content_of(b"Subject: x\r\n" + (one + b"\r\n") * 40 + b"\r\n")
        assert found.subject == "x"
        assert len(found.headers) < HEADERS + 1000


class TestText:
    def test_plain_text_before_html(self) -> None:
        message = made("Grüße")
        message.add_alternative("<p>Hello</p>", subtype="html")
        assert content_of(bytes(message)).text == "Grüße\n"

    def test_html_without_its_tags(self) -> None:
        html = "<style>p { }</style><p>Caf&eacute;<br>a<SCRIPT>foo()</SCRIPT></p> 1 < 2 <b"
        message = EmailMessage()
        message.set_content(html, subtype="html")
        assert content_of(bytes(message)).text.split() == ["Café", "a", "1", "<", "2", "<b"]

    def test_html_with_a_character_of_no_number(self) -> None:
        found = content_of(b"Subject: x\r\nContent-Type: text/html\r\n\r\n<p>Hello&#" + b"9" * 5000 + b";</p>")
        assert found.subject == "x"
        assert found.text.startswith(" Hello&#999")

    def test_of_a_forwarded_message(self) -> None:
        message = made("See below.")
        message.add_attachment(made("Inner text."))
        assert content_of(bytes(message)).text.split("\n") == ["See below.", "", "Inner text.", ""]

    def test_not_of_attachments(self) -> None:
        message = made("Look.")
        message.add_attachment("secret", filename="a.txt")
        message.add_attachment(bytes(100), maintype="application", subtype="pdf", filename="a.pdf")
        assert content_of(bytes(message)).text == "Look.\n"

    @pytest.mark.parametrize(
        ("head", "body", "text"),
        [
            ("Content-Type: text/plain; charset=iso-8859-1", b"\xe4", "ä"),
            ("Content-Type: text/plain; charset=utf-16", b"\xff\xfea\0", "a"),
            ("Content-Type: text/plain; charset=nonsense", b"\xc3\xa4", "ä"),
            ("Content-Type: text/plain; charset=idna", b"\xc3\xa4", "ä"),
            ('Content-Type: text/plain; charset="a\0b"', b"x\0y", "x\ufffdy"),
            ("Content-Type: text/plain; charset*=utf-8''latin1", b"x", "x"),
            ("Content-Transfer-Encoding: base64", b"aGVs\r\nbG8", "hello"),
            ("Content-Transfer-Encoding: base64", b"\xff!!", ""),
            ("Content-Transfer-Encoding: quoted-printable", b"a=C3=A4=\r\nb=ZZ", "aäb=ZZ"),
            ("Content-Transfer-Encoding: x-uuencode", b"nonsense", "nonsense"),
            ("Content-Type: ;;;", b"x", "x"),
            ("Content-Type: multipart/mixed", b"x", ""),
        ],
    )
    def test_encodings(self, head: str, body: bytes, text: str) -> None:
        assert content_of(head.encode() + b"\r\n\r\n" + body).text == text

    def test_it_is_bounded(self) -> None:
        assert len(content_of(b"\r\n" + b"x" * 500_000).text) == TEXT
        parts = b"--b\r\n\r\n" + b"y" * 100_000 + b"\r\n"
        found = content_of(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + parts * 5)
        assert len(found.text.replace("\n", "")) == TEXT

    def test_what_is_cut_off_in_the_middle(self) -> None:
        message = made("Look.")
        message.add_attachment(bytes(600_000), maintype="application", subtype="pdf", filename="a.pdf")
        assert content_of(bytes(message)).text == "Look.\n"


class TestHostile:
    """Each of these took seconds, or all of the stack, where it was not bounded; here the bounds are looked at."""

    @pytest.mark.parametrize(
        "message",
        [
            nested(20_000),
            nested(PARTS - 2, b"\r\n" * 500_000),
            b"Content-Type: message/rfc822\r\n\r\n" * 20_000,
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 50_000,
        ],
        ids=["nested", "lines", "rfc822", "parts"],
    )
    def test_parts_and_lines_are_bounded(self, message: bytes) -> None:
        parts = content._parsed(message[: content.HEAD])
        assert len(parts) <= PARTS
        assert content._first_lines(message).count(b"\n") <= LINES

    @pytest.mark.parametrize(
        "message",
        [
            b"Content-Type: text/plain; " + b'a";' * 100_000 + b"\r\n\r\nx",
            b"Content-Type: text/html\r\n\r\n" + b"<" * 300_000,
            b"Content-Type: text/html\r\n\r\n" + b"<script" * 50_000,
            b"Content-Type: text/html\r\n\r\n" + b"&#x" * 100_000,
            b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a" * 500_000,
            b"Subject: " + b"=?a?q?" * 80_000 + b"\r\n\r\nx",
            b"x" * 500_000,
            b"\xff\0" * 200_000,
            b":\r\n \r\n: x\r\n\0: y\r\n\r\n",
        ],
    )
    def test_it_is_read(self, message: bytes, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "pillarbox")
        found = content_of(message)
        assert len(found.text) <= TEXT
        assert not caplog.records

    def test_another_name_of_a_codec_that_is_no_charset(self) -> None:
        """Decoded as what it says it is this takes 10 seconds and more."""
        text = "a-" + "b9" * 100_000
        assert content_of(b"Content-Type: text/plain; charset=-PUNYCODE-\r\n\r\n" + text.encode()).text == text

    def test_what_it_calls_charsets_is_not_kept_for_ever(self) -> None:
        """Python's codecs remember each name that they were asked for, whether there is one or not."""

        def named(start: int) -> bytes:
            return b"".join(b"X: =?no-such-charset-%d?q?x?=\r\n" % number for number in range(start, start + 1500))

        content_of(named(0))
        assert kept(lambda: content_of(named(1500))) < 50_000  # else 300,000

    def test_what_the_parser_cannot_read_is_a_line_in_the_log(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise RecursionError

        caplog.set_level(logging.INFO, "pillarbox")
        monkeypatch.setattr("email.parser.BytesParser.parsebytes", fails)
        assert content_of(b"Subject: x\r\n\r\n") == Content()
        assert "cannot be read" in caplog.text
