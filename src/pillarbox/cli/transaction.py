"""One message from this client to a server: MAIL, RCPT, DATA, and what became of each recipient."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pillarbox.cli.client import told
from pillarbox.cli.status import Failure, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox.cli.client import Answer, Client
    from pillarbox.cli.message import Content

# RFC 5321 4.5.3.2.6: "DATA Termination: 10 Minutes."
PATIENCE_AT_END = 600.0  # seconds
_BLOCK = 65536
_FIRST_DOT = re.compile(rb"(?m)^\.")


@dataclass(frozen=True)
class Envelope:
    """Who sends to whom, with the raw parameters of MAIL and RCPT (``RET=HDRS``)."""

    sender: str
    recipients: tuple[str, ...]
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: tuple[str, ...] = ()

    @property
    def international(self) -> bool:
        """Whether an address needs SMTPUTF8 (RFC 6531)."""
        return not all(address.isascii() for address in (self.sender, *self.recipients))


@dataclass(frozen=True)
class Outcome:
    """The reply that decided about one recipient."""

    recipient: str
    answer: Answer

    @property
    def accepted(self) -> bool:
        return 200 <= self.answer[0] < 300


def transact(client: Client, envelope: Envelope, content: Content) -> list[Outcome]:
    """Hand one message over; return an outcome for each recipient, in their order."""
    answer = client.docmd("MAIL", _line(f"FROM:<{envelope.sender}>", _mail_parameters(client, envelope, content)))
    if not 200 <= answer[0] < 300:
        return _all(envelope.recipients, answer)
    outcomes = [_rcpt(client, each, envelope.rcpt_parameters) for each in envelope.recipients]
    taken = [outcome for outcome in outcomes if outcome.accepted]
    if taken:
        final = iter(_data(client, content, [outcome.recipient for outcome in taken]))
        outcomes = [next(final) if outcome.accepted else outcome for outcome in outcomes]
    return outcomes


def _mail_parameters(client: Client, envelope: Envelope, content: Content) -> list[str]:
    offered, said = client.esmtp_features, [each.upper() for each in envelope.mail_parameters]
    own = {
        # RFC 1870 5: the size that is declared is that of the message without the dots of transparency.
        f"SIZE={len(content.data)}": "size" in offered,
        "BODY=8BITMIME": "8bitmime" in offered and content.eight_bit,
        "SMTPUTF8": "smtputf8" in offered and (envelope.international or content.utf8_header),
    }
    names = {each.partition("=")[0] for each in said}
    added = [each for each, wanted in own.items() if wanted and each.partition("=")[0] not in names]
    return [*added, *envelope.mail_parameters]


def _rcpt(client: Client, recipient: str, parameters: Sequence[str]) -> Outcome:
    return Outcome(recipient, client.docmd("RCPT", _line(f"TO:<{recipient}>", parameters)))


def _data(client: Client, content: Content, recipients: Sequence[str]) -> list[Outcome]:
    answer = client.docmd("DATA")
    if 200 <= answer[0] < 300:
        raise Failure(f"{client.peer} does not speak SMTP: it says {told(answer)} to DATA", Status.PROTOCOL)
    if answer[0] != 354:
        return _all(recipients, answer)
    client.transcript.message(content.data)
    # RFC 5321 4.5.2: "If it is a period, one additional period is inserted at the beginning of the line."
    data = _FIRST_DOT.sub(b"..", content.data) + b".\r\n"
    blocks = (data[begin : begin + _BLOCK] for begin in range(0, len(data), _BLOCK))  # the time limit is for each
    if not client.takes(blocks):
        return _all(recipients, _early(client))
    client.transcript.command(".", "")
    return _finals(client, recipients)


def _early(client: Client) -> Answer:
    """Return why a server does not take a message to its end, if it said so."""
    answer = client.getreply()
    client.close()  # what it takes for commands from now on, nobody knows
    if 200 <= answer[0] < 300:
        raise Failure(f"{client.peer} says {told(answer)}, and has not read all of the message", Status.PROTOCOL)
    return answer


def _finals(client: Client, recipients: Sequence[str]) -> list[Outcome]:
    client.wait_up_to(PATIENCE_AT_END)
    # RFC 2033 4.2: "after the final ".", the server … returns one reply for each previously successful RCPT command in
    # the mail transaction, in the order that the RCPT commands were issued."
    replies: list[Answer] = []
    try:
        for _ in recipients if client.peer.lmtp else recipients[:1]:
            replies.append(client.getreply())  # noqa: PERF401 - those before an error count
        client.wait_up_to()
    except OSError as error:  # of which smtplib's own errors are some
        if not replies:
            raise
        client.close()
        replies += [(421, f"no reply came: {error}".encode())] * (len(recipients) - len(replies))
    if not client.peer.lmtp:
        replies *= len(recipients)
    return [Outcome(recipient, reply) for recipient, reply in zip(recipients, replies, strict=True)]


def _all(recipients: Sequence[str], answer: Answer) -> list[Outcome]:
    return [Outcome(recipient, answer) for recipient in recipients]


def _line(first: str, parameters: Sequence[str]) -> str:
    return " ".join([first, *parameters])
