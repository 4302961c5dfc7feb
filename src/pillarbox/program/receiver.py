"""What the program does with a message: who may send it, which targets take it, what stands in front of it.

The handlers of each listener are made here, once; what a listener has no use for is no handler and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pillarbox import DNSResolver, HostNames, Reject, log_fields, received_header, return_path_header
from pillarbox.deliver import unavailable
from pillarbox.program.fanout import Delivered, deliver, one_reply, outcome
from pillarbox.program.recipients import Recipients

if TYPE_CHECKING:
    from pillarbox import Address, MessageStream, Recipient, Session
    from pillarbox.program.access import Access
    from pillarbox.program.routes import Part, Route, Routes

__all__ = ["Receiver"]

SHOWN_RECIPIENTS = 10
Observer = Callable[["Delivered", "Session"], None]

_log = logging.getLogger("pillarbox.program")


class Receiver:
    """What the listeners share: the lookups of clients' names, and who is told what came of each delivery."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._resolver = DNSResolver()
        self.host_names = HostNames(self._resolver)
        self.observers = list(observers)

    def handlers(self, name: str, routes: Routes, access: Access) -> dict[str, Callable[..., Any]]:
        """Return the handlers of a listener that calls itself ``name``."""
        hooks = _Hooks(self, name, routes, access)
        handlers: dict[str, Callable[..., Any]] = {"on_data": hooks.on_data}
        if access.looks_at_senders:
            handlers["on_mail_from"] = hooks.on_mail_from
        if access.looks_at_recipients or not routes.take_all or any(route.target.verifies for route in routes.all):
            handlers["on_rcpt_to"] = hooks.on_rcpt_to
        return handlers

    async def close(self) -> None:
        """Give up the lookups under way."""
        await self.host_names.close()
        await self._resolver.close()


class _Hooks:
    """The handlers of one listener."""

    def __init__(self, receiver: Receiver, name: str, routes: Routes, access: Access) -> None:
        self._receiver = receiver
        self._name = name
        self._recipients = Recipients(name, routes, access)
        self._access = access

    def on_mail_from(self, sender: Address, session: Session) -> None:
        self._access.check_sender(sender, session)

    async def on_rcpt_to(self, recipient: Recipient, session: Session) -> None:
        for route in self._recipients.check(recipient.address, session):
            if route.target.verifies and not route.optional:
                await _verified(route, recipient, session)

    async def on_data(self, stream: MessageStream, session: Session) -> Sequence[str | Reject | None] | None:
        recipients = session.envelope.rcpt_to
        name = await self._confirmed_name(session)
        trace = received_header(session, by=self._name, confirmed_name=name)
        final = return_path_header(session) + trace

        def head(part: Part) -> bytes:
            if part.route.target.relays and session.envelope.smtp_utf8:
                # Or a message that needs no SMTPUTF8 would need it for this field, and the next server may not have it.
                return received_header(session, by=self._name, confirmed_name=name, utf8=False)
            return final if part.route.target.final else trace

        try:
            deliveries = await deliver(self._recipients.parts(recipients), session, stream, head)
        except Reject as refusal:
            _log_message(session, stream, "refused: %s", str(refusal))
            raise
        for done in deliveries:
            self._tell(done, session)
        return _reply(session, stream, outcome(recipients, deliveries))

    def _tell(self, done: Delivered, session: Session) -> None:
        for answer in (
            {str(answer) for answer in done.answers if isinstance(answer, Reject)} if done.part.route.optional else ()
        ):
            fields = log_fields(session, "program", "deliver")
            _log.warning("optional target %s: %s", done.part.route.target.url, answer, extra=fields)
        for observer in self._receiver.observers:
            observer(done, session)

    async def _confirmed_name(self, session: Session) -> str | None:
        name, address = session.client_hostname, session.remote_address
        if not address or name == f"[{address}]":
            return None
        return name if await self._receiver.host_names.confirms(name, address) else None


async def _verified(route: Route, recipient: Recipient, session: Session) -> None:
    limit = asyncio.timeout(route.timeout)
    try:
        async with limit:
            await route.target.verify(recipient, session)
    except TimeoutError:
        if not limit.expired():
            raise
        fields = log_fields(session, "deliver", "deliver")
        _log.error("%s did not verify a recipient in %g seconds", route.target.url, route.timeout, extra=fields)
        raise unavailable() from None


def _reply(
    session: Session, stream: MessageStream, answers: list[str | Reject]
) -> Sequence[str | Reject | None] | None:
    """Log what came of a message, and return the reply: in LMTP one for each recipient."""
    if session.lmtp:
        _log_each(session, stream, answers)
        return [answer if isinstance(answer, Reject) else None for answer in answers]
    refusal = one_reply(session.envelope.rcpt_to, answers)
    if refusal is not None:
        if _places(answers):  # some have it, whatever the one reply says
            _log_each(session, stream, answers)
        _log_message(session, stream, "refused: %s", str(refusal))
        raise refusal
    _log_message(session, stream, "in %s", ", ".join(_places(answers)))
    return None


def _log_each(session: Session, stream: MessageStream, answers: list[str | Reject]) -> None:
    places = _places(answers)
    if places:
        _log_message(session, stream, "in %s", ", ".join(places))
    for recipient, answer in zip(session.envelope.rcpt_to, answers, strict=True):
        if isinstance(answer, Reject):
            _log_message(session, stream, "refused for <%s>: %s", recipient.address, str(answer))


def _places(answers: list[str | Reject]) -> list[str]:
    # What several targets said of a recipient is one text; a place that several recipients share is named once.
    return list(dict.fromkeys(place for answer in answers if isinstance(answer, str) for place in answer.split(", ")))


def _log_message(session: Session, stream: MessageStream, outcome: str, *parts: str) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    envelope = session.envelope
    fields = log_fields(session, "program", "message") | {
        "id": f"{session.id}.{session.transaction}",
        "mail_from": str(envelope.mail_from or ""),
        "rcpt_to": [recipient.address for recipient in envelope.rcpt_to[:SHOWN_RECIPIENTS]],
        "recipients": len(envelope.rcpt_to),
        "bytes": stream.byte_length,
        "outcome": "stored" if outcome.startswith("in ") else "refused",
    }
    _log.info(
        f"message from <%s> to %s, %d bytes, id %s.%d, {outcome}",
        session.envelope.mail_from or "",
        _recipients([recipient.address for recipient in session.envelope.rcpt_to]),
        stream.byte_length,
        session.id,
        session.transaction,
        *parts,
        extra=fields,
    )


def _recipients(addresses: list[str]) -> str:
    shown = " ".join(f"<{address}>" for address in addresses[:SHOWN_RECIPIENTS])
    more = len(addresses) - SHOWN_RECIPIENTS
    return f"{shown} and {more} more" if more > 0 else shown
