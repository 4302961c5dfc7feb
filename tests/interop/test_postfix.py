"""Postfix, which relays to us by its SMTP and its LMTP client.

Its clients have no BDAT: BDAT_README says "Postfix SMTP server supports RFC 3030 CHUNKING (the BDAT command) without
BINARYMIME, in both smtpd(8) and postscreen(8)", and of the clients nothing.
"""

from __future__ import annotations

import quopri

import pytest

from interop.mta import FULL, LATER, LMTP, LMTP_UNIX, QUOTA, SMTP, TRANSPORTS
from interop.peers import BIG, HOST, NOBODY, RECIPIENT, SENDER, SIMPLE, TRICKY
from interop.postfix import MESSAGES, Start
from pillarbox import MessageStream, Reject, Session

BOB = "bob@example.com"
GREEK = "θ@example.com"


# --- Messages


@pytest.mark.proves("Postfix smtp", "a message arrives octet for octet", "8BITMIME")
@pytest.mark.proves("Postfix lmtp", "a message arrives octet for octet", "8BITMIME")
@pytest.mark.parametrize("content", [TRICKY, BIG], ids=["tricky", "big"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_arrives_as_it_was_sent(relay: Start, transport: str, content: bytes) -> None:
    mta = relay(transport)
    mta.send(RECIPIENT, BOB, content=content, options=("BODY=8BITMIME",))
    mail = mta.server.next()
    assert (mail.mail_from, sorted(mail.rcpt_to)) == (SENDER, [RECIPIENT, BOB])
    assert mail.body == content.partition(b"\r\n\r\n")[2]
    assert mail.hello == "mta.example.org"
    assert mail.transmission_type == ("ESMTP" if transport == SMTP else "LMTP")
    assert mail.body_type == "8bitmime"
    assert {mta.sent(RECIPIENT), mta.sent(BOB)} == {
        "250 2.6.0 OK: message " + ("queued" if transport == SMTP else "accepted")
    }
    assert mta.postfix.queue() == {}


@pytest.mark.proves("Postfix sendmail", "mail of a local program is relayed")
def test_the_command_sendmail(relay: Start) -> None:
    mta = relay()
    mta.postfix.sendmail("-f", SENDER, "-t", content=SIMPLE.replace(b"\r\n", b"\n"))
    mail = mta.server.next()
    assert (mail.mail_from, mail.rcpt_to, mail.body) == (SENDER, (RECIPIENT,), b"Hello.\r\n")
    mta.sent(RECIPIENT)


@pytest.mark.proves("Postfix smtp", "8-bit text becomes quoted-printable where 8BITMIME is not offered")
def test_without_8bitmime_it_converts(relay: Start) -> None:
    mta = relay(options={"hide_8bitmime": True, "hide_smtputf8": True})
    mta.send(content=TRICKY, options=("BODY=8BITMIME",))
    mail = mta.server.next()
    assert mail.body_type == "7bit"
    assert mail.content.isascii()
    assert mail.message["Content-Transfer-Encoding"] == "quoted-printable"
    assert quopri.decodestring(mail.body) == TRICKY.partition(b"\r\n\r\n")[2]


@pytest.mark.proves("Postfix smtp", "several messages in one connection")
def test_a_connection_is_used_again(relay: Start) -> None:
    mta = relay(smtp_connection_cache_destinations="static:all", smtp_connection_cache_on_demand="yes")
    assert len(set(mta.one_after_the_other())) < MESSAGES


@pytest.mark.proves("Postfix smtp", "many messages at once")
@pytest.mark.proves("Postfix lmtp", "many messages at once")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_messages(relay: Start, transport: str) -> None:
    mta = relay(transport)
    with mta.postfix.client() as smtp:
        for number in range(60):
            smtp.sendmail(SENDER, [f"user{number}@example.com"], SIMPLE)
    mails = [mta.server.next() for _ in range(60)]
    assert {mail.rcpt_to for mail in mails} == {(f"user{number}@example.com",) for number in range(60)}
    for number in range(60):
        mta.sent(f"user{number}@example.com")
    assert mta.postfix.queue() == {}


# --- Extensions


@pytest.mark.proves("Postfix smtp", "PIPELINING")
@pytest.mark.proves("Postfix lmtp", "PIPELINING")
@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not offered"])
@pytest.mark.parametrize("transport", [SMTP, LMTP])
def test_pipelining(relay: Start, transport: str, offered: bool) -> None:
    mta = relay(transport, options={"hide_pipelining": not offered}, debug_peer_list=HOST)
    mta.send(RECIPIENT, BOB, NOBODY)
    mta.server.next()
    mta.sent(BOB)
    dialogue = " ".join(mta.spoken())
    group = (
        "> MAIL > RCPT > RCPT > RCPT > DATA < < < < <" if offered else "> MAIL < > RCPT < > RCPT < > RCPT < > DATA <"
    )
    assert group in dialogue


@pytest.mark.proves("Postfix smtp", "hundreds of recipients in one group of commands, some of them refused")
def test_a_long_group_of_commands(relay: Start) -> None:
    mta = relay(smtp_destination_recipient_limit="1000")
    recipients = [f"user{number}@example.com" for number in range(400)]
    with mta.postfix.client() as smtp:
        smtp.sendmail(SENDER, [*recipients[:200], NOBODY, LATER, *recipients[200:]], SIMPLE)
    mail = mta.server.next()
    assert sorted(mail.rcpt_to) == sorted(recipients)
    assert "No such user here" in mta.sent(NOBODY, "bounced", "5.1.1")
    assert "Try again later" in mta.sent(LATER, "deferred", "4.3.0")


@pytest.mark.proves("Postfix smtp", "DATA where CHUNKING is offered: it has no BDAT")
def test_its_client_sends_data_where_chunking_is_offered(relay: Start) -> None:
    mta = relay()
    mta.send()
    mail = mta.server.next()
    assert any("CHUNKING" in line for line in mta.transcript(mail))
    assert mta.verbs(mail)[:4] == ["EHLO", "MAIL", "RCPT", "DATA"]


@pytest.mark.lived_with("Postfix smtp", "It labels an ORCPT in UTF-8 as rfc822, where RFC 6533 has the type utf-8.")
@pytest.mark.proves("Postfix smtp", "SMTPUTF8")
@pytest.mark.proves("Postfix lmtp", "SMTPUTF8")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_smtputf8(relay: Start, transport: str) -> None:
    mta = relay(transport, smtputf8_enable="yes")
    content = "From: λ@example.org\r\nTo: θ@example.com\r\nSubject: Grüße\r\n\r\nΓειά\r\n".encode()
    mta.send(GREEK, content=content, sender="λ@example.org", options=("SMTPUTF8", "BODY=8BITMIME"))
    mail = mta.server.next()
    assert (mail.mail_from, mail.rcpt_to, mail.smtp_utf8) == ("λ@example.org", (GREEK,), True)
    assert mail.body_type == "8bitmime"
    assert "Subject: Grüße\r\n\r\nΓειά\r\n".encode() in mail.content
    # Where RFC 6533 3 has the type utf-8.
    assert mail.recipient_dsn[GREEK].orcpt == ("rfc822", GREEK)


@pytest.mark.proves("Postfix smtp", "a refusal of its own where SMTPUTF8 is needed and not offered")
def test_without_smtputf8_it_gives_up(relay: Start) -> None:
    mta = relay(options={"hide_smtputf8": True}, smtputf8_enable="yes")
    mta.send(GREEK, options=("SMTPUTF8",))
    assert "SMTPUTF8 is required" in mta.sent(GREEK, "bounced", "5.6.7")
    # The bounce names the recipient, so that it needs SMTPUTF8 as well.
    assert "SMTPUTF8 is required" in mta.sent(SENDER, "bounced", "5.6.7")
    assert mta.server.mails.empty()


@pytest.mark.proves("Postfix smtp", "DSN")
@pytest.mark.proves("Postfix lmtp", "DSN")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_dsn(relay: Start, transport: str) -> None:
    mta = relay(transport)
    with mta.postfix.client() as smtp:
        smtp.mail(SENDER, ["RET=HDRS", "ENVID=QQ+2B314159"])
        smtp.rcpt(RECIPIENT, ["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;Ann+2Bnews@example.com"])
        smtp.rcpt(BOB, ["NOTIFY=NEVER"])
        assert smtp.data(SIMPLE)[0] == 250
    mail = mta.server.next()
    assert (mail.dsn.ret, mail.dsn.envid) == ("HDRS", "QQ+314159")
    ann, bob = mail.recipient_dsn[RECIPIENT], mail.recipient_dsn[BOB]
    assert (set(ann.notify), ann.orcpt) == ({"SUCCESS", "DELAY"}, ("rfc822", "Ann+news@example.com"))
    assert bob.notify == ("NEVER",)


@pytest.mark.proves("Postfix smtp", "where DSN is not offered it reports itself that the mail was relayed")
def test_without_dsn_it_reports_itself(relay: Start) -> None:
    mta = relay(options={"hide_dsn": True})
    mta.send(rcpt_options=["NOTIFY=SUCCESS"])
    arrived = [mta.server.next(), mta.server.next()]
    mail, report = sorted(arrived, key=lambda mail: mail.mail_from, reverse=True)
    assert not any("NOTIFY" in line for line in mta.transcript(mail))
    assert (report.mail_from, report.rcpt_to) == ("", (SENDER,))
    assert report.reported() == {RECIPIENT: ("relayed", "2.6.0")}


@pytest.mark.proves("Postfix smtp", "XFORWARD")
@pytest.mark.proves("Postfix lmtp", "XFORWARD")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_xforward(relay: Start, transport: str) -> None:
    sends = {f"{client}_send_xforward_command": "yes" for client in ("smtp", "lmtp")}
    options = {"use_xforward": True} if transport == LMTP_UNIX else {}
    mta = relay(transport, options=options, smtpd_authorized_xclient_hosts="127.0.0.0/8", **sends)
    client = {"NAME": "laptop.example.net", "ADDR": "IPV6:2001:db8::7", "PORT": "4711", "PROTO": "ESMTP"}
    with mta.postfix.client() as smtp:
        assert smtp.docmd("XCLIENT", " ".join(f"{name}={value}" for name, value in client.items()))[0] == 220
        smtp.ehlo("my-laptop.example.net")
        assert smtp.sendmail(SENDER, [RECIPIENT], SIMPLE) == {}
    mail = mta.server.next()
    assert "XFORWARD" in mta.verbs(mail)
    ident = mail.x_forward.pop("IDENT")
    assert ident in mail.message["Received"]  # Postfix's name for it in its queue
    told = {"NAME": "laptop.example.net", "ADDR": "2001:db8::7", "PORT": "4711", "PROTO": "ESMTP"}
    assert mail.x_forward == told | {"HELO": "my-laptop.example.net", "SOURCE": "REMOTE"}


@pytest.mark.proves("Postfix smtp", "SIZE: too large a message is not even sent")
def test_size(relay: Start) -> None:
    mta = relay(options={"size": 1_000_000})
    mta.send(content=BIG)
    bounce = mta.server.next()
    assert (bounce.mail_from, bounce.reported()) == ("", {RECIPIENT: ("failed", "5.3.4")})
    assert "size limit 1000000" in mta.sent(RECIPIENT, "bounced", "5.3.4")


# --- What becomes of mail that is not accepted


@pytest.mark.proves("Postfix lmtp", "each recipient's reply after the data: sent, bounced, or kept for later")
@pytest.mark.parametrize("transport", [LMTP, LMTP_UNIX])
def test_lmtp_replies_for_each_recipient(relay: Start, transport: str) -> None:
    mta = relay(transport)
    mta.send(RECIPIENT, QUOTA, FULL, NOBODY, LATER, BOB)
    arrived = [mta.server.next(), mta.server.next()]
    bounce, mail = sorted(arrived, key=lambda mail: mail.mail_from)
    assert sorted(mail.rcpt_to) == sorted([RECIPIENT, QUOTA, FULL, BOB])
    for recipient in (RECIPIENT, BOB):
        assert mta.sent(recipient) == "250 2.6.0 OK: message accepted"
    assert (bounce.mail_from, bounce.rcpt_to) == ("", (SENDER,))
    assert bounce.reported() == {QUOTA: ("failed", "5.2.2"), NOBODY: ("failed", "5.1.1")}
    assert b"552 5.2.2 Over quota" in bounce.content
    assert b"550 5.1.1 No such user here" in bounce.content
    mta.sent(SENDER)
    waiting = mta.postfix.queue()
    assert sorted(waiting) == sorted([FULL, LATER])
    assert "452 4.2.2 Mailbox full" in waiting[FULL]
    assert "451 4.3.0 Try again later" in waiting[LATER]


@pytest.mark.proves("Postfix smtp", "a bounce for a refused recipient, a second attempt for a deferred one")
def test_smtp_replies_for_each_recipient(relay: Start) -> None:
    mta = relay()
    mta.send(RECIPIENT, NOBODY, LATER)
    arrived = [mta.server.next(), mta.server.next()]
    bounce, mail = sorted(arrived, key=lambda mail: mail.mail_from)
    assert mail.rcpt_to == (RECIPIENT,)
    assert bounce.reported() == {NOBODY: ("failed", "5.1.1")}
    mta.sent(SENDER)
    assert list(mta.postfix.queue()) == [LATER]
    mta.server.recovers = True
    mta.postfix.flush()
    assert mta.server.next().rcpt_to == (LATER,)
    mta.sent(LATER)


@pytest.mark.proves("Postfix smtp", "a message refused after its data bounces")
def test_a_message_refused_after_its_data(relay: Start) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        raise Reject(554, "Looks like spam", enhanced="5.7.1")

    mta = relay(options={"on_data": on_data})
    mta.send(content=BIG)
    assert "554 5.7.1 Looks like spam" in mta.sent(RECIPIENT, "bounced", "5.7.1")


@pytest.mark.proves("Postfix smtp", "a refusal in the greeting keeps the mail for later")
def test_a_refusal_in_the_greeting(relay: Start) -> None:
    def on_connect(session: Session) -> None:
        raise Reject(421, "Come back later", enhanced="4.3.2")

    mta = relay(options={"on_connect": on_connect})
    mta.send()
    mta.sent(RECIPIENT, "deferred", "4.3.2")
    assert list(mta.postfix.queue()) == [RECIPIENT]


# --- What it does apart from the RFC


@pytest.mark.lived_with(
    "Postfix smtp", "It sends QUIT with the end of the last message, and closes without reading the reply to it."
)
def test_it_sends_quit_with_the_message_and_does_not_wait_for_its_reply(relay: Start) -> None:
    """RFC 5321 4.1.1.10 wants the client to wait for the reply to QUIT; smtp_skip_quit_response is "yes" by default."""
    mta = relay(debug_peer_list=HOST)
    mta.send()
    mail = mta.server.next()
    mta.sent(RECIPIENT)
    assert " ".join(mta.spoken()).endswith("> DATA < < < > . > QUIT <")
    mta.server.gone(mail)
    assert mta.transcript(mail)[-1] == "S: 221 2.0.0 Bye"
    assert mta.server.problems.empty()
