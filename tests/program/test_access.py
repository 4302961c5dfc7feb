"""Who may send what to whom, as clients of a real server see it; and no open relay."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pillarbox import ConfigurationError, Recipient
from pillarbox.cli import config
from pillarbox.cli.config import Configuration, effective
from pillarbox.deliver import Message, Settings, Target, target_from_url
from pillarbox.program.access import Access, AccessSettings
from pillarbox.program.patterns import Patterns
from pillarbox.program.receiver import Receiver
from pillarbox.program.recipients import Recipients
from pillarbox.program.routes import Route, Routes
from support import Client, serving

LOGIN = {
    "allow_insecure_auth": True,
    "on_auth": lambda auth, _session: auth.username if auth.password == "pw" else None,
}


class Away(Target):
    """A target that hands on to anywhere."""

    relays = True

    async def deliver(self, message: Message) -> str:
        async for _ in message:
            pass
        return self.url


def handlers(routes: list[Route] | None = None, **settings: Any) -> dict[str, Any]:
    receiver = Receiver()
    there = Routes(routes or [Route(Away("away:", Settings()))], "here")
    return receiver.handlers("mx.example.com", there, Access(AccessSettings.from_table(settings)))


async def logged_in(client: Client, user: str = "joe") -> Client:
    from base64 import b64encode

    await client.ehlo()
    credential = b64encode(f"\0{user}\0pw".encode()).decode()
    assert (await client.command(f"AUTH PLAIN {credential}")).code == 235
    return client


async def codes(client: Client, *commands: str) -> list[int]:
    return [(await client.command(command)).code for command in commands]


class TestRecipients:
    async def test_strangers_write_to_those_that_are_ours(self) -> None:
        async with serving(auth_optional=True, **handlers(accept=["*@example.com"])) as served:
            client = await served.client()
            await client.ehlo()
            assert await codes(client, "MAIL FROM:<a@b.example>") == [250]
            assert (await client.command("RCPT TO:<joe@Example.com>")).code == 250
            refused = await client.command("RCPT TO:<joe@example.org>")
            assert str(refused).startswith("550 Error: relaying denied")

    async def test_who_has_logged_in_writes_to_anyone(self) -> None:
        async with serving(**LOGIN, **handlers(accept=[])) as served:
            client = await logged_in(await served.client())
            assert await codes(client, "MAIL FROM:<a@b.example>", "RCPT TO:<joe@example.org>") == [250, 250]

    async def test_who_comes_from_a_listed_network_too(self) -> None:
        for networks, code in ((["127.0.0.0/8"], 250), (["192.0.2.0/24"], 550)):
            async with serving(auth_optional=True, **handlers(accept=[], networks=networks)) as served:
                client = await served.client()
                await client.ehlo()
                assert await codes(client, "MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>") == [250, code]

    @pytest.mark.parametrize(
        ("accept", "taken", "refused"),
        [
            (
                ["joe@example.com"],
                ["postmaster", "POSTMASTER", "Postmaster@mx.example.com", "postmaster@EXAMPLE.com"],
                [],
            ),
            (["joe@example.com"], [], ["postmaster@example.org", "postmaster@sub.example.com", "jim@mx.example.com"]),
            (["*@example.com", "!postmaster@*"], ["a@example.com"], ["postmaster", "postmaster@example.com"]),
            ([], [], ["postmaster", "postmaster@mx.example.com"]),  # where no stranger writes to anyone
        ],
    )
    async def test_the_postmaster_is_ours(self, accept: list[str], taken: list[str], refused: list[str]) -> None:
        async with serving(auth_optional=True, **handlers(accept=accept)) as served:
            client = await served.client()
            await client.ehlo()
            assert await codes(client, "MAIL FROM:<>", *(f"RCPT TO:<{each}>" for each in taken)) == [250] * (
                len(taken) + 1
            )
            assert await codes(client, *(f"RCPT TO:<{each}>" for each in refused)) == [550] * len(refused)

    @pytest.mark.parametrize(
        "recipient", ["a%evil.example@example.com", "evil.example!a@example.com", '"a@b"@example.com']
    )
    async def test_strangers_name_no_second_host_to_the_next_server(self, recipient: str) -> None:
        """Which trusts this one, and would send it on."""
        command = f"RCPT TO:<{recipient}>"
        ours = Patterns(["*@example.com"])
        for routes, settings, code in (
            (None, {"accept": ["*@example.com"]}, 550),
            ([Route(Away("away:", Settings()), ours)], {}, 550),
            (None, {"accept": ["*@example.com"], "networks": ["127.0.0.0/8"]}, 250),
            (None, {}, 250),  # to anyone
            ([Route(target_from_url("discard:"), ours)], {"accept": ["*@example.com"]}, 250),
        ):
            async with serving(auth_optional=True, **handlers(routes, **settings)) as served:
                client = await served.client()
                await client.ehlo()
                assert await codes(client, "MAIL FROM:<>", command) == [250, code]
        async with serving(**LOGIN, **handlers(accept=["*@example.com"])) as served:
            client = await logged_in(await served.client())
            assert await codes(client, "MAIL FROM:<>", command) == [250, 250]

    @pytest.mark.parametrize(
        ("recipient", "expected"),
        [
            ("postmaster", ["one"]),  # of no domain that anybody is for: the first that must take mail
            ("postmaster@mx.example.com", ["one"]),
            ("postmaster@example.com", ["one"]),
            ("postmaster@example.org", ["two", "three"]),
            ("postmaster@example.net", []),
        ],
    )
    def test_the_postmaster_has_a_target(self, recipient: str, expected: list[str]) -> None:
        recipients = {
            "one": ["joe@example.com"],
            "two": ["jim@example.org"],
            "three": ["jane@example.org"],
            "four": ["*@example.org", "!postmaster@*"],
        }
        routes = [Route(Away(f"{name}:", Settings()), Patterns(own)) for name, own in recipients.items()]
        routes.append(Route(Away("away:", Settings()), Patterns(["*", "!*@example.net"])))  # all that is not ours
        found = Recipients("mx.example.com", Routes(routes, "here"), Access(AccessSettings.from_table({})))
        assert [part.route.target.url for part in found.parts([Recipient(recipient)])] == [f"{e}:" for e in expected]

    async def test_who_has_no_target_is_no_recipient(self) -> None:
        route = Route(Away("away:", Settings()), Patterns(["*@example.com"]))
        async with serving(auth_optional=True, **handlers([route])) as served:
            client = await served.client()
            await client.ehlo()
            assert await codes(client, "MAIL FROM:<>", "RCPT TO:<a@example.com>") == [250, 250]
            refused = await client.command("RCPT TO:<a@example.org>")
            assert str(refused) == "550 Error: no such recipient here"

    async def test_quotes_lead_past_no_rule(self) -> None:
        async with serving(auth_optional=True, **handlers(accept=["*@example.com", "!root@example.com"])) as served:
            client = await served.hello()
            quoted = ('"root"', '"ro\\ot"', '"ROOT"', '"room"')
            commands = [f"RCPT TO:<{each}@example.com>" for each in quoted]
            assert await codes(client, "MAIL FROM:<>", *commands) == [250, 550, 550, 550, 250]


class TestSenders:
    @pytest.mark.parametrize(
        ("senders", "sender", "code"),
        [
            ({"joe": ["joe@example.com"]}, "joe@example.com", 250),
            ({"joe": ["joe@example.com"]}, "JOE@example.com", 250),
            ({"Joe": ["*@example.com"]}, "anyone@example.com", 553),  # another user
            ({"JOE": ["a@b.example"], "*": ["*"]}, "anyone@example.com", 250),
            ({"joe": ["joe@example.com"]}, "jim@example.com", 553),
            ({"joe": ["joe@example.com"]}, "", 250),  # a report of a mail program, which has no sender
            ({"jim": ["*"]}, "joe@example.com", 553),
            ({"*": ["{user}@example.com"]}, "joe@example.com", 250),
            ({"*": ["{user}@example.com"]}, "jim@example.com", 553),
            ({"*": ["{user}+*@example.com"]}, "joe+tag@example.com", 250),
            ({"joe": ["a@b.example"], "*": ["{user}@example.com"]}, "joe@example.com", 553),
            ({"*": ["{user}@example.com", "!root@example.com"]}, "jim@example.com", 553),  # an exception adds nobody
            ({"*": ["*@example.com", "!{user}@example.com"]}, "joe@example.com", 553),
            ({"*": ["{user}+*@example.com", "!*+admin@example.com"]}, "joe+admin@example.com", 553),
            ({"*": ["{user}@mx.*"]}, '"joe@mx."@example.com', 553),
            ({"*": ["{user}@example.com"]}, '"joe"@example.com', 250),  # the same address
            ({"*": ["*@example.com", "!{user}@example.com"]}, '"j\\oe"@example.com', 553),
            ({"joe": ['"joe doe"@example.com']}, '"Joe Doe"@example.com', 250),
            (None, "anyone@example.org", 250),
        ],
    )
    async def test_a_user_has_senders(self, senders: dict[str, list[str]] | None, sender: str, code: int) -> None:
        settings: dict[str, Any] = {} if senders is None else {"senders": senders}
        async with serving(**LOGIN, **handlers(**settings)) as served:
            client = await logged_in(await served.client())
            assert await codes(client, f"MAIL FROM:<{sender}>") == [code]

    async def test_a_users_name_is_no_pattern(self) -> None:
        async with serving(**LOGIN, **handlers(senders={"*": ["{user}@example.com"]})) as served:
            client = await logged_in(await served.client(), "*")
            assert await codes(client, "MAIL FROM:<joe@example.com>") == [553]

    @pytest.mark.parametrize(
        ("user", "sender", "code"),
        [
            ("joe doe", '"joe doe"@example.com', 250),
            ('"joe"', "joe@example.com", 553),  # its quotes are a part of that name
            ('"joe"', '"\\"joe\\""@example.com', 250),
            ("joe@example.com", "joe@example.com", 250),
        ],
    )
    async def test_a_users_name_is_quoted_where_it_has_to_be(self, user: str, sender: str, code: int) -> None:
        async with serving(**LOGIN, **handlers(senders={"*": ["{user}@example.com", "{user}"]})) as served:
            client = await logged_in(await served.client(), user)
            assert await codes(client, f"MAIL FROM:<{sender}>") == [code]

    async def test_files_may_name_the_user(self, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("{user}@example.com  # theirs\n")
        async with serving(**LOGIN, **handlers(senders={"*": [f"file:{tmp_path / 'own'}"]})) as served:
            client = await logged_in(await served.client())
            assert await codes(client, "MAIL FROM:<jim@example.com>", "MAIL FROM:<joe@example.com>") == [553, 250]

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    async def test_accents_may_be_composed_in_any_way(self, form: Any) -> None:
        senders = {unicodedata.normalize(form, "jos\N{LATIN SMALL LETTER E WITH ACUTE}"): ["j@example.com"], "*": ["*"]}
        async with serving(**LOGIN, **handlers(senders=senders)) as served:
            client = await logged_in(await served.client(), "jos\N{LATIN SMALL LETTER E WITH ACUTE}")
            assert await codes(client, "MAIL FROM:<boss@example.com>", "MAIL FROM:<j@example.com>") == [553, 250]

    @pytest.mark.parametrize("pattern", ["{user} @example.com", "", "example.com", "file:nowhere"])
    def test_what_is_no_pattern(self, pattern: str) -> None:
        with pytest.raises(ConfigurationError):
            Access(AccessSettings.from_table({"senders": {"*": [pattern]}}))

    @pytest.mark.parametrize("pattern", ["{username}@example.com", "{User}@example.com", "{user}@{domain}"])
    def test_only_the_user_is_filled_in(self, pattern: str) -> None:
        with pytest.raises(ConfigurationError, match=r"^'.*': \{.*\} stands for nothing here, only \{user\} does"):
            Access(AccessSettings.from_table({"senders": {"*": [pattern]}}))

    async def test_strangers_have_none(self) -> None:
        async with serving(auth_optional=True, **handlers(senders={"joe": []})) as served:
            client = await served.client()
            await client.ehlo()
            assert await codes(client, "MAIL FROM:<joe@example.com>") == [250]


USERS = "[[users]]\nurl = 'htpasswd:users'"


class TestNoOpenRelay:
    @pytest.fixture(autouse=True)
    def relaying(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def known(_url: str) -> type[Target]:
            return Away

        monkeypatch.setattr(config, "target_class", known)
        monkeypatch.setattr(config, "target_from_url", lambda url, settings=None: Away(url, settings))

    def effective(self, tmp_path: Path, text: str) -> Configuration:
        path = tmp_path / "pillarbox.toml"
        path.write_text(text)
        return effective(str(path))

    @pytest.mark.promises("The program", "It does not start as an open relay.")
    @pytest.mark.parametrize("address", [":25", "192.0.2.1:25", "[::]:25", "mail.example.com:25", "fd:3"])
    @pytest.mark.parametrize(
        "rules",
        [
            "",
            "[access]\naccept = ['*']",
            "[access]\naccept = ['*', '!*@example.com']",
            "[access]\naccept = ['!joe@example.com']",
            "[access]\naccept = ['*@*.org']",
            "recipients = ['*', '!*@example.com']",
            "recipients = ['!*@example.com']",
            "[access]\naccept = ['a@b', '*@*']",
            "[access]\nnetworks = ['0.0.0.0/0']",
            f"[access]\naccept = ['*']\n{USERS}",
            "[access]\naccept = ['*', '!root@example.com']",  # an exception leaves all others
            "[access]\naccept = ['!root@example.com']",
            "[access]\naccept = ['*@*.com']",
            "[access]\naccept = ['postmaster@*']",
            "[access]\nnetworks = ['0.0.0.0/0.0.0.0']",
            "[access]\nnetworks = ['0.0.0.0/1', '128.0.0.0/1']",
            "[access]\nnetworks = ['::ffff:0:0/96']",
            "[access]\nnetworks = ['10.0.0.0/8']\n[server]\nuse_proxy = true",  # anyone can say that it is in there
            "[server]\nauth_optional = false\nuse_xclient = true",
            "[server]\nauth_optional = false\ndisabled_commands = ['AUTH']",
        ],
    )
    def test_does_not_start(self, tmp_path: Path, address: str, rules: str) -> None:
        with pytest.raises(
            ConfigurationError, match=r"\[\[listen\]\] 1: listener .* would be an open relay: away: takes"
        ):
            self.effective(tmp_path, f"[[listen]]\naddress = '{address}'\n[[deliver]]\nurl = 'away:'\n{rules}\n")

    @pytest.mark.parametrize("recipients", ["'*', '!root@example.com'", "'*@*.com'"])
    def test_nor_for_nearly_all_recipients(self, tmp_path: Path, recipients: str) -> None:
        with pytest.raises(ConfigurationError, match="would be an open relay"):
            self.effective(
                tmp_path, f"[[listen]]\naddress = ':25'\n[[deliver]]\nurl = 'away:'\nrecipients = [{recipients}]\n"
            )

    @pytest.mark.parametrize("address", ["127.0.0.1:25", "unix:/run/x"])
    @pytest.mark.parametrize("proxy", ["use_proxy", "use_xclient"])
    def test_nor_behind_a_proxy_on_this_host(self, tmp_path: Path, address: str, proxy: str) -> None:
        with pytest.raises(ConfigurationError, match="would be an open relay"):
            self.effective(tmp_path, f"[[listen]]\naddress = '{address}'\n{proxy} = true\n[[deliver]]\nurl = 'away:'\n")

    @pytest.mark.parametrize(
        ("listen", "deliver", "rules"),
        [
            ("address = '127.0.0.1:25'", "", ""),
            ("address = '[::1]:25'", "", ""),
            ("address = 'unix:/run/x'", "", ""),
            ("address = ':25'\nauth_optional = false", "", USERS),
            ("address = ':25'\nauth_optional = false\nuse_xclient = ['192.0.2.1']", "", ""),
            ("address = ':25'", "", USERS),
            ("address = ':25'\nauth_optional = true", "", USERS),
            ("address = ':25'", "recipients = ['*@example.com']", ""),
            ("address = ':25'", "", "[access]\naccept = ['*@example.com']"),
            ("address = ':25'\naccept = ['*@example.com']", "", ""),
            ("address = ':25'", "", "[access]\nnetworks = ['10.0.0.0/8']"),
            ("address = ':25'", "", "[access]\naccept = ['*@*.example.com', '*@*.internal']"),
            ("address = ':25'\nuse_proxy = ['192.0.2.1']", "", "[access]\nnetworks = ['10.0.0.0/8']"),
            ("address = 'unix:x'\nauth_optional = false\nuse_xclient = true", "", ""),
        ],
    )
    def test_starts(self, tmp_path: Path, listen: str, deliver: str, rules: str) -> None:
        self.effective(tmp_path, f"[[listen]]\n{listen}\n[[deliver]]\nurl = 'away:'\n{deliver}\n{rules}\n")

    def test_with_networks_alone_strangers_write_to_nobody(self, tmp_path: Path) -> None:
        text = "[[listen]]\naddress = ':25'\n[[deliver]]\nurl = 'away:'\n[access]\nnetworks = ['10.0.0.0/8']"
        (listener,) = self.effective(tmp_path, text).listeners
        assert listener.access.accept is not None
        assert "a@b" not in listener.access.accept


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[access]\naccept = '*@example.com'", r"\[access\]: accept: should be a valid list"),
            ("[access]\nacept = []", r"\[access\]: unknown key 'acept': did you mean 'accept'"),
            ("[access]\nnetworks = ['10.0.0']", r"\[access\]: networks: '10.0.0' does not appear to be"),
            ("[access.senders]\njoe = 'joe@example.com'", r"\[access\]: senders.joe: should be a valid list"),
            ("[[listen]]\naddress = ':25'\naccept = ['x']", r"\[\[listen\]\] 1: 'x': has no @"),
            ("D\nrecipients = [1]", r"\[\[deliver\]\] 1: recipients.0: should be a valid string, not 1"),
            ("D\nrecipiens = []", r"\[\[deliver\]\] 1: unknown key 'recipiens': did you mean 'recipients'"),
            ("D\nlisteners = [':26']", r"\[\[deliver\]\] 1: listeners: there is no listener ':26'"),
            ("D\nlisteners = [':2']\nL\nL2", r"\[\[listen\]\] 2: no \[\[deliver\]\] is for the listener :3"),
            ("D\ntimeout = 0", r"timeout: should be greater than 0, not 0"),
            ("D\ntimeout = inf", r"\[\[deliver\]\] 1: timeout: should be a finite number"),
            ("D\ntimeout = nan", r"\[\[deliver\]\] 1: timeout: should be a finite number"),
        ],
    )
    def test_are_named_with_their_place(self, tmp_path: Path, text: str, message: str) -> None:
        listen, deliver = "[[listen]]\naddress = ':{}'", "[[deliver]]\nurl = 'discard:'"
        short = {"L": listen.format(2), "L2": listen.format(3), "D": deliver}
        path = tmp_path / "pillarbox.toml"
        path.write_text("\n".join(short.get(line, line) for line in text.split("\n")))
        with pytest.raises(ConfigurationError, match=message):
            effective(str(path))
