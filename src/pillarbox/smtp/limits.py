"""What a client may do that is no mail, and how often: counted here, and ended with 421 where it is too much."""

from __future__ import annotations

from dataclasses import replace
from logging import INFO
from typing import TYPE_CHECKING, NoReturn, Protocol

from pillarbox.errors import Reject
from pillarbox.smtp import reply
from pillarbox.smtp.phase import HELLO, MAIL, RCPT
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.wire import LimitCrossed
from pillarbox.statistics import count

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pillarbox.extension import Command
    from pillarbox.session import Session
    from pillarbox.smtp.conversation import Conversation

# The replies that say: this was not SMTP. Where the application refuses with one of these codes it is no error.
_ERRORS = frozenset((500, 501, 502, 503, 504, 555))
# They count as junk when they are given, whatever becomes of them; and a hello where it is not the first.
JUNK = frozenset(("NOOP", "RSET", "HELP", "VRFY", "EXPN"))
_HELLOS = frozenset(("HELO", "EHLO", "LHLO"))
# So many recipients above `max_refused_recipients` end the connection even if some were accepted: no list is so long.
_OVERSHOOT = 10_000
# How long a failed login waits for its answer at most, where `auth_failure_delay` is not longer.
_LONGEST_DELAY = 30.0


class Rates(Protocol):
    """What a client, an account and all clients together may do in a time."""

    async def take(self, what: str, session: Session, account: str | None = None) -> bool:
        """Count one more; False where it is one too many."""
        ...

    async def left(self, what: str, session: Session) -> bool:
        """Whether one more of the client and of all would be allowed; nothing is counted."""
        ...

    async def account_left(self, what: str, account: str) -> bool:
        """Whether one more of the account would be allowed; nothing is counted."""
        ...

    def limits(self, what: str) -> bool:
        """Whether there is a rate for this."""
        ...


class Counts:
    """What a client has done since a message was accepted, or since it came; most sessions have none."""

    __slots__ = ("errors", "junk", "logged", "path_refused", "refused_recipients")

    def __init__(self) -> None:
        self.errors = 0
        self.junk = 0
        self.refused_recipients = 0
        self.path_refused = False  # a MAIL or RCPT was refused
        self.logged: tuple[str, ...] = ()


def counts(c: Conversation) -> Counts:
    """Return the counts of a conversation; made when there is something to count."""
    if c.counts is None:
        c.counts = Counts()
    return c.counts


async def refused(c: Conversation, verb: str, refusal: Refused) -> None:
    """Count a command that is refused; raises LimitCrossed where it was one too many."""
    there = counts(c)
    of_application = isinstance(refusal.__cause__, Reject)
    if verb == "RCPT" and c.phase & MAIL:
        _recipient_refused(c, there)
    # RFC 2920 3.1 lets a client send RCPT and DATA before it knows that MAIL was refused, and RFC 3030 2 the chunks
    # behind one that was refused: what follows from that is no error of its own.
    elif refusal.reply is reply.CHUNK_AFTER_REFUSAL or (
        there.path_refused and refusal.reply in (reply.NEED_MAIL, reply.NEED_RCPT)
    ):
        junk(c)
    elif refusal.reply.code in _ERRORS and not of_application:
        await _error(c, there, refusal.reply)
    elif not (verb in JUNK or (verb in _HELLOS and c.phase & HELLO)):
        junk(c)
    if verb == "MAIL" or (verb == "RCPT" and c.phase & MAIL):
        there.path_refused = True


async def _error(c: Conversation, there: Counts, refusal: Reply) -> None:
    there.errors += 1
    limit = c.service.options.max_errors
    unknown = refusal in (reply.NOT_RECOGNIZED, reply.EHLO_IN_LMTP)
    if limit is not None and there.errors >= limit:
        if unknown:
            raise LimitCrossed("too many unrecognized commands", reply.TOO_MANY_UNRECOGNIZED, "max_errors")
        raise LimitCrossed("too many errors", reply.TOO_MANY_ERRORS, "max_errors")
    rates = c.service.rates
    if rates is not None and not await rates.take("errors", c.session):
        raise LimitCrossed("too many errors of this address or of all", reply.TOO_MANY_ERRORS, "rate_of_errors")


def _recipient_refused(c: Conversation, there: Counts) -> None:
    there.refused_recipients += 1
    limit = c.service.options.max_refused_recipients
    # Where there are recipients that were accepted the client is not cut off: their message would be lost with it.
    if limit is None or there.refused_recipients < limit:
        return
    if not c.phase & RCPT or there.refused_recipients >= limit + _OVERSHOOT:
        raise LimitCrossed("too many refused recipients", reply.TOO_MANY_REFUSED_CLOSING, "max_refused_recipients")


def may_name_recipient(c: Conversation) -> bool:
    """Whether one more RCPT is looked at, after those that were refused."""
    limit = c.service.options.max_refused_recipients
    if c.counts is None or limit is None or c.counts.refused_recipients < limit:
        return True
    note(c, "too many refused recipients", "max_refused_recipients")
    return False


def junk(c: Conversation) -> None:
    """Count a command that brings no message nearer; raises LimitCrossed."""
    there = counts(c)
    there.junk += 1
    limit = c.service.options.max_junk_commands
    if limit is not None and there.junk > limit:
        raise LimitCrossed("too many junk commands", reply.TOO_MUCH_JUNK, "max_junk_commands")


def counted(command: Command) -> Command:
    """Return a command that counts as junk."""
    run = command.run

    def counting(c: Conversation, argument: str) -> Reply | Awaitable[Reply | None]:
        junk(c)
        return run(c, argument)

    return replace(command, run=counting)


def note(c: Conversation, why: str, limit: str) -> None:
    """Count that a limit refuses what this client asks for, and log it: once, until its next message."""
    count(c.service.statistics.refusals["limit"], limit)
    there = counts(c)
    if why not in there.logged:
        there.logged += (why,)
        c.service.log.event(INFO, "limit", c.session, "refused: %s", why)


# --- Logins


async def may_log_in(c: Conversation) -> None:
    """Raise LimitCrossed where this connection, or the client's address, has failed too often already."""
    # Not with the last failure: that is told first, as 535. Who hears 421 tries the same password again later.
    most = c.service.options.max_auth_failures
    if most is not None and c.auth_failures >= most:
        _too_many_failures("in this connection", "max_auth_failures")
    await address_may_log_in(c.service.rates, c.session)


async def address_may_log_in(rates: Rates | None, session: Session) -> None:
    """Raise LimitCrossed where the client's address, or all, have failed too often already."""
    if rates is not None and not await rates.left("auth_failures", session):
        _too_many_failures("of this address or of all", "rate_of_auth_failures")


async def login_failed(c: Conversation) -> None:
    """Count a failed login and let it wait for its answer, each one longer than the one before."""
    c.auth_failures += 1
    delay = c.service.options.auth_failure_delay
    if delay:
        await c.wire.delay(min(max(_LONGEST_DELAY, delay), delay * 2 ** min(c.auth_failures - 1, 16)))


def _too_many_failures(where: str, limit: str) -> NoReturn:
    raise LimitCrossed(f"too many failed logins {where}", reply.TOO_MANY_AUTH_FAILURES, limit)


# --- Rates of mail


def rated(command: Command, rates: Rates, what: str, refusal: Reply) -> Command:
    """Return a command that is only looked at while the client's rate allows one more."""

    async def run(c: Conversation, argument: str) -> Reply | None:
        if not await rates.take(what, c.session, c.session.username):
            note(c, f"the rate of {what}", f"rate_of_{what}")
            raise Refused(refusal)
        done = command.run(c, argument)
        return await done if hasattr(done, "__await__") else done

    return replace(command, run=run)
