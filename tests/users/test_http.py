"""``https://…``: a real HTTP server is asked who may log in."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pillarbox import ConfigurationError
from pillarbox.users import users_from_url
from support import b64, ca, careless, on_both_loops, pem, recorded
from users.endpoint import Answer, endpoint
from users.logins import LATER, WELCOME, WRONG, asking, bearer, by_smtplib, offered, plain


def knows_ann(asked: Any) -> Any:
    """Accept one user, and refuse all others."""
    if asked["username"] == "ann" and asked.get("password") == "secret":
        return {"user": "ann@example.com"}
    return web.json_response({"why": "wrong"}, status=401)


@on_both_loops
async def test_clients_log_in() -> None:
    seen: list[Any] = []
    async with (
        endpoint(knows_ann) as http,
        asking(users_from_url(http.url), on_mail_from=lambda _, session: seen.append(session.user)) as served,
    ):
        assert await offered(served) == ["PLAIN", "LOGIN"]
        client = await served.hello()
        assert await client.say("AUTH PLAIN " + b64("\0ann\0secret")) == WELCOME
        await client.say("MAIL FROM:<a@example.com>")
        assert await plain(served, "ann", "wrong") == WRONG
        assert await plain(served, "nobody", "secret") == WRONG
        assert await by_smtplib(served, "ann", "secret") == 235
        assert await plain(served, "ann", "secret", authzid="bob") == WRONG
    assert seen == ["ann@example.com"]


async def test_what_it_is_told() -> None:
    """All that docs/users.md promises, and nothing else."""
    async with (
        endpoint(knows_ann) as http,
        asking(users_from_url(http.url, {"token": "for-the-endpoint"}), **pem()) as served,
    ):
        client = await served.hello()
        here, there = client.writer.get_extra_info("sockname"), served.address
        assert await client.say("AUTH PLAIN " + b64("\0ann\0secret")) == WELCOME
        other = await served.hello()
        await other.starttls(careless(), None)
        await other.ehlo("again.example")
        assert (await other.command("AUTH LOGIN " + b64("ann"))).code == 334
        assert await other.say(b64("secret")) == WELCOME
    first, second = http.asked
    assert len(first.pop("session")) == 16
    assert first == {
        "username": "ann",
        "password": "secret",
        "mechanism": "PLAIN",
        "client": {"address": "127.0.0.1", "port": here[1], "name": "[127.0.0.1]", "hello": "client.example"},
        "listener": {"address": "127.0.0.1", "port": there[1], "protocol": "smtp"},
        "tls": None,
    }
    assert (second["mechanism"], second["client"]["hello"]) == ("LOGIN", "again.example")
    assert second["tls"] == {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384"}
    for headers in http.headers:
        assert headers["Authorization"] == "Bearer for-the-endpoint"
        assert headers["User-Agent"] == "pillarbox"
        assert headers["Content-Type"] == "application/json"


async def test_tokens() -> None:
    def knows_a_token(asked: Any) -> Any:
        assert "password" not in asked
        return {"user": "ann"} if asked["token"] == "token-of-ann" else web.Response(status=403)

    async with (
        endpoint(knows_a_token) as http,
        asking(users_from_url(http.url, {"methods": ["OAUTHBEARER", "XOAUTH2"]})) as served,
    ):
        assert await offered(served) == ["OAUTHBEARER", "XOAUTH2"]
        assert await bearer(served, "token-of-ann") == ("", WELCOME)
        assert await bearer(served, "another", "ann", "XOAUTH2") == (
            '{"status": "401", "schemes": "bearer", "scope": "mail"}',
            WRONG,
        )
    assert [asked["username"] for asked in http.asked] == ["", "ann"]


@pytest.mark.parametrize("status", [401, 403])
async def test_who_is_refused_may_be_known_elsewhere(status: int, tmp_path: Path) -> None:
    (tmp_path / "people.py").write_text("def check(auth, session): return auth.username == 'bob'")
    sys.path.insert(0, str(tmp_path))
    try:
        async with (
            endpoint(lambda _: web.Response(status=status)) as http,
            asking(users_from_url(http.url), users_from_url("python:people:check")) as served,
        ):
            assert await plain(served, "bob", "secret") == WELCOME
            assert await plain(served, "ann", "secret") == WRONG
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("people", None)


ANSWERS: dict[str, tuple[Answer, str]] = {
    "500": (lambda _: web.Response(status=500, text="secret"), "it answered 500, and neither 200, 401 nor 403"),
    "404": (lambda _: web.Response(status=404), "it answered 404"),
    "204": (lambda _: web.Response(status=204), "it answered 204"),
    "redirect": (lambda _: web.Response(status=307, headers={"Location": "/elsewhere"}), "it answered 307"),
    "no JSON": (lambda _: web.Response(text="ok secret"), "its answer is no JSON"),
    "no user": (lambda _: {"name": "ann"}, "its answer has no user"),
    "a list": (lambda _: ["ann"], "its answer has no user"),
    "null": (lambda _: {"user": None}, "its answer has no user"),
    "empty": (lambda _: {"user": ""}, "its answer has no user"),
    "control": (lambda _: {"user": "ann\r\nX: y"}, "its answer has no user"),
    "deep": (lambda _: web.Response(text="[" * 60_000), "its answer is no JSON"),
    "endless": (lambda _: web.Response(text="x" * 100_000), "its answer has more than 65536 octets"),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_any_other_answer_is_a_failure_for_now(kind: str) -> None:
    make, says = ANSWERS[kind]
    async with endpoint(make) as http, asking(users_from_url(http.url)) as served:
        with recorded(logging.ERROR) as records:
            assert await plain(served, "ann", "secret") == LATER
    assert len(http.asked) == 1  # a redirect is not followed
    [message] = [record.getMessage() for record in records]
    assert message.startswith(f"{http.url}: {says}")
    assert "secret" not in message


async def test_one_that_does_not_answer_is_not_waited_for() -> None:
    async with (
        endpoint(lambda _: asyncio.sleep(60)) as http,
        asking(users_from_url(http.url, {"timeout": 0.3})) as served,
    ):
        with recorded(logging.ERROR) as records:
            assert await plain(served, "ann", "secret") == LATER
        assert "no answer in time" in records[0].getMessage()


async def test_one_that_is_gone_may_come_back() -> None:
    async with endpoint(knows_ann) as http:
        port = int(http.url.split(":")[2].split("/")[0])
    async with asking(users_from_url(http.url)) as served:
        assert await plain(served, "ann", "secret") == LATER
        async with endpoint(knows_ann, port=port):
            assert await plain(served, "ann", "secret") == WELCOME
        async with endpoint(knows_ann, port=port):  # the connection that was kept is closed now
            assert await plain(served, "ann", "secret") == WELCOME


async def test_cookies_are_not_kept() -> None:
    def answer(asked: Any) -> web.Response:
        response = web.json_response({"user": asked["username"]})
        response.set_cookie("session", asked["username"])
        return response

    async with endpoint(answer) as http, asking(users_from_url(http.url)) as served:
        assert await plain(served, "ann", "secret") == WELCOME
        assert await plain(served, "bob", "secret") == WELCOME
    assert all("Cookie" not in headers for headers in http.headers)


class TestTLS:
    async def test_a_certificate_of_one_s_own_authority(self, tmp_path: Path) -> None:
        ca("server").cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with (
            endpoint(knows_ann, tls=True) as http,
            asking(users_from_url(http.url, {"ca": str(tmp_path / "ca.pem")})) as served,
        ):
            assert await plain(served, "ann", "secret") == WELCOME

    @pytest.mark.parametrize("url", ["https://localhost/", "jwt:https://localhost/keys"])
    def test_a_reload_sees_that_the_authorities_have_changed(self, tmp_path: Path, url: str) -> None:
        settings = {"ca": str(tmp_path / "ca.pem")} | ({"issuer": "x", "audience": "y"} if url[0] == "j" else {})
        ca("server").cert_pem.write_to_path(settings["ca"])
        running, same = users_from_url(url, settings), users_from_url(url, settings)
        assert running.same_as(same)
        ca("client").cert_pem.write_to_path(settings["ca"], append=True)
        assert not users_from_url(url, settings).same_as(running)

    async def test_an_unknown_certificate_gets_no_password(self) -> None:
        async with endpoint(knows_ann, tls=True) as http, asking(users_from_url(http.url)) as served:
            with recorded(logging.ERROR) as records:
                assert await plain(served, "ann", "secret") == LATER
            assert http.asked == []
            assert "certificate" in records[0].getMessage()

    async def test_a_certificate_for_another_name(self, tmp_path: Path) -> None:
        ca("server").cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with endpoint(knows_ann, tls=True) as http:
            url = http.url.replace("localhost", "127.0.0.1")
            async with asking(users_from_url(url, {"ca": str(tmp_path / "ca.pem")})) as served:
                assert await plain(served, "ann", "secret") == LATER
        assert http.asked == []


@pytest.mark.promises("Users", "No password, token or key stands in a log.")
async def test_no_credential_reaches_a_log() -> None:
    with recorded(logging.DEBUG) as records:
        async with (
            endpoint(lambda asked: web.Response(status=500, text=str(asked))) as http,
            asking(users_from_url(http.url, {"token": "for-the-endpoint"})) as served,
        ):
            await plain(served, "ann", "correct horse")
    text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in records)
    assert "authentication failed for ann" in text
    assert "correct horse" not in text
    assert "for-the-endpoint" not in text


class TestStart:
    @pytest.mark.parametrize(
        ("url", "settings", "says"),
        [
            ("https://", {}, "names no host"),
            ("https:users", {}, "names no host"),
            ("https://ho st/", {}, "names no host, or has a space in it"),
            ("https://host/", {"methods": []}, "methods: .*at least 1 item"),
            ("https://host/", {"ca": "ca\0.pem"}, "no path holds a NUL"),
            ("https://host/", {"ca": "~nobody-here/ca.pem"}, "no such home directory"),
            ("http://host:port/", {}, "this is no URL"),
            ("https://admin:secret@host/", {}, "put what is secret into the setting token"),
            ("https://host/", {"methods": ["CRAM-MD5"]}, "an endpoint cannot verify CRAM-MD5"),
            ("https://host/", {"timeout": -1}, "timeout"),
            ("https://host/", {"tokn": "secret"}, "did you mean 'token'"),
            ("https://host/", {"token": ["secret"]}, "token"),
            ("https://host/", {"token": "'secret'\r\nX: y"}, "a header cannot hold it"),
        ],
    )
    def test_what_cannot_be_meant(self, url: str, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as refused:
            users_from_url(url, settings)
        assert "secret@" not in str(refused.value)
        assert "'secret'" not in str(refused.value)

    async def test_authorities_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"ca: .* cannot be used: No such file"):
            await users_from_url("https://host/", {"ca": str(tmp_path / "none")}).start()

    async def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        with pytest.raises(ConfigurationError, match=r"pip install 'pillarbox\[http\]'"):
            await users_from_url("https://host/").start()

    @pytest.mark.parametrize(
        ("url", "warned"),
        [
            ("http://accounts.example.com/", True),
            ("http://192.0.2.1/", True),
            ("http://127.0.0.1:8080/", False),
            ("http://[::1]/", False),
            ("http://localhost/", False),
            ("https://accounts.example.com/", False),
        ],
    )
    async def test_passwords_without_tls_are_warned_of(self, url: str, warned: bool) -> None:
        users = users_from_url(url)
        with recorded(logging.WARNING) as records:
            await users.start()
        await users.close()
        assert [record.getMessage().startswith(f"{url}: without TLS") for record in records] == [True] * warned
