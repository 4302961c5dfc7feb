"""Authentication: auth_methods, auth_optional, auth_required_message, max_allowed_unauthenticated_commands."""

from __future__ import annotations

import hmac
import json
from base64 import b64decode
from typing import Any

import pytest

from pillarbox import AuthRequest, Reject, Session
from support import PLAIN, Client, b64, careless, serving

OPEN = {"allow_insecure_auth": True}


class Accounts:
    """An ``on_auth`` that knows ann, and keeps every request."""

    def __init__(self, user: Any = True) -> None:
        self.requests: list[AuthRequest] = []
        self.user = user

    async def __call__(self, auth: AuthRequest, session: Session) -> Any:
        self.requests.append(auth)
        if auth.access_token:
            return self.user if auth.access_token == "token" else None
        return self.user if auth.username == "ann" and auth.validate_password("secret") else None


async def cram(client: Client, user: str, password: str) -> str:
    challenge = await client.command("AUTH CRAM-MD5")
    assert challenge.code == 334
    asked = b64decode(challenge.lines[0])
    assert asked.startswith(b"<")
    assert asked.endswith(b"@mx.example.net>")
    digest = hmac.new(password.encode(), asked, "md5").hexdigest()
    return await client.say(b64(f"{user} {digest}"))


async def test_only_the_auth_methods_are_offered_and_taken() -> None:
    async with serving(**OPEN, auth_methods=["PLAIN", "xoauth2"], on_auth=Accounts()) as served:
        client = await served.client()
        assert (await client.ehlo())["AUTH"] == "PLAIN XOAUTH2"
        assert await client.say("AUTH LOGIN") == "504 Error: Unrecognized authentication type"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"


async def test_login_and_plain_are_the_default() -> None:
    async with serving(**OPEN) as served:
        client = await served.client()
        assert (await client.ehlo())["AUTH"] == "LOGIN PLAIN"


async def test_plain() -> None:
    accounts = Accounts()
    async with serving(**OPEN, on_auth=accounts) as served:
        client = await served.hello()
        await client.send(b"AUTH PLAIN\r\n")
        assert await client.line() == b"334 \r\n"
        assert await client.say(b64("other\0ann\0secret")) == "235 Authentication successful"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "503 Error: No identity changes permitted"
        assert served.server.connections[0].user == "ann"
    request = accounts.requests[0]
    assert (request.method, request.username, request.password) == ("PLAIN", "ann", "secret")
    assert (request.authcid, request.authzid, request.access_token) == ("ann", "other", "")


@pytest.mark.parametrize(
    ("token", "answer"),
    [
        ("ann\0\0secret", "235 Authentication successful"),  # the authzid, where there is no authcid
        ("\0ann\0wrong", "535"),
        ("\0ann", "500 Error: invalid userdata"),
        ("\0\0secret", "500 Error: invalid userdata"),
        ("\0a\nnn\0secret", "500 Error: invalid userdata"),
        ("x\x07\0ann\0secret", "500 Error: invalid userdata"),
        ("\0ann\0secret\0more", "500 Error: invalid userdata"),
    ],
)
async def test_plain_tokens(token: str, answer: str) -> None:
    async with serving(**OPEN, on_auth=Accounts()) as served:
        client = await served.hello()
        assert (await client.say(f"AUTH PLAIN {b64(token)}")).startswith(answer)


@pytest.mark.parametrize("line", ["!!!", "YQ", "=YQ=", "YQ==YQ=="])
async def test_what_is_no_base64(line: str) -> None:
    async with serving(**OPEN, on_auth=Accounts()) as served:
        client = await served.hello()
        assert await client.say(f"AUTH PLAIN {line}") == "500 Error: invalid userdata"
        assert (await client.command("AUTH PLAIN")).code == 334
        assert await client.say(line) == "500 Error: invalid userdata"
        assert await client.say("NOOP") == "250 OK"


async def test_login() -> None:
    accounts = Accounts(user={"id": 7}.keys())
    async with serving(**OPEN, on_auth=accounts) as served:
        client = await served.hello()
        assert await client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await client.say(b64("ann")) == "334 UGFzc3dvcmQ6"
        assert await client.say(b64("secret")) == "235 Authentication successful"
        assert served.server.connections[0].user is accounts.user


async def test_login_with_the_user_name_in_the_command_and_a_lower_case_mechanism() -> None:
    async with serving(**OPEN, on_auth=Accounts()) as served:
        client = await served.hello()
        assert await client.say(f"auth login {b64('ann')}") == "334 UGFzc3dvcmQ6"
        assert (await client.say(b64("wrong"))).startswith("535 ")
        assert await client.say(f"AUTH LOGIN {b64('ann')}") == "334 UGFzc3dvcmQ6"
        assert await client.say(b64("secret")) == "235 Authentication successful"


async def test_cram_md5() -> None:
    async with serving(**OPEN, name="mx.example.net", auth_methods=["CRAM-MD5"], on_auth=Accounts()) as served:
        client = await served.hello()
        assert (await cram(client, "ann", "wrong")).startswith("535 ")
        assert await cram(client, "ann", "secret") == "235 Authentication successful"


async def test_xoauth2() -> None:
    accounts = Accounts()
    async with serving(**OPEN, auth_methods=["XOAUTH2"], on_auth=accounts) as served:
        client = await served.hello()
        assert await client.say(f"AUTH XOAUTH2 {b64('user=ann%cauth=Bearer token%c%c'.replace('%c', chr(1)))}") == (
            "235 Authentication successful"
        )
    assert (accounts.requests[0].username, accounts.requests[0].access_token) == ("ann", "token")


@pytest.mark.parametrize("line", ["", "*", "AQ==", "no base64"])
async def test_a_failed_xoauth2_tells_why_and_then_any_line_gets_535(line: str) -> None:
    def on_auth(auth: AuthRequest, session: Session) -> None:
        raise Reject(535, "Token expired", data={"status": "400"})

    token = b64("user=ann\1auth=Bearer old\1\1")
    async with serving(**OPEN, auth_methods=["XOAUTH2"], on_auth=on_auth) as served:
        client = await served.hello()
        told = await client.command(f"AUTH XOAUTH2 {token}")
        assert told.code == 334
        assert json.loads(b64decode(told.lines[0])) == {"status": "400"}
        assert await client.say(line) == "535 Token expired"
        assert await client.say("NOOP") == "250 OK"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
async def test_an_asterisk_aborts(mechanism: str) -> None:
    async with serving(**OPEN, auth_methods=[mechanism], on_auth=Accounts()) as served:
        client = await served.hello()
        assert (await client.command(f"AUTH {mechanism}")).code == 334
        assert await client.say("*") == "501 Authentication aborted"
        assert await client.say("NOOP") == "250 OK"


async def test_auth_optional() -> None:
    async with serving(auth_optional=True) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
    async with serving(auth_optional=False) as served:
        client = await served.hello()
        for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<a@example.com>", "DATA"):
            assert await client.say(command) == "530 Error: authentication Required"


async def test_auth_required_message() -> None:
    async with serving(**OPEN, auth_optional=False, auth_required_message="Log in first", on_auth=Accounts()) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "530 Log in first"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert await client.deliver() == "250 OK: message queued"


async def test_the_order_of_what_mail_and_auth_need() -> None:
    async with serving(auth_optional=False, on_auth=Accounts()) as served:
        client = await served.client()
        for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<a@example.com>", "DATA", "AUTH PLAIN"):
            assert await client.say(command) == "503 Error: send HELO/EHLO first"
        assert "AUTH" not in await client.ehlo()  # it would not be accepted before TLS
        assert await client.say("AUTH PLAIN") == "538 Error: Must issue a STARTTLS command first"
        await client.starttls(careless())
        assert (await client.ehlo())["AUTH"] == "LOGIN PLAIN"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert "AUTH" not in await client.ehlo()


async def test_auth_inside_a_transaction() -> None:
    async with serving(**OPEN, on_auth=Accounts()) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("AUTH PLAIN")).code == 503


async def test_an_auth_without_a_mechanism() -> None:
    async with serving(**OPEN, on_auth=Accounts()) as served:
        client = await served.hello()
        assert (await client.command("AUTH")).code == 501
        assert (await client.command(f"AUTH PLAIN {PLAIN} {PLAIN}")).code == 501


async def test_max_allowed_unauthenticated_commands() -> None:
    async with serving(**OPEN, auth_optional=False, max_allowed_unauthenticated_commands=3) as served:
        client = await served.hello()
        assert await client.say("NOOP") == "250 OK"
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).startswith("535 ")  # does not count
        assert await client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await client.say("*") == "501 Authentication aborted"
        assert await client.say("NOOP") == "250 OK"
        assert await client.say("NOOP") == "421 Error: too many unauthenticated commands"
        await client.eof()


async def test_an_unknown_command_counts_and_gets_one_reply() -> None:
    async with serving(**OPEN, auth_optional=False, max_allowed_unauthenticated_commands=2) as served:
        client = await served.hello()
        assert await client.say("XYZZY") == "500 Error: command not recognized"
        assert await client.say("XYZZY") == "421 Error: too many unauthenticated commands"
        await client.eof()


async def test_quit_does_not_count() -> None:
    async with serving(**OPEN, auth_optional=False, max_allowed_unauthenticated_commands=1) as served:
        client = await served.hello()
        assert await client.say("QUIT") == "221 Bye"


@pytest.mark.parametrize(
    "options",
    [
        {"auth_optional": False, "max_allowed_unauthenticated_commands": False},
        {"auth_optional": True, "max_allowed_unauthenticated_commands": 2},
        {"auth_optional": False, "disabled_commands": ["AUTH"], "max_allowed_unauthenticated_commands": 2},
    ],
)
async def test_where_unauthenticated_commands_have_no_limit(options: dict[str, Any]) -> None:
    async with serving(**OPEN, **options) as served:
        client = await served.hello()
        for _ in range(15):
            assert await client.say("NOOP") == "250 OK"


async def test_after_auth_there_is_no_limit() -> None:
    async with serving(
        **OPEN, auth_optional=False, max_allowed_unauthenticated_commands=2, on_auth=Accounts()
    ) as served:
        client = await served.hello()
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        for _ in range(5):
            assert await client.say("NOOP") == "250 OK"
