"""The table of schemes, for targets and for users: what other distributions offer, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox import ConfigurationError, deliver, users
from pillarbox.program.settings import without_login
from support import offering

MODULE = """
from pillarbox.deliver import Settings, Target
from pillarbox.users import Users

class Own(Settings):
    label: str = "plain"

class Good(Target, Users):
    Settings = Own

    async def deliver(self, message): ...
    def methods(self): return ("PLAIN",)
    async def authenticate(self, auth, session): ...

class Mute(Target, Users):
    def methods(self): return ("PLAIN",)

class Odd(Good):
    Settings = dict

class Broken(Good):
    def __init__(self, url, settings):
        raise OSError("no database")

other = 5
"""
NAMES = ("good", "mute", "odd", "broken", "other", "missing", "python")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a distribution that offers schemes for targets and users."""
    (tmp_path / "own_parts.py").write_text(MODULE)
    points = "".join(f"{name} = own_parts:{name.title() if name != 'other' else name}\n" for name in NAMES)
    offering(tmp_path, "own", f"[pillarbox.targets]\n{points}[pillarbox.users]\n{points}absent = own_absent:Good\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_parts", None)


@pytest.fixture(params=[deliver.target_from_url, users.users_from_url], ids=["targets", "users"])
def made(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return what makes a part of a URL."""
    function: Callable[..., Any] = request.param
    return function


def test_another_distribution_brings_a_scheme(place: Path, made: Callable[..., Any]) -> None:
    assert type(made("good:x")).__name__ == "Good"
    part = made("Good:x", {"label": "own"})
    assert (part.url, part.settings.label) == ("Good:x", "own")
    for known in (deliver.known_schemes(), users.known_schemes()):
        assert "good" in known
        assert list(known) == sorted(set(known))


def test_ours_cannot_be_replaced(place: Path, made: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="names no object: write python:MODULE:OBJECT"):
        made("python:x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("godo:x", r"^'godo:x': unknown scheme 'godo': did you mean 'good'\? \(known: .*good:, .*\)$"),
        ("goood://ann:secret@host/x", r"^'goood://host/x': unknown scheme 'goood': did you mean 'good'\?"),
        ("missing:x", r"^missing: own_parts:Missing of pillarbox-own cannot be loaded: AttributeError: .*'Missing'$"),
        ("mute:x", r"^mute: Mute has no method (deliver|authenticate)$"),
        ("odd:x", r"^odd: Odd\.Settings is no subclass of pillarbox\.(deliver|users)\.Settings$"),
        ("other:x", r"^other: 5 is no subclass of pillarbox\.(deliver\.Target|users\.Users)$"),
        ("broken://ann:secret@host", r"^broken://host: Broken\(url, settings\) failed: OSError: no database$"),
    ],
)
def test_what_cannot_be_used_is_said(place: Path, made: Callable[..., Any], url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        made(url)


def test_a_module_that_cannot_be_imported(place: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^absent: .* cannot be loaded: ModuleNotFoundError: .*own_absent"):
        users.users_from_url("absent:x")


def test_of_two_with_one_scheme_none_is_chosen(place: Path, made: Callable[..., Any]) -> None:
    offering(place, "second", "[pillarbox.targets]\nGood = second:A\n[pillarbox.users]\nGood = second:A\n")
    with pytest.raises(ConfigurationError) as refused:
        made("good:x")
    text = str(refused.value)
    assert text.startswith("good: there is more than one: ")
    assert "own_parts:Good of pillarbox-own" in text
    assert "second:A of pillarbox-second" in text
    assert text.endswith("; uninstall what you do not need")
    assert type(made("python:own_parts:Good")).__name__ == "Good"  # nothing else is harmed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("maildir:mail", "maildir:mail"),
        ("smtp://ann:se/c:r@t@host:25/x", "smtp://host:25/x"),
        ("smpt:ann:secret@host", "smpt:host"),
        ("redis://:secret@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("maildir:mail/a@b", "maildir:mail/a@b"),
        ("no scheme", "no scheme"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert without_login(url) == shown
