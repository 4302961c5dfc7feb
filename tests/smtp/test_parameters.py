"""Transcripts of the parameters of MAIL and RCPT, each right and wrong: whole, byte by byte and cut at each place."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox import RRVS, DeliverBy, Envelope, Recipient, Reject, Session
from pillarbox.smtp.dsn import _utf8_address
from pillarbox.smtp.reply import Refused
from transcript import Replay, replay, replay_every_way

# Without an EHLO: its keywords are a matter of their own, and a parameter need not be announced to be read.
HELLO = "S: 220\nC: HELO x\nS: 250\n"
MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"


class Seen:
    """What the handlers see."""

    def __init__(self) -> None:
        self.envelope = Envelope()
        self.recipient = Recipient("")

    def on_mail_from(self, address: Any, session: Session) -> None:
        self.envelope = session.envelope

    def on_rcpt_to(self, address: Recipient, session: Session) -> None:
        self.recipient = address


async def after(parameters: str, command: str = MAIL, **options: Any) -> Seen:
    """Say a command that is accepted, at every split; return what the handlers saw of it."""
    seen = Seen()

    def both_accepted(_: Replay) -> None:
        if command == MAIL:
            assert seen.envelope.mail_from is not None

    text = HELLO + (f"C: {MAIL}\nS: 250 Accepted\n" if command == RCPT else "")
    hooks = {"on_mail_from": seen.on_mail_from, "on_rcpt_to": seen.on_rcpt_to}
    await replay_every_way(f"{text}C: {command} {parameters}\nS: 250 Accepted\n", both_accepted, **hooks, **options)
    return seen


async def refused(parameters: str, answer: str, command: str = MAIL, **options: Any) -> None:
    """Say a command that is refused, at every split; nothing of it stays."""

    def nothing_stays(replayed: Replay) -> None:
        envelope = replayed.session.envelope
        assert envelope == Envelope(mail_from=envelope.mail_from)

    text = HELLO + (f"C: {MAIL}\nS: 250\n" if command == RCPT else "")
    text += f"C: {command} {parameters}\nS: {answer}\n"
    if command == MAIL:  # the transaction has not begun
        text += f"C: {RCPT}\nS: 503 5.5.1 Error: need MAIL command\n"
    await replay_every_way(text, nothing_stays, hide_enhanced_status_codes=False, **options)


# --- Which there are, and their form

ON: dict[str, Any] = {"deliver_by": True, "future_release": 3600, "mt_priority": True, "rrvs": True, "hide_dsn": False}
RIGHT = {
    "BY": "60;R",
    "HOLDFOR": "60",
    "HOLDUNTIL": "2001-01-01T00:00:00Z",
    "MT-PRIORITY": "3",
    "AUTH": "<>",
    "RET": "HDRS",
    "ENVID": "x",
    "BODY": "8BITMIME",
    "SIZE": "5",
}
RIGHT_RCPT = {"RRVS": "2001-01-01T00:00:00Z", "NOTIFY": "NEVER", "ORCPT": "rfc822;a@b"}
EVERY = [(MAIL, *each) for each in RIGHT.items()] + [(RCPT, *each) for each in RIGHT_RCPT.items()]


@pytest.mark.parametrize(("command", "keyword", "value"), EVERY, ids=lambda text: text.split(" ", 1)[0])
async def test_each_once_with_a_value(command: str, keyword: str, value: str) -> None:
    await after(f"{keyword}={value}", command, **ON)
    await after(f"{keyword.lower()}={value}", command, **ON)
    await refused(
        f"{keyword}={value} {keyword}={value}", f"501 5.5.4 Error: parameter {keyword} is given twice", command, **ON
    )
    needs = f"501 5.5.4 Error: parameter {keyword} needs a value"
    await refused(keyword, needs, command, **ON)
    await refused(f"{keyword}=", needs, command, **ON)


@pytest.mark.parametrize("flag", ["SMTPUTF8", "REQUIRETLS"])
async def test_a_flag_takes_no_value(flag: str) -> None:
    for end in ("=", "=1"):
        await refused(flag + end, f"501 5.5.4 Error: parameter {flag} takes no value")
    await refused(f"{flag} {flag}", f"501 5.5.4 Error: parameter {flag} is given twice")


OFF = [(MAIL, "BY", "60;R"), (MAIL, "HOLDFOR", "60"), (MAIL, "HOLDUNTIL", "2001-01-01T00:00:00Z")]
OFF += [(MAIL, "MT-PRIORITY", "3"), (RCPT, "RRVS", "2001-01-01T00:00:00Z"), (MAIL, "XFOO", "+ä"), (RCPT, "XFOO", "1")]


@pytest.mark.parametrize(("command", "keyword", "value"), OFF)
async def test_what_is_off_is_unknown_or_with_lenient_parameters_raw(command: str, keyword: str, value: str) -> None:
    answer = f"555 5.5.4 Error: parameter {keyword} is not supported"
    await refused(f"{keyword}=x", answer, command)
    value = value if value.isascii() else "raw+2b"
    for sent, kept in ((f"={value}", value), ("", True), ("=", "")):
        seen = await after(f"{keyword}{sent}", command, lenient_parameters=True)
        address = seen.envelope.mail_from if command == MAIL else seen.recipient
        assert address is not None
        assert address.args == {keyword: kept}
    assert (seen.envelope.deliver_by, seen.envelope.hold_until, seen.envelope.mt_priority) == (None, None, None)
    assert seen.recipient.rrvs is None


@pytest.mark.parametrize("parameters", ["X=1 X=2", "x X=1", "=1", "X_Y=1", "ä=1", "SIZE=x", "BODY"])
async def test_lenient_parameters_lets_in_what_is_unknown_and_nothing_else(parameters: str) -> None:
    await replay_every_way(HELLO + f"C: {MAIL} {parameters}\nS: 501\n", lenient_parameters=True)


# --- AUTH (RFC 4954 5)


async def submitter(value: str, *, user: object = "ann", **options: Any) -> str | None:
    """Return the submitter that the handler sees."""
    seen = Seen()
    session = Session(remote_address="192.0.2.1")
    session.user = user
    text = HELLO + f"C: {MAIL}{value}\nS: 250 Accepted\n"
    await replay(text, session=session, on_mail_from=seen.on_mail_from, **options)
    return seen.envelope.submitter


@pytest.mark.parametrize(
    ("value", "means"),
    [
        (" AUTH=e+3Dmc2@example.com", "e=mc2@example.com"),
        (" AUTH=<>", ""),
        (" AUTH=+3C+3E", ""),
        (" AUTH=<a@example.com>", "a@example.com"),  # as curl writes it
        (" AUTH=ann", ""),  # as Dovecot writes it
        (" AUTH=a..b@example.com", ""),
        (" AUTH=a@-", ""),
        ("", None),
        (' AUTH="a+20b"@example.com', '"a b"@example.com'),
        (" AUTH=a@[192.0.2.1]", "a@[192.0.2.1]"),
    ],
)
async def test_auth(value: str, means: str | None) -> None:
    assert await submitter(value) == means
    assert await submitter(value, user=None) == (None if means is None else "")  # nobody vouches for it


async def test_auth_stays_as_it_was_sent_in_args() -> None:
    seen = await after("AUTH=e+3Dmc2@example.com")
    assert seen.envelope.mail_from is not None
    assert seen.envelope.mail_from.args == {"AUTH": "e+3Dmc2@example.com"}
    assert seen.envelope.submitter == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("e=mc2@example.com", "AUTH is not valid xtext"),
        ("a+2b@example.com", "AUTH is not valid xtext"),
        ("a+0D+0A@example.com", "AUTH is not valid xtext"),
    ],
)
async def test_auth_that_is_none(value: str, problem: str) -> None:
    await refused(f"AUTH={value}", f"501 5.5.4 Error: {problem}")


async def test_auth_with_lenient_addresses_and_without_the_command() -> None:
    assert await submitter(" AUTH=ann", lenient_address_parsing=True) == "ann"
    await refused("AUTH=<>", "555 5.5.4 Error: parameter AUTH is not supported", disabled_commands=["AUTH"])


# --- DSN (RFC 3461, RFC 6533)


@pytest.mark.parametrize("length", [100, 101])
async def test_the_length_of_envid(length: int) -> None:
    value = "x" * length
    text = "250 2.1.0 Accepted" if length == 100 else "501 5.5.4 Error: ENVID is longer than 100 characters"
    await replay(HELLO + f"C: {MAIL} ENVID={value}\nS: {text}", hide_dsn=False, hide_enhanced_status_codes=False)


@pytest.mark.parametrize("length", [500, 501])
async def test_the_length_of_orcpt(length: int) -> None:
    value = "rfc822;" + "x" * (length - len("rfc822;"))
    answer = "250 2.1.5 Accepted" if length == 500 else "501 5.5.4 Error: ORCPT is longer than 500 characters"
    text = HELLO + f"C: {MAIL}\nS: 250\nC: {RCPT} ORCPT={value}\nS: {answer}"
    await replay(text, hide_dsn=False, hide_enhanced_status_codes=False)


ORCPT = {
    "rfc822;a+2Bb@example.com": ("rfc822", "a+b@example.com"),
    "RFC822;A@Example.com": ("rfc822", "A@Example.com"),
    "x400;/G=Ann/": ("x400", "/G=Ann/"),
    r"utf-8;j\x{F6}@example.com": ("utf-8", "jö@example.com"),
    r"UTF-8;\x{1f600}\x{20}\x{2B}\x{3D}\x{5c}@b": ("utf-8", "😀 +=\\@b"),
    r"utf-8;\x{10FFFF}@b": ("utf-8", "\U0010ffff@b"),
    "utf-8;a@b;c": ("utf-8", "a@b;c"),
    # What is labelled utf-8 and is not in its form is plain xtext.
    "utf-8;a+2Bb@c": ("utf-8", "a+b@c"),
    r"utf-8;\x{41}@b": ("utf-8", r"\x{41}@b"),
    r"utf-8;\x{D800}@b": ("utf-8", r"\x{D800}@b"),
}


async def test_a_report_that_is_wished_for_twice() -> None:
    seen = await after("NOTIFY=SUCCESS,success,DELAY", RCPT, hide_dsn=False)
    assert seen.recipient.dsn.notify == ("SUCCESS", "DELAY")


@pytest.mark.parametrize("value", [value for value in ORCPT if "=" not in value])
async def test_orcpt(value: str) -> None:
    seen = await after(f"ORCPT={value}", RCPT, hide_dsn=False)
    assert seen.recipient.dsn.orcpt == ORCPT[value]
    assert seen.recipient.args == {"ORCPT": value}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a@b", "ORCPT must be type;address"),
        ("rfc822;", "ORCPT must be type;address"),
        (";a@b", "ORCPT must be type;address"),
        ("rfc,822;a@b", "ORCPT must be type;address"),
        ("rfc822;a+C3+B6@b", "ORCPT must be printable ASCII"),
        ("rfc822;a+2b", "ORCPT is not valid xtext"),
        (r"utf-8;\x{01}@b", "control or invisible character in ORCPT"),
        (r"utf-8;a\x{200B}@b", "control or invisible character in ORCPT"),
        ("utf-8;a+2b", "ORCPT is not valid xtext"),
    ],
)
async def test_orcpt_that_is_none(value: str, problem: str) -> None:
    await refused(f"ORCPT={value}", f"501 5.5.4 Error: {problem}", RCPT, hide_dsn=False)


async def test_orcpt_in_utf8_needs_smtputf8() -> None:
    command = f"C: {RCPT} ORCPT=utf-8;jö\\x{{2B}}@bücher.example\n"
    seen = Seen()
    await replay_every_way(
        HELLO + f"C: {MAIL} SMTPUTF8\nS: 250\n{command}S: 250 Accepted\n"
        f"C: {RCPT} ORCPT=rfc822;jö@b\nS: 501 Error: ORCPT is not valid xtext\n",
        hide_dsn=False,
        on_rcpt_to=seen.on_rcpt_to,
    )
    assert seen.recipient.dsn.orcpt == ("utf-8", "jö+@bücher.example")
    await replay_every_way(HELLO + f"C: {MAIL}\nS: 250\n{command}S: 553\n", hide_dsn=False)


async def test_orcpt_of_postfix_labels_utf8_as_rfc822() -> None:
    seen = Seen()
    await replay_every_way(
        HELLO + f"C: {MAIL} SMTPUTF8\nS: 250\nC: {RCPT} ORCPT=rfc822;+CE+B8@example.com\nS: 250 Accepted\n"
        f"C: {RCPT} ORCPT=rfc822;+CE@b\nS: 501 Error: ORCPT is not valid xtext\n",
        hide_dsn=False,
        on_rcpt_to=seen.on_rcpt_to,
    )
    assert seen.recipient.dsn.orcpt == ("rfc822", "θ@example.com")


def unitext(address: str, *, ascii_only: bool) -> str:
    """Encode as RFC 6533 3 says."""
    special = {" ", "\\", "+", "="}
    return "".join(
        f"\\x{{{ord(each):02X}}}" if each in special or (ascii_only and not each.isascii()) else each
        for each in address
    )


ADDRESS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u200b\u2060\ufeff"), min_size=1, max_size=40
)


@given(address=ADDRESS, ascii_only=st.booleans())
def test_an_address_comes_out_of_unitext_as_it_went_in(address: str, ascii_only: bool) -> None:
    assert _utf8_address(unitext(address, ascii_only=ascii_only)) == address


@given(st.text(st.sampled_from("\\x{}019AFdD8+=; aä\x00\u200b"), max_size=30))
def test_whatever_unitext_is_it_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert not set(_utf8_address(text)) & {"\0", "\u200b"}


async def test_envid_is_printable_ascii() -> None:
    await refused("ENVID=a+C3+B6", "501 5.5.4 Error: ENVID must be printable ASCII", hide_dsn=False)
    await refused("ENVID=+00", "501 5.5.4 Error: ENVID is not valid xtext", hide_dsn=False)
    assert (await after("ENVID=a+20+2Bb", hide_dsn=False)).envelope.dsn.envid == "a +b"


# --- REQUIRETLS (RFC 8689)


@pytest.mark.parametrize(
    ("parameters", "ret"),
    [
        ("REQUIRETLS RET=FULL", "HDRS"),
        ("RET=FULL REQUIRETLS", "HDRS"),
        ("RET=HDRS REQUIRETLS", "HDRS"),
        ("REQUIRETLS", None),
        ("RET=FULL", "FULL"),
    ],
)
async def test_under_requiretls_a_report_returns_the_header_only(parameters: str, ret: str | None) -> None:
    seen = Seen()
    session = Session(remote_address="192.0.2.1", secure=True)
    text = HELLO + f"C: {MAIL} {parameters}\nS: 250"
    await replay(text, session=session, on_mail_from=seen.on_mail_from, hide_dsn=False, hide_requiretls=False)
    assert seen.envelope.dsn.ret == ret
    assert seen.envelope.require_tls is ("REQUIRETLS" in parameters)


async def test_requiretls_in_plaintext() -> None:
    for hidden in (False, True):
        await refused("REQUIRETLS", "530 5.7.10 Error: REQUIRETLS needs TLS", hide_requiretls=hidden)


# --- DELIVERBY (RFC 2852)


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("60;R", DeliverBy(60, "return")),
        ("+125;N", DeliverBy(125, "notify")),
        ("-30;nt", DeliverBy(-30, "notify", trace=True)),
        ("0;N", DeliverBy(0, "notify")),
        ("999999999;rT", DeliverBy(999_999_999, "return", trace=True)),
    ],
)
async def test_deliver_by(value: str, means: DeliverBy) -> None:
    assert (await after(f"BY={value}", deliver_by=True)).envelope.deliver_by == means


@pytest.mark.parametrize(
    "value", ["60", "60;", ";R", "60;X", "60;RX", "60;RTT", "1e3;R", "60 ;R", "1000000000;R", "٣;R"]
)
async def test_deliver_by_that_is_none(value: str) -> None:
    await replay_every_way(HELLO + f"C: {MAIL} SMTPUTF8 BY={value}\nS: 501\n", deliver_by=True)


@pytest.mark.parametrize("value", ["0;R", "-1;RT"])
async def test_what_is_to_be_returned_has_time(value: str) -> None:
    await refused(f"BY={value}", "501 5.5.4 Error: BY with R needs a time above 0", deliver_by=True)


async def test_the_least_time() -> None:
    await refused("BY=119;R", "555 5.5.4 Error: BY must be 120 seconds or more with R", deliver_by=120)
    assert (await after("BY=120;R", deliver_by=120)).envelope.deliver_by == DeliverBy(120, "return")
    assert (await after("BY=1;N", deliver_by=120)).envelope.deliver_by == DeliverBy(1, "notify")


# --- FUTURERELEASE (RFC 4865)

SECOND = timedelta(seconds=1)


def at(seconds: float, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    """Return the date-time so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime(form)


async def test_hold_for() -> None:
    before = datetime.now(UTC)
    held = (await after("HOLDFOR=3600", future_release=3600)).envelope.hold_until
    assert held is not None
    assert held.tzinfo == UTC
    assert before <= held - 3600 * SECOND <= datetime.now(UTC)
    too_long = "501 5.5.4 Error: HOLDFOR is more than 3600 seconds away"
    await refused("HOLDFOR=3601", too_long, future_release=3600)


async def test_hold_until() -> None:
    for value in ("2001-02-03T04:05:06Z", "2001-02-03T06:05:06+02:00", "2001-02-03t03:05:06.000-01:00"):
        held = (await after(f"HOLDUNTIL={value}", future_release=60)).envelope.hold_until
        assert held == datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    await after(f"HOLDUNTIL={at(3000)}", future_release=3600)
    too_long = "501 5.5.4 Error: HOLDUNTIL is more than 3600 seconds away"
    await refused(f"HOLDUNTIL={at(3900)}", too_long, future_release=3600)


HOLD_NOTHING = [
    "HOLDFOR=-1",
    "HOLDFOR=+1",
    "HOLDFOR=1.5",
    "HOLDFOR=1234567890",
    "HOLDFOR=x",
    "HOLDUNTIL=60",
    "HOLDUNTIL=2001-02-30T00:00:00Z",
    "HOLDUNTIL=2001-02-03",
    "HOLDUNTIL=2001-02-03T04:05:06",
    "HOLDFOR=1 HOLDUNTIL=2001-02-03T04:05:06Z",
    "HOLDUNTIL=2001-02-03T04:05:06Z HOLDFOR=0",
]


@pytest.mark.parametrize("value", HOLD_NOTHING)
async def test_hold_that_is_none(value: str) -> None:
    await replay_every_way(HELLO + f"C: {MAIL} {value}\nS: 501\n", future_release=60)


# --- MT-PRIORITY (RFC 6710)


@pytest.mark.parametrize("value", range(-9, 10))
async def test_mt_priority(value: int) -> None:
    assert (await after(f"MT-PRIORITY={value}", mt_priority=True)).envelope.mt_priority == value


@pytest.mark.parametrize("value", ["10", "-10", "-0", "+1", "00", "1.0", "x", "-"])
async def test_mt_priority_that_is_none(value: str) -> None:
    await refused(f"MT-PRIORITY={value}", "501 5.5.4 Error: MT-PRIORITY must be from -9 to 9", mt_priority=True)


async def test_a_priority_that_the_handler_changes_is_told() -> None:
    def on_mail_from(address: Any, session: Session) -> None:
        envelope = session.envelope
        if envelope.mt_priority is not None and envelope.mt_priority > 0 and session.user is None:
            envelope.mt_priority = 0

    text = (
        HELLO + f"C: {MAIL} MT-PRIORITY=6\nS: 250 2.3.6 0 is the new priority of the message\nC: RSET\nS: 250\n"
        f"C: {MAIL} MT-PRIORITY=-3\nS: 250 2.1.0 Accepted\nC: RSET\nS: 250\nC: {MAIL}\nS: 250 2.1.0 Accepted\n"
    )
    await replay_every_way(text, mt_priority=True, on_mail_from=on_mail_from, hide_enhanced_status_codes=False)


# --- RRVS (RFC 7293)


@pytest.mark.parametrize(
    ("value", "action"),
    [("", "reject"), (";R", "reject"), (";r", "reject"), (";C", "continue"), (";c", "continue")],
)
async def test_rrvs(value: str, action: Any) -> None:
    seen = await after(f"RRVS=2014-04-03T23:01:00-08:00{value}", RCPT, rrvs=True)
    assert seen.recipient.rrvs == RRVS(datetime(2014, 4, 4, 7, 1, tzinfo=UTC), action)


@pytest.mark.parametrize("value", ["2014", "2014-04-03T23:01:00Z;", "2014-04-03T23:01:00Z;X", ";C"])
@pytest.mark.parametrize("also", ["", "2014-04-03T23:01:00.5Z"])
async def test_rrvs_that_is_none(value: str, also: str) -> None:
    await replay(HELLO + f"C: {MAIL}\nS: 250\nC: {RCPT} RRVS={also or value}\nS: 501\n", rrvs=True)


# --- LIMITS (RFC 9422)


async def test_one_recipient_too_many_at_every_split() -> None:
    rcpt = "C: RCPT TO:<{}@example.com>\nS: {}\n"
    accepted, too_many = "250 2.1.5 Accepted", "452 4.5.3 Error: too many recipients"
    text = HELLO + f"C: {MAIL}\nS: 250\n"
    text += rcpt.format("a", accepted) + rcpt.format("A", accepted)  # the same again
    text += rcpt.format("b", accepted) + rcpt.format("c", too_many) + rcpt.format("c", too_many)
    text += f"C: RSET\nS: 250\nC: {MAIL}\nS: 250\n" + rcpt.format("c", accepted)

    def check(replayed: Replay) -> None:
        assert [each.address for each in replayed.session.envelope.rcpt_to] == ["c@example.com"]

    await replay_every_way(text, check, max_recipients=2, hide_enhanced_status_codes=False)


async def test_a_refused_recipient_does_not_count_and_the_handler_is_not_asked_too_often() -> None:
    asked: list[str] = []

    def on_rcpt_to(address: Recipient, session: Session) -> None:
        asked.append(address.address)
        if address.address.startswith("no"):
            raise Reject

    text = HELLO + f"C: {MAIL}\nS: 250\nC: RCPT TO:<no@b>\nS: 550\nC: RCPT TO:<a@b>\nS: 250\nC: RCPT TO:<c@b>\nS: 452\n"
    await replay(text, max_recipients=1, on_rcpt_to=on_rcpt_to)
    assert asked == ["no@b", "a@b"]


async def test_in_lmtp_each_rcpt_counts() -> None:
    replayed = Replay(lmtp=True, max_recipients=2)
    flights = [b"LHLO x\r\n", f"{MAIL}\r\n".encode(), *[f"{RCPT}\r\n".encode()] * 3]
    said = await replayed.run(flights)
    assert "250-LIMITS RCPTMAX=2" in said[1]
    assert [lines[0][:3] for lines in said[2:]] == ["250", "250", "250", "452"]


async def test_one_message_too_many_at_every_split() -> None:
    message = f"C: {MAIL}\nC: {RCPT}\nC: DATA\nS: 250\nS: 250\nS: 354\nC: .\nS: 250\n"
    text = HELLO + message + f"C: MAIL FROM:<..>\nS: 501\nC: {MAIL}\nS: 250\nC: RSET\nS: 250\nC: NOOP\nS: 250\n"
    text += f"C: {MAIL}\nS: 421 Error: too many messages in this connection\nX"

    def check(replayed: Replay) -> None:
        assert len(replayed.messages) == 1

    await replay_every_way(text, check, max_messages=2)


@pytest.mark.parametrize(
    ("options", "announced"),
    [
        ({}, "250-LIMITS RCPTMAX=1000"),
        ({"max_recipients": 5, "max_messages": 9}, "250-LIMITS MAILMAX=9 RCPTMAX=5"),
        ({"max_recipients": None, "max_messages": 9}, "250-LIMITS MAILMAX=9"),
        ({"max_recipients": None}, None),
        ({"hide_limits": True, "max_messages": 9}, None),
    ],
)
@pytest.mark.parametrize("lmtp", [False, True])
async def test_limits_are_announced(options: dict[str, Any], announced: str | None, lmtp: bool) -> None:
    said = await Replay(**options, lmtp=lmtp).run([b"LHLO x\r\n" if lmtp else b"EHLO x\r\n"])
    assert [line for line in said[1] if "LIMITS" in line] == ([] if announced is None else [announced])


# --- SMTPUTF8 (RFC 6531)


async def test_utf8_needs_smtputf8() -> None:
    text = """
        C: MAIL FROM:<jö@example.com>
        S: 550 5.6.7 Error: a non-ASCII address needs the SMTPUTF8 parameter
        C: MAIL FROM:<a@example.com>
        S: 250 2.1.0 Accepted
        C: RCPT TO:<jö@example.com>
        S: 553 5.6.7 Error: a non-ASCII address needs the SMTPUTF8 parameter
        C: VRFY jö
        S: 553 5.6.7 Error: a non-ASCII address needs the SMTPUTF8 parameter
        C: EXPN jö
        S: 553 5.6.7 Error: a non-ASCII address needs the SMTPUTF8 parameter
        C: VRFY jö smtputf8
        S: 252 2.0.0 Cannot VRFY user, but will accept message and attempt delivery
        C: RSET
        S: 250
        C: MAIL FROM:<jö@bücher.example> SMTPUTF8
        S: 250 2.1.0 Accepted
        C: RCPT TO:<jö@example.com>
        S: 250 2.1.5 Accepted
    """
    await replay_every_way(HELLO + text, on_expn=lambda name, session: None, hide_enhanced_status_codes=False)


async def test_an_a_label_needs_no_smtputf8() -> None:
    text = HELLO + "C: MAIL FROM:<a@xn--bcher-kva.example>\nS: 250\nC: RCPT TO:<a@xn--bcher-kva.example>\nS: 250\n"
    await replay_every_way(text)


async def test_a_reply_is_in_utf8_only_where_it_names_a_mailbox() -> None:
    def on_rcpt_to(address: Recipient, session: Session) -> None:
        code = int(address.address[:3])
        raise Reject(code, "try <jö@example.com>")

    def on_expn(name: str, session: Session) -> list[str]:
        return ["jö@example.com", "jo@example.com"]

    text = """
        C: MAIL FROM:<a@example.com>
        S: 250
        C: RCPT TO:<551@example.com>
        S: 550 5.6.8 Error: the mailbox can only be shown in UTF-8
        C: RCPT TO:<550@example.com>
        S: 550 5.1.1 try <j?@example.com>
        C: RSET
        S: 250
        C: MAIL FROM:<a@example.com> SMTPUTF8
        S: 250
        C: RCPT TO:<551@example.com>
        S: 551 5.0.0 try <jö@example.com>
        C: RCPT TO:<550@example.com>
        S: 550 5.1.1 try <j?@example.com>
        C: EXPN all
        S: 550 5.6.8 Error: the mailbox can only be shown in UTF-8
        C: EXPN all SMTPUTF8
        S: 250-2.1.5 jö@example.com
        S: 250 2.1.5 jo@example.com
    """
    options: dict[str, Any] = {"on_rcpt_to": on_rcpt_to, "on_expn": on_expn}
    await replay_every_way(HELLO + text, **options, hide_enhanced_status_codes=False)


async def test_vrfy_may_refuse_in_utf8() -> None:
    def on_vrfy(address: str, session: Session) -> str:
        raise Reject(551, "try <jö@example.com>")

    text = HELLO + (
        "C: VRFY jo\nS: 550 Error: the mailbox can only be shown in UTF-8\n"
        "C: VRFY jo SMTPUTF8\nS: 551 try <jö@example.com>\n"
    )
    await replay_every_way(text, on_vrfy=on_vrfy)
