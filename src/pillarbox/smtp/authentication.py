"""The AUTH command (RFC 4954): which mechanism it starts, what that may ask of client and application, how it ends."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Collection, Sequence
from logging import DEBUG, INFO
from typing import TYPE_CHECKING, Any

from pillarbox.errors import Reject
from pillarbox.smtp import limits, reply
from pillarbox.smtp.asking import ON_AUTH, ON_SCRAM, Asking
from pillarbox.smtp.reply import Refused
from pillarbox.smtp.sasl import AuthRequest, InvalidCredential, Mechanism, ScramKeys
from pillarbox.smtp.wire import MAX_AUTH_LINE, ConnectionEnded, TransactionAborted, read_line
from pillarbox.statistics import count

if TYPE_CHECKING:
    from pillarbox.session import Session


async def authenticate(asking: Asking, argument: str) -> object:
    """Run the exchange that ``AUTH argument`` begins and return the user; raises Refused."""
    name, *initial = argument.split(" ")
    if not name or len(initial) > 1:
        raise Refused(reply.syntax("AUTH mechanism [initial-response]"))
    mechanism = asking.service.mechanism(name, asking.session)
    if mechanism is None:
        raise Refused(reply.UNKNOWN_MECHANISM)
    exchange = _Exchange(asking)
    try:
        # RFC 4954 4: 'a single "=" … indicates that the response is present, but contains no data'
        first = None if not initial else b"" if initial[0] == "=" else _decoded(initial[0].encode())
        user = await _run(mechanism, exchange, first)
    except InvalidCredential as problem:
        raise Refused(reply.INVALID_USERDATA) from problem
    except Reject as reject:
        refusal = reply.from_reject(reject, reply.BAD_CREDENTIALS)
        await exchange.note_failure(counts=refusal.code >= 500)
        raise Refused(refusal) from reject
    asking.session.username = exchange.own_name or exchange.username or (user if isinstance(user, str) else None)
    _log(asking, "authenticated as %s", asking.session.username)
    return user


async def _run(mechanism: Mechanism, exchange: _Exchange, first: bytes | None) -> object:
    """Return the user; what an application's own mechanism raises besides is a bug, as in a handler."""
    asking = exchange.asking
    try:
        user = await mechanism.authenticate(exchange, first)
    except (InvalidCredential, Reject, Refused, ConnectionEnded, TransactionAborted):
        raise
    except BaseException as error:
        await asking.failed(error, ON_AUTH.hook)
        raise Refused(reply.AUTH_FAILED_HERE) from error
    if not await asking.is_true(user, ON_AUTH):
        raise Reject
    return user


def _log(asking: Asking, text: str, name: str | None) -> None:
    asking.service.log.event(INFO, "auth", asking.session, text, name or "(no name)")


class _Exchange:
    """What a mechanism works with: ``sasl.Exchange`` over SMTP."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.host: str = asking.service.options.name
        self.session: Session = asking.session
        self.username: str | None = None  # who it is about, as far as that is known
        self.own_name: str | None = None  # the account's own name, where `on_auth` has told it
        self._has_failed = False

    @property
    def offered(self) -> Collection[str]:
        return self.asking.service.mechanism_names(self.session)

    async def challenge(self, octets: bytes) -> bytes:
        answer = await self._line_after(octets)
        # RFC 4954 4: 'If the client wishes to cancel the authentication exchange, it issues a line with a single "*".'
        if answer == b"*":
            raise Refused(reply.AUTH_ABORTED)
        return _decoded(answer)

    async def tell(self, octets: bytes) -> None:
        await self.note_failure()  # now: many clients hang up when they hear why
        await self._line_after(octets)

    async def _line_after(self, octets: bytes) -> bytes:
        asking = self.asking
        # Not what it says: SCRAM's last challenge and its first are enough to try passwords on.
        asking.service.log.event(DEBUG, "reply", asking.session, "S: 334 (challenge)")
        asking.service.statistics.other_replies[334] += 1
        asking.wire.out += b"334 " + b2a_base64(octets, newline=False) + b"\r\n"
        line = await read_line(asking.wire, MAX_AUTH_LINE)  # a longer one ends the connection
        asking.service.log.event(DEBUG, "command", asking.session, "C: (answer to the challenge)")
        if asking.service.options.forbid_unauth_pipelining and asking.wire.pending():
            raise ConnectionEnded("input out of turn", reply.OUT_OF_TURN)
        return asking.service.stripped(line)

    async def verify(self, request: AuthRequest) -> object:
        await self._is_about(request.username)
        try:
            user = await self.asking.verify(request)
        finally:  # until all of the exchange has succeeded nobody is logged in
            self.own_name, self.session.username = self.session.username, None
        await self._check_rates()
        return user

    async def _is_about(self, username: str) -> None:
        """Note whom the login is about; raises Refused where too many for that account have failed."""
        self.username = username
        await self._check_rates()

    async def _check_rates(self) -> None:
        """Raise LimitCrossed or Refused where too many logins have failed."""
        # Before the answer is known and after it: many logins at once, which all began before the first had failed, are
        # no more guesses than one after the other, and an answer that comes too late is the same, right or wrong.
        rates = self.asking.service.rates
        if rates is None:
            return
        await limits.address_may_log_in(rates, self.session)
        if self.username and not await rates.account_left("auth_failures", self.username):
            _log(self.asking, "too many failed logins for %s: refused", self.username)
            count(self.asking.service.statistics.refusals["limit"], "rate_of_auth_failures")
            raise Refused(reply.ACCOUNT_LOCKED)

    async def note_failure(self, *, counts: bool = True) -> None:
        """Log once that the login failed, and count it; raises LimitCrossed or Refused as any late answer does."""
        if self._has_failed:
            return
        self._has_failed = True
        _log(self.asking, "authentication failed for %s", self.username)
        rates = self.asking.service.rates
        if rates is not None and counts:
            await self._check_rates()
            await rates.take("auth_failures", self.session, self.username)

    async def scram_keys(self, username: str) -> Sequence[ScramKeys]:
        await self._is_about(username)
        try:
            answer = await self.asking.ask(ON_SCRAM, username, self.session)
        except Refused as refused:
            # A refusal without a code is how handlers say "no": here it must not tell who exists.
            if isinstance(refused.__cause__, Reject) and refused.__cause__.code is None:
                return ()
            raise
        try:
            return _keys(answer)
        except (TypeError, ValueError) as error:
            raise Refused(reply.AUTH_FAILED_HERE, error) from error


def _keys(answer: Any) -> Sequence[ScramKeys]:
    """Return what ``on_scram`` answered as a list; raises TypeError or ValueError, without what was answered."""
    if answer is None:
        return ()
    entries = answer if isinstance(answer, list | tuple) else [answer]
    for entry in entries:
        if not isinstance(entry, ScramKeys | str):
            raise TypeError(f"on_scram returned {type(entry).__name__}, not ScramKeys, their text, or None")
    return [ScramKeys.parse(entry) if isinstance(entry, str) else entry for entry in entries]


def _decoded(octets: bytes) -> bytes:
    try:
        return a2b_base64(octets, strict_mode=True)
    except Base64Error:
        raise InvalidCredential("not base64") from None
