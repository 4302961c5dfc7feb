"""The steps of ``send`` from connection to QUIT: greeting, TLS, login, and the messages."""

from __future__ import annotations

import smtplib
import ssl
from base64 import b64encode
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pillarbox.cli.client import Client, tls_context, told
from pillarbox.cli.message import Content, Wanted, from_bytes, made
from pillarbox.cli.status import Failure, Status, status_of
from pillarbox.cli.transaction import Envelope, Outcome, transact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pillarbox.cli.client import Answer
    from pillarbox.cli.peer import Peer
    from pillarbox.cli.transcript import Transcript


@dataclass(frozen=True)
class Order:
    """What is to be sent, where to and how."""

    peer: Peer
    envelope: Envelope
    wanted: Wanted  # where there is no file
    data: bytes | None
    count: int
    tls: str
    insecure: bool
    password: str | None


def handed_over(order: Order, transcript: Transcript) -> Iterator[Outcome]:
    """Send the messages and yield what becomes of each recipient; raise Failure for what comes before that."""
    with Client(order.peer, transcript) as client:
        try:
            _expect(client.open(lambda: _context(order, client)), Status.PROTOCOL)
            _hello(client)
            _secure(client, order)
            _log_in(client, order)
            yield from _messages(client, order)
        except ssl.SSLCertVerificationError as error:
            raise Failure(_distrust(error, order.peer), Status.PROTOCOL) from error
        except smtplib.SMTPResponseException as error:
            raise Failure(f"{order.peer} does not speak SMTP: {error}", Status.PROTOCOL) from error
        except OSError as error:  # of which smtplib's own errors are some
            raise Failure(f"{order.peer} broke the connection off: {error}", Status.LATER) from error


def _expect(answer: Answer, otherwise: Status) -> None:
    """Raise Failure for a reply that is no success; ``otherwise`` is the status where it is no refusal either."""
    if not 200 <= answer[0] < 300:
        raise Failure(f"refused: {told(answer)}", status_of(answer[0]) if answer[0] >= 400 else otherwise)


def _hello(client: Client) -> None:
    _expect(client.hello(), Status.PROTOCOL)


# --- TLS


def _context(order: Order, client: Client) -> ssl.SSLContext:
    # Nobody sits between two programs of one host, and the certificate that a server under development has is
    # self-signed: only who asks for TLS has it verified there too.
    trusted = order.insecure or (order.tls == "auto" and client.local)
    if trusted:
        client.transcript.note(
            "the certificate is not verified" + ("" if order.insecure else ": this host's own server")
        )
    return tls_context(verified=not trusted)


def _secure(client: Client, order: Order) -> None:
    if client.tls or order.tls == "never":
        return
    if "starttls" not in client.esmtp_features:
        if order.tls == "always":
            raise Failure(f"{order.peer} does not offer STARTTLS (--tls auto goes on without)", Status.PROTOCOL)
        return
    answer = client.upgrade(lambda: _context(order, client))
    if answer[0] == 220:
        _hello(client)
    elif order.tls == "always":
        raise Failure(f"STARTTLS was refused: {told(answer)}", Status.PROTOCOL)


def _distrust(error: ssl.SSLCertVerificationError, peer: Peer) -> str:
    return f"the certificate of {peer} is not trusted: {error.verify_message} (--insecure goes on all the same)"


# --- AUTH


def _log_in(client: Client, order: Order) -> None:
    user, password = order.peer.user, order.password
    if user is None or password is None:
        return
    offered = client.esmtp_features.get("auth", "").upper().split()
    exposed = not (client.tls or client.local)
    if exposed and not order.insecure and order.tls != "never":
        # Who sits in between can take STARTTLS out of the reply to EHLO, and would be told the password.
        raise Failure(f"no login without TLS, which {order.peer} does not offer (--insecure allows it)", Status.LOGIN)
    known = ("CRAM-MD5", "PLAIN", "LOGIN") if exposed else ("PLAIN", "LOGIN", "CRAM-MD5")
    mechanism = next((each for each in known if each in offered), None)
    if mechanism is None:
        raise Failure(f"{order.peer} {_offers(client, offered)}: send knows {', '.join(known)}", Status.LOGIN)
    answer = _authenticated(client, mechanism, user, password)
    if answer[0] != 235:
        said = told((answer[0], client.transcript.masked(answer[1])))
        raise Failure(f"the login of {user} was refused: {said}", Status.LOGIN)


def _offers(client: Client, offered: list[str]) -> str:
    if offered:
        return f"offers AUTH {' '.join(offered)}"
    return "offers no AUTH" if client.tls else "offers no AUTH without TLS"


def _authenticated(client: Client, mechanism: str, user: str, password: str) -> Answer:
    if mechanism == "PLAIN":
        return client.docmd("AUTH", "PLAIN " + _base64(f"\0{user}\0{password}"))
    if mechanism == "LOGIN":
        answer = client.docmd("AUTH", "LOGIN")
        for secret in (user, password):
            answer = client.docmd(_base64(secret)) if answer[0] == 334 else answer
        return answer
    client.user, client.password = user, password
    try:
        return client.auth(mechanism, client.auth_cram_md5)
    except smtplib.SMTPAuthenticationError as error:
        return error.smtp_code, bytes(error.smtp_error) if isinstance(error.smtp_error, bytes) else b""
    except ValueError as error:
        raise Failure(f"{mechanism}: name and password must be ASCII", Status.LOGIN) from error


def _base64(text: str) -> str:
    return b64encode(text.encode("utf-8", "surrogateescape")).decode()


# --- The messages


def _messages(client: Client, order: Order) -> Iterator[Outcome]:
    envelope = _for_server(client, order.envelope)
    failed = False
    for _ in range(order.count):
        if failed:  # what is left of a transaction would be in the way of the next
            client.docmd("RSET")
        outcomes = transact(client, envelope, _content(client, order))
        yield from outcomes
        failed = not all(outcome.accepted for outcome in outcomes)


def _content(client: Client, order: Order) -> Content:
    offered = client.esmtp_features
    if order.data is None:
        utf8 = order.envelope.international and "smtputf8" in offered
        return made(order.wanted, utf8=utf8, eight_bit="8bitmime" in offered)
    content = from_bytes(order.data)
    if content.eight_bit and "8bitmime" not in offered:
        client.transcript.note("the message is 8-bit, and 8BITMIME is not offered: it goes as it is")
    if content.utf8_header and "smtputf8" not in offered:
        client.transcript.note("the header is not ASCII, and SMTPUTF8 is not offered: it goes as it is")
    return content


def _for_server(client: Client, envelope: Envelope) -> Envelope:
    """Return the envelope as a server without SMTPUTF8 takes it: with domains in ASCII."""
    if not envelope.international or "smtputf8" in client.esmtp_features:
        return envelope
    from pillarbox.deliver.relay_commands import with_a_labels

    # RFC 6531 3.2 leaves an address with a local part in ASCII to servers without SMTPUTF8: its domain has an A-label.
    ascii_only = replace(
        envelope,
        sender=with_a_labels(envelope.sender),
        recipients=tuple(with_a_labels(each) for each in envelope.recipients),
    )
    if ascii_only.international:
        address = next(each for each in (ascii_only.sender, *ascii_only.recipients) if not each.isascii())
        raise Failure(f"{address} needs SMTPUTF8, which {client.peer} does not offer", Status.REFUSED)
    return ascii_only
