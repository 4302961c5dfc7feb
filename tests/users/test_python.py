"""``python:package.module:object``: functions, classes and objects of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillarbox import ConfigurationError
from pillarbox.users import users_from_url
from users.logins import LATER, WELCOME, WRONG, asking, bearer, offered, plain, scram

MODULE = """
from pydantic import SecretStr
from pillarbox import Reject, ScramKeys
from pillarbox.users import Settings, Users

PEOPLE = {"ann": "secret"}

def check(auth, session):
    return auth.username if PEOPLE.get(auth.username) == auth.password else None

async def check_later(auth, session):
    if auth.username == "locked":
        raise Reject(535, "Locked")
    return PEOPLE.get(auth.username) == auth.password

def token(auth, session):
    return "ann" if auth.access_token == "token-of-ann" else None

def wrong(auth, session):
    return {"user": "ann"}

class Keyed(Users):
    class Settings(Settings):
        pepper: SecretStr

    async def start(self):
        self.keys = ScramKeys.from_password("secret" + self.settings.pepper.get_secret_value(), iterations=4096)

    def methods(self):
        return ("SCRAM-SHA-256", "PLAIN")

    async def scram_keys(self, username, session):
        return self.keys if username == "ann" else None

    def keys_of_nobody(self, username):
        return [ScramKeys.of_nobody(username, iterations=4096)]

    async def authenticate(self, auth, session):
        return auth.username if auth.verified or self.keys.fits(auth.password) else None

    async def close(self):
        PEOPLE["closed"] = "yes"

class Mute(Users):
    def methods(self):
        return ()

class Deaf(Keyed):
    def __init__(self, url, settings): ...

class Inner:
    ready = Keyed("", Keyed.Settings(pepper=SecretStr("-here")))

number = 5
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what makes a backend of an object in a module of one's own."""
    (tmp_path / "my_people.py").write_text(MODULE)
    (tmp_path / "broken_people.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_people", raising=False)
    return lambda name, **settings: users_from_url(f"python:{name}", settings)


@pytest.mark.parametrize("name", ["check", "check_later"])
async def test_a_function_says_who_it_is(users: Callable[..., Any], name: str) -> None:
    async with asking(users(f"my_people:{name}")) as served:
        assert await offered(served) == ["PLAIN", "LOGIN"]
        assert await plain(served, "ann", "secret") == WELCOME
        assert await plain(served, "ann", "wrong") == WRONG
        if name == "check_later":
            assert await plain(served, "locked", "secret") == "535 Locked"


async def test_a_function_for_tokens(users: Callable[..., Any]) -> None:
    async with asking(users("my_people:token", methods=["OAUTHBEARER", "XOAUTH2"])) as served:
        assert await offered(served) == ["OAUTHBEARER", "XOAUTH2"]
        assert await bearer(served, "token-of-ann") == ("", WELCOME)
        assert (await bearer(served, "another"))[1] == WRONG


async def test_a_function_that_answers_something_else_is_a_bug(users: Callable[..., Any]) -> None:
    problems: list[Exception] = []
    async with asking(users("my_people:wrong"), on_error=lambda error, _: problems.append(error)) as served:
        assert await plain(served, "ann", "secret") == LATER
    assert "returned dict, not the user's name or None" in str(problems[0])


@pytest.mark.parametrize(("name", "settings"), [("Keyed", {"pepper": "-here"}), ("Inner.ready", {})])
async def test_a_class_or_an_object_is_a_backend_of_its_own(
    users: Callable[..., Any], name: str, settings: dict[str, Any]
) -> None:
    async with asking(users(f"my_people:{name}", **settings)) as served:
        assert await offered(served) == ["SCRAM-SHA-256", "PLAIN"]
        assert await scram(served, "ann", "secret-here") == WELCOME
        assert await scram(served, "ann", "secret") == WRONG
        assert await scram(served, "nobody", "secret-here") == WRONG
        assert await plain(served, "ann", "secret-here") == WELCOME
    assert sys.modules["my_people"].PEOPLE.pop("closed") == "yes"


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("my_people", {}, "names no object"),
        ("my people:check", {}, "names no object"),
        ("my_people:", {}, "names no object"),
        ("no_such_people:check", {}, "there is no module 'no_such_people'"),
        ("broken_people:check", {}, r"ZeroDivisionError: division by zero \(.*broken_people\.py, line 1\)"),
        ("my_people:nothing", {}, r"my_people \(.*my_people\.py\) has no 'nothing'"),
        ("my_people:Inner.nothing", {}, r"my_people \(.*\) has no 'Inner\.nothing'"),
        ("my_people:number", {}, "neither a function"),
        ("my_people:check", {"peper": 1}, "unknown key 'peper'"),
        ("my_people:Keyed", {"peper": "x"}, "pepper"),
        ("my_people:Keyed", {}, "pepper is missing"),
        ("my_people:Inner.ready", {"methods": ["PLAIN"]}, "unknown key 'methods'"),
        ("my_people:Deaf", {"pepper": "x"}, r"Deaf\(url, settings\) failed: AttributeError: .*url"),
        ("my_people:Mute", {}, "Mute has no method authenticate"),
        ("my_people:check", {"methods": "PLAIN"}, "methods"),
        ("my_people:check", {"methods": []}, "methods: .*at least 1 item"),
        ("my_people:check", {"methods": ["plain"]}, "methods: a function cannot verify 'plain', only PLAIN, LOGIN, "),
        ("my_people:check", {"methods": ["SCRAM-SHA-256"]}, "methods: a function cannot verify 'SCRAM-SHA-256'"),
    ],
)
async def test_what_cannot_be_used(users: Callable[..., Any], name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await users(name, **settings).start()
