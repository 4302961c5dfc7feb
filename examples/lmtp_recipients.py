"""LMTP answers for each recipient on its own: where one mailbox is full, the others have the message.

Try it:

    python examples/lmtp_recipients.py
    swaks --protocol LMTP --server 127.0.0.1:2525 --to ann@example.com,bob@example.com
    swaks --protocol LMTP --server 127.0.0.1:2525 --to ann@example.com,bob@example.com --attach @README.md
"""

import sys

from pillarbox import MessageStream, Recipient, Reject, Session, SMTPServer

ROOM = {"ann@example.com": 10_000_000, "bob@example.com": 1000}  # bytes that each mailbox still takes


def on_rcpt_to(address: Recipient, session: Session) -> None:
    if address.address not in ROOM:
        raise Reject(550, "No such mailbox", enhanced="5.1.1")


async def on_data(stream: MessageStream, session: Session) -> list[str | Reject]:
    message = await stream.read()
    return [store(message, recipient.address) for recipient in session.envelope.rcpt_to]


def store(message: bytes, mailbox: str) -> str | Reject:
    if len(message) > ROOM[mailbox]:
        return Reject(452, f"The mailbox {mailbox} is full", enhanced="4.2.2")
    ROOM[mailbox] -= len(message)
    return f"OK: {mailbox} has {ROOM[mailbox]} bytes left"


server = SMTPServer(
    lmtp=True,
    auth_optional=True,
    hide_enhanced_status_codes=False,
    logger=True,
    on_rcpt_to=on_rcpt_to,
    on_data=on_data,
)
server.run(int(sys.argv[1]) if len(sys.argv) > 1 else 2525, "127.0.0.1")
