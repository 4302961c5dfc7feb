"""Several backends as one: who is asked, in which order, and what AUTH announces."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pillarbox import AuthRequest, ConfigurationError, Reject, ScramKeys, Session
from pillarbox.users import Chain, Settings, Users, known_schemes, users_from_url
from pillarbox.users.htpasswd import HtpasswdUsers
from scram_client import ScramClient
from support import b64, recorded, serving
from users.logins import WELCOME, WRONG, asking, offered, plain, scram, session


class Known(Users):
    """Users by name and password; it writes down what it is asked."""

    def __init__(self, accounts: dict[str, str], *methods: str) -> None:
        super().__init__("known:", Settings())
        self.accounts = accounts
        self.asked: list[str] = []
        self._methods = methods or ("PLAIN", "LOGIN")

    def methods(self) -> tuple[str, ...]:
        return self._methods

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        self.asked.append(f"{auth.method} {auth.username}")
        known = self.accounts.get(auth.username)
        return auth.username if known is not None and (auth.verified or auth.password == known) else None

    async def scram_keys(self, username: str, session: Session) -> ScramKeys | None:
        known = self.accounts.get(username)
        if known is None or "SCRAM-SHA-256" not in self._methods:
            return None
        return ScramKeys.from_password(known, iterations=4096)


SCRAM = ("SCRAM-SHA-256", "PLAIN", "LOGIN")


class TestOrder:
    async def test_each_is_asked_until_one_knows(self) -> None:
        first, second, third = (Known({name: "secret"}) for name in ("ann", "bob", "carl"))
        async with asking(first, second, third) as served:
            assert await plain(served, "bob", "secret") == WELCOME
            assert [len(each.asked) for each in (first, second, third)] == [1, 1, 0]
            assert await plain(served, "nobody", "secret") == WRONG
            assert [len(each.asked) for each in (first, second, third)] == [2, 2, 1]

    async def test_log_and_limits_are_about_the_account_however_its_name_was_written(self) -> None:
        class Directory(Known):
            async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
                assert session.username is None
                return "bob" if auth.username in ("bob", "robert") and auth.password == "secret" else None

        rates = {"messages": "2/hour"}
        with recorded(logging.INFO) as records:
            async with asking(Directory({}), rates_per_account=rates) as served:
                codes = []
                for name in ("bob", "robert", "bob"):
                    client = await served.hello()
                    assert await client.say("AUTH PLAIN " + b64(f"\0{name}\0wrong")) == WRONG
                    assert await client.say("AUTH PLAIN " + b64(f"\0{name}\0secret")) == WELCOME
                    codes.append((await client.command("MAIL FROM:<a@example.com>")).code)
        assert codes == [250, 250, 450]
        told = [record.getMessage() for record in records if "auth" in record.getMessage()]
        assert told[2:4] == ["authentication failed for robert", "authenticated as bob"]

    async def test_nobody_is_logged_in_before_the_exchange_has_succeeded(self) -> None:
        async with asking(Known({"bob": "secret"}, *SCRAM), on_mail_from=lambda *_: None) as served:
            client = await served.hello()
            exchange = ScramClient("bob", "secret", "sha256")
            final = exchange.final((await client.say(f"AUTH SCRAM-SHA-256 {exchange.first()}")).removeprefix("334 "))
            assert (await client.say(final)).startswith("334 ")
            assert (await client.say("*"))[:3] == "501"
            assert served.server.connections[0].username is None
            assert await client.say("AUTH PLAIN " + b64("\0bob\0wrong")) == WRONG
            assert served.server.connections[0].username is None

    async def test_one_that_refuses_ends_it(self) -> None:
        class Refusing(Known):
            async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
                raise Reject(535, "Ask the help desk")

        last = Known({"bob": "secret"})
        async with asking(Refusing({}), last) as served:
            assert await plain(served, "bob", "secret") == "535 Ask the help desk"
        assert last.asked == []

    @pytest.mark.parametrize("name", [True, False, "", 5, "bob\nX-Admin: yes", "bob\0", "\udc80"])
    async def test_what_is_no_name_is_a_bug_and_lets_nobody_in(self, name: Any) -> None:
        class Odd(Known):
            async def authenticate(self, auth: AuthRequest, session: Session) -> Any:
                return name

        async with asking(Odd({})) as served:
            assert (await plain(served, "bob", "secret"))[:3] == "454"

    async def test_none_is_asked_what_it_does_not_verify(self) -> None:
        """A token login has no password: a backend of passwords must not see it as one without."""
        passwords, tokens = Known({"bob": ""}), Known({"bob": ""}, "XOAUTH2")
        async with asking(passwords, tokens) as served:
            client = await served.hello()
            assert await client.say("AUTH XOAUTH2 " + b64("user=bob\x01auth=Bearer x\x01\x01")) == WELCOME
        assert (passwords.asked, tokens.asked) == ([], ["XOAUTH2 bob"])

    async def test_a_login_without_a_password_is_none(self) -> None:
        users = Known({"bob": ""})
        async with asking(users) as served:
            assert await plain(served, "bob", "") == WRONG
            client = await served.hello()
            assert await client.say("AUTH LOGIN " + b64("bob")) == "334 UGFzc3dvcmQ6"
            assert await client.say("") == WRONG
        assert users.asked == []


class TestScram:
    async def test_who_gave_the_keys_says_whose_they_are(self) -> None:
        """Both know a bob; the second's password is not the first's."""
        first, second = Known({"ann": "secret"}, *SCRAM), Known({"bob": "secret", "ann": "other"}, *SCRAM)
        async with asking(first, second) as served:
            assert await scram(served, "ann", "secret") == WELCOME
            assert await scram(served, "bob", "secret") == WELCOME
            assert await scram(served, "ann", "other") == WRONG
            assert await scram(served, "carl", "secret") == WRONG
        assert first.asked == ["SCRAM-SHA-256 ann"]
        assert second.asked == ["SCRAM-SHA-256 bob"]

    async def test_a_verified_login_of_nobody_s_keys_is_refused(self) -> None:
        users = Known({"bob": "secret"}, *SCRAM)
        request = AuthRequest("SCRAM-SHA-256", "bob", verified=True)
        assert await Chain([users]).on_auth(request, session()) is None
        assert users.asked == []

    async def test_keys_of_one_login_are_not_those_of_the_next(self) -> None:
        chain, client = Chain([Known({"bob": "secret"}, *SCRAM)]), session()
        request = AuthRequest("SCRAM-SHA-256", "bob", authcid="bob", verified=True)
        assert len(await chain.on_scram("bob", client)) == 1
        assert await chain.on_auth(request, client) == "bob"
        assert await chain.on_auth(request, client) is None
        await chain.on_scram("bob", client)
        assert await chain.on_scram("nobody", client) == ()
        assert await chain.on_auth(request, client) is None


class TestMethods:
    @pytest.mark.parametrize(
        ("backends", "announced"),
        [
            ([("PLAIN", "LOGIN")], ["PLAIN", "LOGIN"]),
            ([("XOAUTH2", "OAUTHBEARER"), ("LOGIN", "PLAIN")], ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"]),
            ([SCRAM, SCRAM], ["SCRAM-SHA-256", "PLAIN", "LOGIN"]),
            # A client that can do SCRAM takes it: the second's users could not log in.
            ([SCRAM, ("PLAIN",)], ["PLAIN", "LOGIN"]),
            ([SCRAM, ("OAUTHBEARER",)], ["SCRAM-SHA-256", "PLAIN", "LOGIN", "OAUTHBEARER"]),
        ],
    )
    async def test_what_is_announced(self, backends: list[tuple[str, ...]], announced: list[str]) -> None:
        async with asking(*(Known({}, *methods) for methods in backends)) as served:
            assert await offered(served) == announced


def test_methods_that_nobody_verifies() -> None:
    asked = ["PLAIN", "CRAM-MD5", "SCRAM-SHA-256-PLUS", "XOAUTH2"]
    assert Chain([Known({}, "PLAIN")]).cannot(asked) == ["CRAM-MD5", "XOAUTH2"]
    tokens = users_from_url("jwt:keys", {"issuer": "x", "audience": "y"})
    assert Chain([tokens]).cannot(asked) == ["PLAIN", "CRAM-MD5", "SCRAM-SHA-256-PLUS"]
    assert Chain([]).cannot(asked) == asked


async def test_a_proxy_that_is_trusted_is_believed() -> None:
    users = Known({})
    chain = Chain([users])
    seen: list[Any] = []
    async with serving(
        use_xclient=["127.0.0.1"],
        on_auth=chain.on_auth,
        on_mail_from=lambda _, session: seen.append(session.user),
    ) as served:
        client = await served.hello()
        assert (await client.command("XCLIENT LOGIN=bob ADDR=192.0.2.7")).code == 220
        await client.ehlo()
        await client.say("MAIL FROM:<a@example.com>")
    assert seen == ["bob"]
    assert users.asked == []


class TestTable:
    def test_schemes(self) -> None:
        assert known_schemes() == ("dovecot", "htpasswd", "http", "https", "jwt", "python")
        assert isinstance(users_from_url("HTPASSWD:users"), HtpasswdUsers)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("users", "has no scheme: write SCHEME:…, for example htpasswd:users"),
            ("htpaswd:users", "unknown scheme 'htpaswd': did you mean 'htpasswd'?"),
            ("ldap://admin:secret@host", r"unknown scheme 'ldap' \(known: dovecot:"),
        ],
    )
    def test_what_is_none(self, url: str, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as refused:
            users_from_url(url)
        assert "secret" not in str(refused.value)


class Mine(Users):
    """A backend of somebody else's."""


async def test_a_backend_that_forgets_its_methods_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Mine("mine:", Settings()).methods()
    with pytest.raises(NotImplementedError):
        await Mine("mine:", Settings()).authenticate(AuthRequest("PLAIN", "x"), session())
