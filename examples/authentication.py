r"""A submission server: users authenticate under TLS, and each may write in their own name alone.

Try it:

    python examples/authentication.py
    swaks --server 127.0.0.1:2525 --tls --auth PLAIN --auth-user alice --auth-password secret \
        --from alice@example.com --to bob@example.org

Without a key and a certificate the server makes a self-signed one, which swaks does not mind.
"""

import sys

from pillarbox import Address, AuthRequest, MessageStream, Reject, Session, SMTPServer

PASSWORDS = {"alice": "secret", "bob": "hunter2"}


class Submission(SMTPServer):
    async def on_auth(self, auth: AuthRequest, session: Session) -> bool:
        # For every mechanism: PLAIN and LOGIN send the password, CRAM-MD5 proves that the client knows it.
        password = PASSWORDS.get(auth.username)
        return password is not None and auth.validate_password(password)  # True: session.user is the user name

    async def on_mail_from(self, address: Address, session: Session) -> None:
        if address.address != f"{session.user}@example.com":
            raise Reject(553, f"{session.user} may not send as {address}", enhanced="5.7.1")

    async def on_data(self, stream: MessageStream, session: Session) -> str:
        content = await stream.read()
        return f"OK: {len(content)} bytes from {session.user} by {session.transmission_type}"


server = Submission(auth_methods=["PLAIN", "LOGIN", "CRAM-MD5"], hide_enhanced_status_codes=False, logger=True)
server.run(int(sys.argv[1]) if len(sys.argv) > 1 else 2525, "127.0.0.1")
