"""The targets' table."""

from __future__ import annotations

from pathlib import Path

import pytest

from messages import message
from pillarbox import Recipient, Session
from pillarbox.deliver import Target, known_schemes, target_class, target_from_url
from pillarbox.deliver.discard import Discard
from pillarbox.deliver.maildir import Maildir
from pillarbox.deliver.mbox import Mbox
from pillarbox.deliver.pipe import Pipe
from pillarbox.deliver.stdout import Stdout
from pillarbox.errors import ConfigurationError
from pillarbox.program.access import Access, AccessSettings
from pillarbox.program.receiver import Receiver
from pillarbox.program.routes import Route, Routes


class TestTable:
    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("maildir:x", Maildir),
            ("maildir:///x/y", Maildir),
            ("mbox:x", Mbox),
            ("stdout:", Stdout),
            ("pipe:cat", Pipe),
            ("discard:", Discard),
            ("Discard:", Discard),
        ],
    )
    def test_known(self, url: str, kind: type[object]) -> None:
        target = target_from_url(url)
        assert type(target) is kind
        assert target.url == url

    def test_every_scheme_can_be_imported(self) -> None:
        assert {"discard", "maildir", "python", "sqlite"} <= set(known_schemes())
        assert list(known_schemes()) == sorted(known_schemes())
        for scheme in set(known_schemes()) - {"python"}:  # which has a class for each URL
            assert issubclass(target_class(f"{scheme}:"), Target)

    @pytest.mark.parametrize(
        ("url", "settings", "verifies"),
        [
            ("discard:", {}, False),
            ("http://x.example/", {}, False),
            ("http://x.example/", {"max_size": 1000}, True),
            ("lmtp://x.example", {}, True),
            ("maildir:x", {}, False),
            ("maildir:x", {"quota": 1000}, True),
            ("maildir:{local}", {}, True),  # not every address can be a folder
            ("mbox:x", {}, False),
            ("mbox:x", {"create": False}, True),
            ("mbox:{local}", {}, True),
            ("pipe:cat", {}, False),
            ("pipe:cat {user}", {}, True),
            ("smtp://x.example", {}, False),
            ("smtp://x.example", {"verify": True}, True),
            ("sqlite:x", {}, False),
            ("stdout:", {}, False),
        ],
    )
    def test_rcpt_costs_nothing_where_nothing_is_verified(
        self, url: str, settings: dict[str, object], verifies: bool
    ) -> None:
        target = target_from_url(url, settings)
        assert target.verifies is verifies
        listener = Receiver().handlers(
            "mx.example.com", Routes([Route(target)], ""), Access(AccessSettings.from_table({}))
        )
        assert ("on_rcpt_to" in listener) is verifies

    def test_who_writes_verify_verifies(self) -> None:
        class Own(Discard):
            async def verify(self, recipient: Recipient, session: Session) -> None:
                pass

        assert Own("discard:", None).verifies

    def test_making_one_touches_nothing(self, tmp_path: Path) -> None:
        target_from_url(f"maildir:{tmp_path}/x")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            (
                "maildr:x",
                r"unknown scheme 'maildr': did you mean 'maildir'\? \(known: discard:, .*maildir:, .*\)",
            ),
            ("gopher://x", r"unknown scheme 'gopher' \(known: discard:, .*maildir:, .*\)"),
            ("Maildir", r"'Maildir' has no scheme: write SCHEME:…, for example maildir:Maildir"),
            ("", "has no scheme: write SCHEME:…, for example maildir:Maildir"),
            (":x", "unknown scheme ''"),
            ("discard:x", "nothing can follow discard:"),
        ],
    )
    def test_refused(self, url: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            target_from_url(url)


async def test_discard() -> None:
    target = target_from_url("discard:")
    await target.start()
    assert await target.deliver(message(b"a", b"b")) == "discard:"


async def test_discard_does_not_take_what_is_broken() -> None:
    with pytest.raises(ConnectionError):
        await target_from_url("discard:").deliver(message(b"a", error=ConnectionError("gone")))


class TestSettings:
    def test_unknown_key(self) -> None:
        with pytest.raises(ConfigurationError, match="unknown key 'x'"):
            target_from_url("discard:", {"x": 1})
