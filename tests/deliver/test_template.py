"""Fields in paths and commands: what of an address may become a name."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox import ConfigurationError, Recipient, Reject, Session
from pillarbox.deliver.template import PathTemplate, clean_name, parts_of

BASE = "/var/mail"


def path(address: str, template: str = "{domain}/{local}", user: str | None = None, **more: str) -> str:
    session = Session()
    session.user = user
    found = PathTemplate(f"maildir:{BASE}/{template}", **more).path(Recipient(address), session)
    return str(found.relative_to(BASE))


class TestFields:
    @pytest.mark.parametrize(
        ("address", "template", "expected"),
        [
            ("Joe@Example.COM", "{domain}/{local}/Maildir", "example.com/joe/Maildir"),
            ("joe@example.com", "{address}", "joe@example.com"),
            ("joe+tag+more@example.com", "{local}", "joe+tag+more"),
            ("joe+tag@example.com", "{mailbox}", "joe"),
            ("+tag@example.com", "{mailbox}", "+tag"),
            ("joe@example.com", "x-{mailbox}-y", "x-joe-y"),
            ("joe@example.com", "{{{local}}}", "{joe}"),
            # RFC 5321 4.1.1.3: "Postmaster" may stand without a domain.
            ("Postmaster", "{domain}/{local}", "localhost/postmaster"),
            ('"joe"@example.com', "{local}", "joe"),  # the same mailbox as without quotes
            (r'"j\oe"@example.com', "{local}", "joe"),
            ('"a b"@example.com', "{local}", "a b"),
            ("joe@[192.0.2.1]", "{domain}", "[192.0.2.1]"),
            ("JÖRG@exämple.com", "{domain}/{local}", "exämple.com/jörg"),
            (unicodedata.normalize("NFD", "jörg@example.com"), "{local}", unicodedata.normalize("NFC", "jörg")),
        ],
    )
    def test_recipient(self, address: str, template: str, expected: str) -> None:
        assert path(address, template) == expected

    @pytest.mark.parametrize(("separator", "expected"), [("-", "joe"), ("+", "joe-x"), ("", "joe-x")])
    def test_separator(self, separator: str, expected: str) -> None:
        assert path("joe-x@example.com", "{mailbox}", separator=separator) == expected

    def test_user(self) -> None:
        assert path("b@example.com", "{user}", user="Joe") == "Joe"  # as the accounts have it
        with pytest.raises(Reject) as refused:
            path("b@example.com", "{user}")
        assert (refused.value.code, refused.value.enhanced) == (530, "5.7.0")

    def test_date(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "strftime", lambda form: f"<{form}>")
        assert path("b@example.com", "{year}-{month}-{day}") == "<%Y>-<%m>-<%d>"

    @pytest.mark.parametrize(
        ("template", "base"),
        [
            ("/var/mail/{local}", "/var/mail"),
            ("/var/mail/{domain}/{local}", "/var/mail"),
            ("/var/mail/box-{local}", "/var/mail"),
            ("/var/a{{b/{local}", "/var/a{b"),
            ("{local}/Maildir", "."),
            ("/var/mail/all", "/var/mail/all"),
            ("/var/{{all", "/var/{all"),
        ],
    )
    def test_base(self, template: str, base: str) -> None:
        found = PathTemplate(f"maildir:{template}")
        assert found.base == Path(base)
        assert (found.fixed == Path(base)) is ("{local}" not in template)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("maildir:/x/{lokal}", r"unknown field \{lokal\}: did you mean 'local'\? \(known: \{address\} \{day\} "),
            ("maildir:/x/{}", r"unknown field \{\}"),
            ("maildir:/x/{0}", r"unknown field \{0\}"),
            ("maildir:/x/{local!r}", r"unknown field \{local!r\}"),
            ("maildir:/x/{local:>9}", r"unknown field \{local:>9\}"),
            ("maildir:/x/{local.__class__}", "unknown field"),
            ("maildir:/x/{local", r"brace is written"),
            ("maildir:/x/local}", r"brace is written"),
            ("mbox://host/x", r"write mbox:PATH"),
        ],
    )
    def test_refused(self, url: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            PathTemplate(url)


@pytest.mark.promises(
    "Storage",
    "No file name is made of what a client says, but of a recipient where the path asks for it: one harmless name.",
)
class TestHostile:
    @pytest.mark.parametrize(
        "address",
        [
            '"../../etc/passwd"@example.com',
            '".."@example.com',
            '"."@example.com',
            '"\\.\\."@example.com',
            "..@example.com",
            ".hidden@example.com",
            '"a/b"@example.com',
            '"a\\\\b"@example.com',
            '"a\\\nb"@example.com',
            '""@example.com',
            "a\0b@example.com",
            "a\x7fb@example.com",
            "a\u200bb@example.com",  # invisible
            "a\u202eb@example.com",  # turns the text around
            "a\u2028b@example.com",
            "a\u00a0b@example.com",  # looks like a space
            "a\ud800b@example.com",
            f"{'a' * 256}@example.com",
            f"{'ä' * 128}@example.com",  # 256 octets
            "a@..",
            "a@../../x",
            "a@.example.com",
            "@example.com",
            "a@",
            "",
        ],
    )
    def test_there_is_no_such_mailbox(self, address: str) -> None:
        with pytest.raises(Reject) as refused:
            path(address)
        assert (refused.value.code, refused.value.enhanced) == (553, "5.1.3")
        assert refused.value.text is not None
        assert refused.value.text.isascii()

    def test_a_user_is_no_more_trusted(self) -> None:
        with pytest.raises(Reject):
            path("b@example.com", "{user}", user="../root")

    def test_names_that_are_too_long_together(self) -> None:
        assert path(f"{'a' * 200}@example.com", "{local}")
        with pytest.raises(Reject):
            path(f"{'a' * 200}@example.com", "{local}-{local}")
        with pytest.raises(Reject):
            path(f"{'a' * 251}@example.com", "{local}", suffix=".lock")

    @given(local=st.text(max_size=80), domain=st.text(max_size=80))
    def test_a_path_stays_where_it_belongs(self, local: str, domain: str) -> None:
        try:
            found = PathTemplate(f"maildir:{BASE}/{{domain}}/{{mailbox}}/Maildir").path(
                Recipient(f"{local}@{domain}"), Session()
            )
        except Reject:
            return
        assert found.is_relative_to(BASE)
        parts = found.relative_to(BASE).parts
        assert len(parts) == 3
        assert ".." not in found.parts
        assert all(not part.startswith(".") and len(part.encode()) <= 255 and part.isprintable() for part in parts)
        assert parts_of(f"{local.upper()}@{domain}")["domain"] == parts[0]

    @given(st.text(max_size=300))
    def test_a_name_is_one_component(self, value: str) -> None:
        try:
            name = clean_name(value)
        except Reject:
            return
        assert Path(name).parts == (name,)
