"""Trace header fields: the forms of RFC 5321 4.4, and nothing from outside gets out of its place."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.session import Address, Recipient, Session, TLSInfo
from pillarbox.trace import received_header, return_path_header

DATE = datetime(2026, 3, 7, 9, 5, 3, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
HOSTILE = [
    "a\r\nBcc: x@y",
    "a\nb",
    "a) by evil",
    "a(b",
    "a\\",
    "a\x00b",
    "a\u2028b",
    "a\x85b",
    "",
    "a b",
    "x" * 300,
    "é.example",
]


def session(**fields: Any) -> Session:
    made = Session(remote_address=fields.pop("address", "192.0.2.7"), lmtp=fields.pop("lmtp", False))
    made.opening_command = "LHLO" if made.lmtp else "EHLO"
    made.host_name_appears_as = "mail.example.org"
    made.envelope.mail_from = Address("a@example.org")
    made.envelope.rcpt_to = [Recipient("b@example.com")]
    fields.setdefault("username", fields.get("user"))
    for name, value in fields.items():
        setattr(made.envelope if name == "smtp_utf8" else made, name, value)
    return made


def received(s: Session, **more: Any) -> str:
    return received_header(s, by="mx.example.com", date=DATE, **more).decode()


def unfolded(text: str) -> str:
    assert text.endswith("\r\n")
    return re.sub(r"\r\n(?=[ \t])", "", text).replace("\t", " ").removesuffix("\r\n")


class TestReceived:
    def test_the_whole_field(self) -> None:
        s = session(secure=True, tls=TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384"), user="joe", transaction=3)
        assert received(s, confirmed_name="out.example.org") == (
            "Received: from mail.example.org (out.example.org [192.0.2.7])\r\n"
            "\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n"
            "\t(Authenticated sender: joe)\r\n"
            f"\tby mx.example.com (pillarbox) with ESMTPSA id {s.id}.3\r\n"
            "\tfor <b@example.com>;\r\n"
            "\tSat, 07 Mar 2026 09:05:03 -0330\r\n"
        )

    def test_the_least_there_can_be(self) -> None:
        s = session(opening_command="HELO", host_name_appears_as="box")
        s.envelope.rcpt_to = []
        assert received(s) == (
            f"Received: from box ([192.0.2.7])\r\n\tby mx.example.com (pillarbox) with SMTP id {s.id}.1;\r\n"
            "\tSat, 07 Mar 2026 09:05:03 -0330\r\n"
        )

    def test_ipv6_peer(self) -> None:
        assert "from mail.example.org ([IPv6:2001:db8::1])\r\n" in received(session(address="2001:db8::1"))

    def test_zone_of_a_link_local_peer_is_left_out(self) -> None:
        assert "([IPv6:fe80::1])" in received(session(address="fe80::1%eth0"))

    def test_unix_peer_has_no_address(self) -> None:
        assert received(session(address="", lmtp=True)).startswith("Received: from mail.example.org\r\n\tby ")

    @pytest.mark.parametrize("claimed", ["[192.0.2.1]", "[IPv6:2001:db8::5]", "desktop_1", "a.example"])
    def test_a_name_or_a_literal_is_shown(self, claimed: str) -> None:
        assert f"from {claimed} (" in received(session(host_name_appears_as=claimed))

    @pytest.mark.parametrize("claimed", [*HOSTILE, None])
    def test_any_other_claim_is_unknown(self, claimed: str | None) -> None:
        assert received(session(host_name_appears_as=claimed)).startswith("Received: from unknown ([192.0.2.7])\r\n")

    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_hostile_ptr_name_is_not_shown(self, name: str) -> None:
        assert "from mail.example.org ([192.0.2.7])\r\n" in received(session(), confirmed_name=name)

    @pytest.mark.parametrize(
        ("user", "shown"),
        [
            ("joe@example.org", "(Authenticated sender: joe@example.org)"),
            ("a) by evil (", "(Authenticated sender: a? by evil ?)"),
            ("a\\", "(Authenticated sender: a?)"),
            ("a\r\nX: y", "(Authenticated sender: a??X: y)"),
            ("jö", "(Authenticated sender: j?)"),
        ],
    )
    def test_the_user_stays_in_the_comment(self, user: str, shown: str) -> None:
        assert f" {shown} by " in unfolded(received(session(user=user)))

    def test_what_the_application_keeps_as_the_user_is_not_shown(self) -> None:
        shown = received(session(user={"password": "secret"}, username="joe"))
        assert "secret" not in shown
        assert "(Authenticated sender: joe)" in shown

    def test_the_user_in_utf8(self) -> None:
        assert "(Authenticated sender: jö)" in received(session(user="jö", smtp_utf8=True))

    @pytest.mark.parametrize(
        ("lmtp", "secure", "user", "plain", "utf8"),
        [
            (False, False, None, "ESMTP", "UTF8SMTP"),
            (False, True, None, "ESMTPS", "UTF8SMTPS"),
            (False, False, "u", "ESMTPA", "UTF8SMTPA"),
            (False, True, "u", "ESMTPSA", "UTF8SMTPSA"),
            (True, False, None, "LMTP", "UTF8LMTP"),
            (True, True, None, "LMTPS", "UTF8LMTPS"),
            (True, False, "u", "LMTPA", "UTF8LMTPA"),
            (True, True, "u", "LMTPSA", "UTF8LMTPSA"),
        ],
    )
    def test_the_protocol(self, lmtp: bool, secure: bool, user: str | None, plain: str, utf8: str) -> None:
        s = session(lmtp=lmtp, secure=secure, user=user)
        assert f" with {plain} id " in received(s)
        s.envelope.smtp_utf8 = True
        assert f" with {utf8} id " in received(s)

    def test_two_recipients_are_not_told_of_each_other(self) -> None:
        s = session()
        s.envelope.rcpt_to.append(Recipient("secret@example.com"))
        assert "for" not in received(s)
        assert "example.com>" not in received(s)

    def test_recipient_in_utf8(self) -> None:
        s = session(smtp_utf8=True)
        s.envelope.rcpt_to = [Recipient("ü@bücher.example")]
        assert "for <ü@bücher.example>;" in received(s)

    def test_domain_in_ascii_without_smtputf8(self) -> None:
        s = session()
        s.envelope.rcpt_to = [Recipient("b@bücher.example")]
        assert "for <b@xn--bcher-kva.example>;" in received(s)

    @pytest.mark.parametrize(
        ("address", "shown"),
        [("ü@bücher.example", ""), ("b@bücher.example", "for <b@xn--bcher-kva.example>;"), ("b@c.d", "for <b@c.d>;")],
    )
    def test_without_utf8_where_the_next_server_may_not_take_it(self, address: str, shown: str) -> None:
        s = session(user="jö", smtp_utf8=True)
        s.envelope.rcpt_to = [Recipient(address)]
        text = received(s, utf8=False)
        assert text.isascii()
        assert " with UTF8SMTP" in text
        assert shown in text
        assert ("for" in text) == bool(shown)

    @pytest.mark.parametrize("address", ["ü@example.com", "a@\u2603\u2603.example", "x" * 2000, "a\r\nb@c"])
    def test_what_cannot_stand_in_a_header_is_left_out(self, address: str) -> None:
        s = session()
        s.envelope.rcpt_to = [Recipient(address)]
        assert "for" not in received(s)

    def test_long_clauses_are_folded_between_words(self) -> None:
        s = session(user="u " * 90, host_name_appears_as="a" * 50 + ".example")
        text = received(s, confirmed_name="b" * 50 + ".example")
        assert text.startswith(f"Received: from {'a' * 50}.example\r\n\t({'b' * 50}.example [192.0.2.7])\r\n")
        assert max(len(line) for line in text.split("\r\n")) <= 78

    def test_local_time_with_offset(self) -> None:
        text = received_header(session(), by="mx").decode()
        date = text.rpartition(";")[2].strip()
        assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", date)
        assert abs(parsedate_to_datetime(date) - datetime.now(UTC)) < timedelta(minutes=1)

    def test_a_date_without_zone_is_local(self) -> None:
        naive = datetime(2026, 3, 7, 9, 5, 3)
        text = received_header(session(), by="mx", date=naive).decode()
        assert parsedate_to_datetime(text.rpartition(";")[2].strip()) == naive.astimezone()


class TestReturnPath:
    @pytest.mark.parametrize(
        ("sender", "shown"),
        [
            (Address("a@example.org"), "<a@example.org>"),
            (Address('"a b>"@example.org'), '<"a b>"@example.org>'),
            (Address(""), "<>"),
            (None, "<>"),
            (Address("a@bücher.example"), "<a@xn--bcher-kva.example>"),
            (Address("a\r\nX: y@example.org"), "<>"),
            (Address("x" * 2000), "<>"),
        ],
    )
    def test_the_reverse_path(self, sender: Address | None, shown: str) -> None:
        assert return_path_header(session_from(sender)) == f"Return-Path: {shown}\r\n".encode()

    def test_in_utf8(self) -> None:
        s = session_from(Address("ü@bücher.example"))
        s.envelope.smtp_utf8 = True
        assert return_path_header(s) == "Return-Path: <ü@bücher.example>\r\n".encode()

    def test_a_long_path_has_a_line_of_its_own(self) -> None:
        s = session_from(Address("x" * 200))
        assert return_path_header(s) == f"Return-Path:\r\n\t<{'x' * 200}>\r\n".encode()


def session_from(sender: Address | None) -> Session:
    s = session()
    s.envelope.mail_from = sender
    return s


@pytest.mark.promises("Storage", "No text of a client breaks out of a header field that the program adds.")
@given(
    claimed=st.text(max_size=300),
    name=st.text(max_size=300),
    user=st.text(max_size=5000),
    sender=st.text(max_size=2000),
    recipient=st.text(max_size=2000),
    utf8=st.booleans(),
)
def test_nothing_gets_out_of_its_field(
    claimed: str, name: str, user: str, sender: str, recipient: str, utf8: bool
) -> None:
    s = session(host_name_appears_as=claimed, user=user, smtp_utf8=utf8)
    s.envelope.mail_from = Address(sender)
    s.envelope.rcpt_to = [Recipient(recipient)]
    head = return_path_header(s) + received_header(s, by="mx.example.com", confirmed_name=name)
    lines = head.removesuffix(b"\r\n").split(b"\r\n")
    assert all(len(line) <= 998 and line.strip() for line in lines)
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))
    assert [line.partition(b":")[0] for line in lines if not line.startswith(b"\t")] == [b"Return-Path", b"Received"]
    message = message_from_bytes(head + b"Subject: x\r\n\r\nbody", policy=policy.default)
    assert message.keys() == ["Return-Path", "Received", "Subject"]
