"""SMTP extensions: what MAIL and RCPT may ask for where an option offers it, and limits on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pillarbox import RRVS, ConfigurationError, DeliverBy, Options, Session
from support import PLAIN, Inbox, serving

MAIL = "MAIL FROM:<a@example.com>"
RCPT = "RCPT TO:<b@example.com>"


async def offered(**options: Any) -> dict[str, str]:
    async with serving(**options) as served:
        client = await served.client()
        return await client.ehlo()


async def delivered(inbox: Inbox, client: Any, mail: str, rcpt: str = RCPT) -> Any:
    """Send a message and return its envelope."""
    assert await client.say(mail) == "250 Accepted"
    assert await client.say(rcpt) == "250 Accepted"
    assert str(await client.data(b"hello\r\n")) == "250 OK: message queued"
    return inbox[-1].envelope


async def test_deliver_by() -> None:
    assert "DELIVERBY" not in await offered()
    assert (await offered(deliver_by=True))["DELIVERBY"] == ""
    inbox = Inbox()
    async with serving(deliver_by=120, on_data=inbox) as served:
        client = await served.client()
        assert (await client.ehlo())["DELIVERBY"] == "120"
        assert (await client.command(f"{MAIL} BY=60;R")).code == 555
        envelope = await delivered(inbox, client, f"{MAIL} BY=180;RT")
    assert envelope.deliver_by == DeliverBy(180, "return", trace=True)


async def test_future_release() -> None:
    assert "FUTURERELEASE" not in await offered()
    inbox = Inbox()
    async with serving(future_release=3600, on_data=inbox) as served:
        client = await served.client()
        before = datetime.now(UTC).replace(microsecond=0)
        longest, _, last = (await client.ehlo())["FUTURERELEASE"].partition(" ")
        until = datetime.fromisoformat(last)
        assert longest == "3600"
        assert before <= until - timedelta(hours=1) <= datetime.now(UTC)
        assert (await client.command(f"{MAIL} HOLDFOR=3601")).code == 501
        # What was announced as the last moment is one.
        assert (await delivered(inbox, client, f"{MAIL} HOLDUNTIL={last}")).hold_until == until
        envelope = await delivered(inbox, client, f"{MAIL} HOLDFOR=60")
        assert before + timedelta(seconds=60) <= envelope.hold_until <= until


async def test_mt_priority() -> None:
    assert "MT-PRIORITY" not in await offered()
    assert (await offered(mt_priority="MIXER"))["MT-PRIORITY"] == "MIXER"
    inbox = Inbox()
    async with serving(mt_priority=True, on_data=inbox) as served:
        client = await served.client()
        assert (await client.ehlo())["MT-PRIORITY"] == ""
        assert (await delivered(inbox, client, f"{MAIL} MT-PRIORITY=-4")).mt_priority == -4
        assert (await delivered(inbox, client, MAIL)).mt_priority is None


async def test_rrvs() -> None:
    assert "RRVS" not in await offered()
    inbox = Inbox()
    async with serving(rrvs=True, on_data=inbox) as served:
        client = await served.client()
        assert (await client.ehlo())["RRVS"] == ""
        envelope = await delivered(inbox, client, MAIL, f"{RCPT} RRVS=2014-04-03T23:01:00Z;C")
    assert envelope.rcpt_to[0].rrvs == RRVS(datetime(2014, 4, 3, 23, 1, tzinfo=UTC), "continue")


@pytest.mark.parametrize("parameter", ["BY=1;R", "HOLDFOR=1", "MT-PRIORITY=1", "XFOO"])
async def test_lenient_parameters_takes_what_is_not_offered(parameter: str) -> None:
    async with serving() as served:
        client = await served.hello()
        assert (await client.command(f"{MAIL} {parameter}")).code == 555
    inbox = Inbox()
    async with serving(lenient_parameters=True, on_data=inbox) as served:
        client = await served.hello()
        envelope = await delivered(inbox, client, f"{MAIL} {parameter}")
    keyword, equals, value = parameter.partition("=")
    assert envelope.mail_from.args == {keyword: value if equals else True}


async def test_the_submitter_that_a_client_names_after_its_login() -> None:
    inbox = Inbox()
    options: dict[str, Any] = {"on_auth": lambda auth, session: True, "allow_insecure_auth": True, "on_data": inbox}
    async with serving(**options) as served:
        client = await served.hello()
        assert (await delivered(inbox, client, f"{MAIL} AUTH=e+3Dmc2@example.com")).submitter == ""
        assert (await delivered(inbox, client, MAIL)).submitter is None
        assert (await client.command(f"AUTH PLAIN {PLAIN}")).code == 235
        assert (await delivered(inbox, client, f"{MAIL} AUTH=e+3Dmc2@example.com")).submitter == "e=mc2@example.com"
        assert (await delivered(inbox, client, f"{MAIL} AUTH=<>")).submitter == ""


# --- LIMITS


async def test_max_recipients_by_default() -> None:
    async with serving() as served:
        client = await served.hello()
        await client.say(MAIL)
        await client.send(b"".join(b"RCPT TO:<%d@example.com>\r\n" % number for number in range(1001)))
        codes = [(await client.reply()).code for _ in range(1001)]
    assert codes == [250] * 1000 + [452]


@pytest.mark.parametrize("lmtp", [False, True])
async def test_max_recipients(lmtp: bool) -> None:
    async with serving(max_recipients=2, lmtp=lmtp, hide_enhanced_status_codes=False) as served:
        client = await served.client()
        assert (await client.ehlo(verb="LHLO" if lmtp else "EHLO"))["LIMITS"] == "RCPTMAX=2"
        await client.say(MAIL)
        said = [await client.say(f"RCPT TO:<{each}@example.com>") for each in "abc"]
        assert said[2] == "452 4.5.3 Error: too many recipients"
        assert (await client.data(b"hello\r\n")).code == 250  # for those that there are
    assert "RCPTMAX" not in (await offered(max_recipients=None, max_messages=3))["LIMITS"]


async def test_max_messages() -> None:
    async with serving(max_messages=2, hide_enhanced_status_codes=False) as served:
        client = await served.client()
        assert (await client.ehlo())["LIMITS"] == "MAILMAX=2 RCPTMAX=1000"
        for _ in range(2):
            assert await client.deliver() == "250 2.6.0 OK: message queued"
        assert await client.say(MAIL) == "421 4.7.0 Error: too many messages in this connection"
        await client.eof()
        again = await served.hello()  # another connection counts from the beginning
        assert await again.deliver() == "250 2.6.0 OK: message queued"


async def test_hide_limits_hides_them_and_they_hold() -> None:
    async with serving(hide_limits=True, max_recipients=1) as served:
        client = await served.client()
        assert "LIMITS" not in await client.ehlo()
        await client.say(MAIL)
        assert await client.say(RCPT) == "250 Accepted"
        assert await client.say("RCPT TO:<c@example.com>") == "452 Error: too many recipients"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_recipients", 0),
        ("max_recipients", 1_000_000),
        ("max_messages", -1),
        ("deliver_by", 0),
        ("deliver_by", 10**9),
        ("deliver_by", "60"),
        ("future_release", 0),
        ("future_release", 10**9),
        ("mt_priority", "two words"),
        ("mt_priority", ""),
        ("mt_priority", 3),
        ("rrvs", 1),
    ],
)
def test_what_cannot_be_announced_is_an_error(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"option {option}"):
        Options(**{option: value})


async def test_a_priority_that_on_mail_from_lowers() -> None:
    def on_mail_from(address: object, session: Session) -> None:
        session.envelope.mt_priority = 0

    async with serving(mt_priority=True, on_mail_from=on_mail_from, hide_enhanced_status_codes=False) as served:
        client = await served.hello()
        assert await client.say(f"{MAIL} MT-PRIORITY=9") == "250 2.3.6 0 is the new priority of the message"
