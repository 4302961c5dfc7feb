"""The smallest server: it prints who writes what to whom.

Try it:

    python examples/smallest.py
    swaks --server 127.0.0.1:2525 --to ann@example.com --header "Subject: Hello"
"""

import sys

from pillarbox import MessageStream, Session, SMTPServer


async def deliver(stream: MessageStream, session: Session) -> None:
    message = await stream.message()
    print(session.envelope.mail_from, [str(to) for to in session.envelope.rcpt_to], message["Subject"], flush=True)


server = SMTPServer(auth_optional=True, logger=True, on_data=deliver)
server.run(int(sys.argv[1]) if len(sys.argv) > 1 else 2525, "127.0.0.1")
