"""The handlers: what happens where the application says nothing, and which of its own take their place."""

from __future__ import annotations

from logging import ERROR, INFO
from typing import TYPE_CHECKING, Any

from pillarbox.errors import ConnectionLost, HandshakeFailed, Reject
from pillarbox.options import HANDLERS, declarations
from pillarbox.smtp.reply import AUTH_NOT_IMPLEMENTED

if TYPE_CHECKING:
    from collections.abc import Generator

    from pillarbox.logs import EventLog
    from pillarbox.session import Address, Recipient, Session, TLSInfo
    from pillarbox.smtp.sasl import AuthRequest
    from pillarbox.smtp.stream import MessageStream

HOOKS = tuple(name for name, declaration in declarations().items() if declaration.section == HANDLERS)


class _Nothing:
    """What the default handlers return, so that an override may say ``await super().on_rcpt_to(…)`` or leave it out."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_NOTHING = _Nothing()


class Handlers:
    """The default handlers: methods to override, or to call by ``super()``, awaited or not."""

    _log: EventLog

    def handler(self, hook: str) -> Any:
        """Return a handler as it is now; None for a default that does nothing, which then costs nothing."""
        return self.handler_of(getattr(self, hook))

    @staticmethod
    def handler_of(method: Any) -> Any:
        """Return a method as a handler; None for a default that does nothing."""
        return None if getattr(method, "__func__", None) in _IDLE else method

    def on_connect(self, session: Session) -> Any:
        """Let a client in, before the greeting.

        ``Reject`` (default 554) is sent and the connection closed; any other exception: 421 and closed.
        """
        return _NOTHING

    def on_secure(self, tls: TLSInfo, session: Session) -> Any:
        """Let a client go on after a TLS handshake; not called with ``secured``.

        ``Reject`` (default 554) closes: in place of the greeting, after STARTTLS as the answer to the next command.
        Any other exception: 421 and closed.
        """
        return _NOTHING

    def on_ehlo(self, keywords: list[str], session: Session) -> Any:
        """Let a client introduce itself (HELO, EHLO or LHLO: ``session.opening_command``, ``host_name_appears_as``).

        keywords: what will be announced, "SIZE 10000000" for example, empty for HELO. Change the list or return
        another; that only hides what works nevertheless. ``Reject``: 550 by default; any other exception: 451.
        """
        return _NOTHING

    def on_auth(self, auth: AuthRequest, session: Session) -> Any:
        """Return the user to accept a credential (RFC 4954). Default: all fail but those that SCRAM has verified.

        Any true value becomes ``session.user``, and True keeps the user name that was sent. None, False or ``Reject``
        is 535, any other exception or a dict 454.
        """
        if auth.verified:
            return auth.authzid in ("", auth.username)  # to act as another needs an application that knows who may
        answer = AUTH_NOT_IMPLEMENTED
        raise Reject(answer.code, answer.text, enhanced=answer.enhanced)

    def on_scram(self, username: str, session: Session) -> Any:
        """Return the keys stored for a user, who then proves to know the password (RFC 5802).

        ``ScramKeys`` or their text, or a list of these for several hashes; None, or ``Reject`` without a code, for a
        user who has none, which the client cannot tell from a wrong password. What then comes is ``on_auth``, with
        ``auth.verified``. Any other exception: 454.
        """
        return _NOTHING

    def on_mail_from(self, address: Address, session: Session) -> Any:
        """Accept a sender (RFC 5321 4.1.1.2); ``address.address`` is "" for the null sender.

        ``Reject``: 550 by default; any other exception: 451. MAIL's parameters are on the envelope, the sender not yet.
        """
        return _NOTHING

    def on_rcpt_to(self, address: Recipient, session: Session) -> Any:
        """Accept a recipient (RFC 5321 4.1.1.3); it joins the envelope when this returns.

        ``Reject``: 550 by default; any other exception: 451.
        """
        return _NOTHING

    def on_reset(self, session: Session) -> Any:
        """Note RSET (RFC 5321 4.1.1.5); ``session.envelope`` is still what is forgotten next.

        It cannot be refused: what this raises goes to ``on_error``. A new EHLO ends a transaction too (``on_ehlo``),
        and so does the end of the connection (``on_close``).
        """
        return _NOTHING

    def on_vrfy(self, address: str, session: Session) -> Any:
        """Verify a mailbox (RFC 5321 3.5). Default: neither confirmed nor denied, 252.

        Return the text of the 250 reply, which names the mailbox ("Jo Doe <jo@example.com>"), or None for 252.
        ``Reject``: 550 by default; any other exception: 451.
        """
        return _NOTHING

    def on_expn(self, name: str, session: Session) -> Any:
        """Return the members of a mailing list (RFC 5321 3.5), each for one line of the 250 reply.

        Without this handler the verb is unknown. None or an empty list, or ``Reject``: 550 by default; any other
        exception: 451.
        """
        return _NOTHING

    def on_help(self, topic: str, session: Session) -> Any:
        """Return the text of HELP's 214 reply (RFC 5321 4.1.1.8), maybe of several lines; None for the default.

        topic: what stood behind HELP, maybe "". ``Reject``: 504 by default; any other exception: 451.
        """
        return _NOTHING

    async def on_data(self, stream: MessageStream, session: Session) -> Any:
        """Take a message (RFC 5321 4.1.1.4). Default: it is read and discarded.

        Return the text of the 250 reply or None, when the message is safe; in LMTP also a list, one for each recipient
        (RFC 2033 4.2). ``Reject``: 450 by default; any other exception: 451. What is left unread is dropped.
        """
        async for _ in stream:
            pass
        self._log.event(INFO, "data", session, "%d bytes discarded, there is no on_data", stream.byte_length)

    def on_close(self, session: Session) -> Any:
        """Note that the connection is gone; called once if ``on_connect`` was. What it raises goes to ``on_error``."""
        return _NOTHING

    def on_error(self, error: Exception, session: Session | None) -> Any:
        """Note a failure. Default: it is logged, with a traceback where it is a handler's.

        error: HandshakeFailed, ConnectionLost (in a transaction), or what a handler raised.
        """
        if isinstance(error, HandshakeFailed | ConnectionLost):
            # Not a warning: on a public port scanners do this all day long, and nothing is wrong here.
            self._log.event(INFO, "error", session, "%s", str(error))
        else:
            self._log.event(ERROR, "error", session, "%s: %s", type(error).__name__, str(error), error=error)
        return _NOTHING


# The defaults that do nothing.
_IDLE = (
    Handlers.on_connect,
    Handlers.on_secure,
    Handlers.on_ehlo,
    Handlers.on_scram,
    Handlers.on_mail_from,
    Handlers.on_rcpt_to,
    Handlers.on_reset,
    Handlers.on_vrfy,
    Handlers.on_expn,
    Handlers.on_help,
    Handlers.on_close,
)
