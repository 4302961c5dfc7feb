"""What a webhook finds in a message: fields, texts and attachments, whatever the message does."""

from __future__ import annotations

import base64
import time
from email.message import EmailMessage
from email.policy import SMTP
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messages import kept, message
from pillarbox.deliver.webhook import mime
from pillarbox.deliver.webhook.event import Event, EventMessage, event_for
from pillarbox.deliver.webhook.fields import ADDRESSES, addresses, date, decoded
from pillarbox.deliver.webhook.mime import DEPTH, FIELDS, HEADER_SIZE, PARAMETERS_SIZE, PARTS, Content, content_of

LIMIT = 256 * 1024


class Held:
    """A message in memory."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.size = len(octets)

    def read(self, offset: int, length: int, /) -> bytes:
        assert 0 <= offset <= self.size
        return self.octets[offset : offset + length]


def found(octets: bytes, limit: int = LIMIT) -> Content:
    return content_of(Held(octets), limit)


def event(octets: bytes) -> Event:
    raw = EventMessage(size=len(octets), sha256="", path=None, raw=None)
    made = event_for(message(octets), found(octets), raw)
    made.model_dump_json()  # it can be written
    return made


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


MIXED = crlf("""\
Content-Type: multipart/mixed; boundary="o u t"

Preamble.
--o u t
Content-Type: multipart/alternative; boundary=in

--in
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Gr=FC=DFe=20=
und mehr
--in
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: base64

PGI+w6Q8L2I+
--in--
--o u t
Content-Type: image/png; name="a.png"
Content-Disposition: inline; filename*=utf-8''%C3%A4.png
Content-ID: <logo@example.org>
Content-Transfer-Encoding: BASE64

iVBORw0KGgo=

--o u t  \t
Content-Type: message/rfc822

Content-Type: multipart/mixed; boundary=x

--x

Not looked into.
--x--
--o u t
Content-Disposition: attachment; filename="=?utf-8?q?=C3=B6.txt?="

Attached text.
--o u t--
Epilogue.
--o u t
Not a part.
""")


class TestParts:
    def check(self, content: Content, octets: bytes) -> None:
        assert (content.text, content.html) == ("Grüße und mehr", "<b>ä</b>")
        image, mail, text = content.attachments
        assert (image.filename, image.content_type, image.disposition) == ("ä.png", "image/png", "inline")
        assert (image.content_id, image.encoding, image.charset) == ("logo@example.org", "base64", None)
        assert octets[image.offset : image.offset + image.size] == b"iVBORw0KGgo=\r\n"
        assert mail.content_type == "message/rfc822"
        assert octets[mail.offset : mail.offset + mail.size].endswith(b"Not looked into.\r\n--x--")
        assert (text.filename, text.content_type, text.disposition) == ("ö.txt", "text/plain", "attachment")
        assert octets[text.offset : text.offset + text.size] == b"Attached text."
        assert not content.truncated

    def test_all_kinds(self) -> None:
        self.check(found(MIXED), MIXED)

    @pytest.mark.parametrize("block", [513, 514, 600, 700, 1000])
    def test_wherever_the_reads_end(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mime, "_BLOCK", block)
        for padding in range(0, 600, 7):
            octets = MIXED.replace(b"Preamble.", b"x" * padding)
            self.check(found(octets), octets)

    def test_with_bare_line_feeds(self) -> None:
        octets = MIXED.replace(b"\r\n", b"\n")
        content = found(octets)
        assert (content.text, content.html) == ("Grüße und mehr", "<b>ä</b>")
        assert [part.content_type for part in content.attachments] == ["image/png", "message/rfc822", "text/plain"]

    def test_no_mime(self) -> None:
        content = found(b"Subject: x\r\n\r\nHello.\r\n--b\r\n")
        assert (content.text, content.attachments) == ("Hello.\n--b\n", [])

    @pytest.mark.parametrize("octets", [b"", b"\r\n", b"Subject: x\r\n", b"Subject: x", b"Subject: x\r\n\r\n"])
    def test_without_a_body(self, octets: bytes) -> None:
        content = found(octets)
        assert (content.text, content.attachments, content.truncated) == ("", [], set())

    def test_one_part_that_is_no_text(self) -> None:
        octets = b"Content-Type: application/pdf; name=x.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n"
        [part] = found(octets).attachments
        assert (part.filename, octets[part.offset : part.offset + part.size]) == ("x.pdf", b"JVBERg==\r\n")

    def test_an_outer_delimiter_ends_what_is_within(self) -> None:
        octets = crlf("""\
Content-Type: multipart/mixed; boundary=a

--a
Content-Type: multipart/mixed; boundary=b

--b

one
--a

two
--b

still two
--a--
""")
        content = found(octets)
        assert content.text == "one"
        assert [octets[part.offset : part.offset + part.size] for part in content.attachments] == [
            b"two\r\n--b\r\n\r\nstill two"
        ]

    def test_cut_off(self) -> None:
        for end in range(len(MIXED)):
            content = found(MIXED[:end])
            assert len(content.attachments) <= 4

    def test_parts_without_header_or_body(self) -> None:
        content = found(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n--b\r\nX: y\r\n--b\r\n--b--\r\n")
        assert content.text == ""
        assert [part.size for part in content.attachments] == [0, 0]

    @pytest.mark.parametrize("boundary", ["", '""', '" "', "x" * 300])
    def test_a_boundary_that_is_none(self, boundary: str) -> None:
        content = found(f"Content-Type: multipart/mixed; boundary={boundary}\r\n\r\n--\r\n\r\nx\r\n".encode())
        assert (content.text, content.attachments) == (None, [])

    def test_a_boundary_is_no_pattern(self) -> None:
        content = found(
            b'Content-Type: multipart/mixed; boundary="(.*)+"\r\n\r\n--x\r\n\r\n--(.*)+\r\n\r\ny\r\n--(.*)+--'
        )
        assert (content.text, content.attachments) == ("y", [])


class TestTexts:
    @pytest.mark.parametrize(
        ("charset", "octets", "text"),
        [
            ("utf-8", b"\xc3\xa4", "ä"),
            ("UTF-8", b"\xe4", "\ufffd"),
            ("iso-8859-1", b"\xe4", "ä"),
            ("koi8-r", b"\xc1", "а"),
            ("nonsense", b"\xc3\xa4", "ä"),
            ('"a\x00b"', b"x", "x"),
            ("punycode", b"maana-pta", "maana-pta"),
            ("-punycode-", b"maana-pta", "maana-pta"),
            ("unicode_escape", b"\\ud800", "\\ud800"),
            ("hex", b"41", "41"),
            ("utf-7", b"+2AA-", "?"),
        ],
    )
    def test_charsets(self, charset: str, octets: bytes, text: str) -> None:
        assert found(b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n\r\n" + octets).text == text

    @pytest.mark.parametrize(
        ("encoding", "octets", "text"),
        [
            (b"base64", b"SGVs\r\nbG8=\r\n", "Hello"),
            (b"base64", b"SGVsbG8", "Hello"),
            (b"base64", b"SGVsb", "Hel"),
            (b"base64", b"SG*V sbG8=SGVsbG8=", "Hello"),
            (b"quoted-printable", b"a=3D=\r\nb=ZZ", "a=b=ZZ"),
            (b"8BIT", b"a\xc3\xa4", "aä"),
            (b"x-unknown", b"abc", "abc"),
        ],
    )
    def test_encodings(self, encoding: bytes, octets: bytes, text: str) -> None:
        assert found(b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + octets).text == text

    def test_what_is_too_long(self) -> None:
        content = found(b"\r\n" + b"x" * 1001, limit=1000)
        assert (content.text, content.truncated) == ("x" * 1000, {"text"})
        encoded = base64.encodebytes(b"abc" * 1000)
        content = found(b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n" + encoded, limit=1001)
        assert content.html is not None
        assert ("abc" * 1000).startswith(content.html)
        assert len(content.html) > 700
        assert content.truncated == {"html"}

    def test_none_are_wanted(self) -> None:
        content = found(b"\r\nHello.", limit=0)
        assert (content.text, content.truncated, len(content.attachments)) == (None, set(), 1)


class TestLimits:
    def test_the_header(self) -> None:
        field = b"X: " + b"y" * 1000 + b"\r\n"
        content = found(field * (HEADER_SIZE // len(field) + 1) + b"\r\nHello.")
        assert content.truncated == {"headers", "text", "html", "attachments"}
        assert content.headers == [("X", "y" * 1000)] * (HEADER_SIZE // len(field))
        assert (content.text, content.attachments) == (None, [])

    def test_the_number_of_fields(self) -> None:
        content = found(b"X: y\r\n" * (FIELDS + 1) + b"\r\nHello.")
        assert (len(content.headers), content.text, content.truncated) == (FIELDS, "Hello.", {"headers"})
        data = event(b"To: " + b"a@x.org," * ADDRESSES + b"b@x.org\r\n\r\n").data
        assert len(data.to) == ADDRESSES

    def test_the_number_of_parts(self) -> None:
        head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        content = found(head + b"--b\r\n\r\nx\r\n" * 10_000)
        assert content.truncated == {"attachments"}
        assert len(content.attachments) == PARTS - 2  # the multipart itself, and the text

    def test_the_depth(self) -> None:
        nested = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n" for n in range(DEPTH + 1))
        content = found(nested.encode() + b"\r\nHello.")
        assert (content.text, content.truncated) == (None, {"attachments"})

    def test_the_parameters(self) -> None:
        octets = b"Content-Type: text/plain; x=" + b"y" * PARAMETERS_SIZE + b"; charset=iso-8859-1\r\n\r\n\xc3\xa4"
        content = found(octets)
        assert (content.text, len(content.headers[0][1])) == ("ä", len(octets) - 20)

    @pytest.mark.promises("Storage", "What is looked for in a message for a webhook takes bounded time and memory.")
    @pytest.mark.parametrize(
        "octets",
        [
            b"Subject: " + b"=?a?q? " * 18_000,
            b"Subject: " + b"=?punycode?q?" + b"a" * 999 + b"?= ",
            b"To: " + b"(" * 60_000,
            b"To: " + b"a," * 30_000,
            b"To: a@b\r\n" * 14_000,
            b"Content-Type: text/plain" + b";a=b" * 30_000,
            b"Content-Type: text/plain" + b"".join(b";name*%d*=utf-8''a" % n for n in range(5_000)),
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"\n--" * 5_000_000,
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"\n--b " * 3_000_000,
            b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-b9" * 60_000,
        ],
        ids=range(10),
    )
    def test_nothing_takes_long(self, octets: bytes) -> None:
        begun = time.process_time()
        event(octets)
        assert time.process_time() - begun < 5  # here all take less than 0.4 s

    def test_what_it_calls_charsets_is_not_kept_for_ever(self) -> None:
        """Python's codecs remember each name that they were asked for, whether there is one or not."""

        def named(name: str) -> bytes:
            fields = f"Content-Type: a/b; charset*={name}c''u\r\nContent-Disposition: inline; filename*={name}f''x\r\n"
            parts = [f"--b\r\n{fields.replace(name, f'{name}{n}-' * 100)}\r\nx\r\n" for n in range(100)]
            return (
                f"Subject: =?{name}?q?x?=\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{''.join(parts)}".encode()
            )

        event(named("one"))
        assert kept(lambda: event(named("two"))) < 50_000  # else 350,000


class TestFields:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
            ("=?utf-8?B?w6Q=?=\r\n =?utf-8?b?w7Y=?= x", "äö x"),
            ("a =?iso-8859-1?q?=E4_=F6?= b", "a ä ö b"),
            ("=?utf-8?b?w?=", "=?utf-8?b?w?="),
            ("=?nonsense?q?=C3=A4?=", "ä"),
            ("=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
            ("one\r\n two\r\n\tthree", "one two\tthree"),
            ("=?utf-7?q?+2AA-?=", "?"),
        ],
    )
    def test_decoded(self, value: str, text: str) -> None:
        assert decoded(value) == text

    def test_addresses(self) -> None:
        values = ['"Doe, J." <j@x.org>, =?utf-8?q?=C3=84nn?= <a@x.org>', "Team: b@x.org, c@x.org;", "undisclosed:;"]
        assert addresses(values) == [("Doe, J.", "j@x.org"), ("Änn", "a@x.org"), ("", "b@x.org"), ("", "c@x.org")]

    def test_an_encoded_word_makes_no_address(self) -> None:
        [(name, address)] = addresses(["=?utf-8?q?boss=40x.org=3E=2C_=3C?= <evil@y.org>"])
        assert (name, address) == ("boss@x.org>, <", "evil@y.org")

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("Mon, 23 Nov 2026 09:00:00 +0100", "2026-11-23T09:00:00+01:00"),
            ("23 Nov 2026 09:00 GMT (x)", "2026-11-23T09:00:00+00:00"),
            ("Mon, 23 Nov 2026 09:00:00 -0000", "2026-11-23T09:00:00-00:00"),
            ("yesterday", None),
            ("", None),
            ("Mon, 99 Nov 2026 99:00:00 +9999", None),
        ],
    )
    def test_date(self, value: str, text: str | None) -> None:
        assert date(value) == text

    def test_utf8_and_what_is_neither(self) -> None:
        data = event("Subject: Grüße\r\n".encode() + b"From: \xe4 <a@x.org>\r\n\r\n").data
        assert data.subject == "Grüße"
        assert data.from_[0].model_dump() == {"name": "\ufffd", "address": "a@x.org"}

    def test_repeated_fields(self) -> None:
        data = event(b"Subject: one\r\nSubject: two\r\nTo: a@x.org\r\nto: b@x.org\r\nReply-To: c@x.org\r\n\r\n").data
        assert data.subject == "one"
        assert [to.address for to in data.to] == ["a@x.org", "b@x.org"]
        assert [to.address for to in data.reply_to] == ["c@x.org"]


class TestProperties:
    @given(st.binary(max_size=2000))
    @settings(max_examples=150, deadline=None)
    def test_nothing_raises(self, octets: bytes) -> None:
        event(octets)

    @given(
        st.lists(
            st.sampled_from(
                [
                    *b'a b --a --b -- < ( " ; =?utf-8?q? ?= \xff \0'.split(b" "),
                    *(b"\r\n", b"\n", b"\r", b" ", b"From: "),
                    b"Content-Type: multipart/mixed; boundary=",
                    b"Content-Type: text/html; charset=",
                    b"Content-Transfer-Encoding: base64\r\n",
                    b"Content-Disposition: attachment; filename=",
                ]
            ),
            max_size=60,
        )
    )
    @settings(max_examples=200, deadline=None)
    def test_nothing_like_mime_raises(self, pieces: list[bytes]) -> None:
        octets = b"".join(pieces)
        parts = event(octets).data.attachments
        assert all(0 <= part.offset <= part.offset + part.size <= len(octets) for part in parts)
        assert all(one.offset + one.size <= other.offset for one, other in pairwise(parts))

    @given(
        st.text(
            st.characters(codec="utf-8", exclude_characters="\r\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=300
        ),
        st.lists(st.binary(max_size=400), max_size=4),
        st.text("abc äöü.-", min_size=1, max_size=30).map(str.strip).filter(bool),
    )
    @settings(max_examples=60, deadline=None)
    def test_what_the_standard_library_writes_is_found(self, text: str, files: list[bytes], name: str) -> None:
        written = EmailMessage(policy=SMTP)
        written["Subject"] = name
        written.set_content(text)
        for file in files:
            written.add_attachment(file, "application", "octet-stream", filename=name)
        octets = written.as_bytes()
        content = found(octets)
        assert content.text is not None
        assert content.text.rstrip("\n") == text.rstrip("\n")
        assert event(octets).data.subject == " ".join(name.split(" "))
        bodies = [octets[part.offset : part.offset + part.size] for part in content.attachments]
        assert [base64.b64decode(body) for body in bodies] == files
        assert {part.filename for part in content.attachments} <= {name}
