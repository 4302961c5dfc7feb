"""Asking the application: how a handler is called, and what its answer, refusal or failure means to the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine
from logging import WARNING
from typing import TYPE_CHECKING, Any, TypeVar

from pillarbox.errors import PROGRAM_ENDS, Reject
from pillarbox.smtp import reply
from pillarbox.smtp.reply import Refused, Reply
from pillarbox.smtp.sasl import AuthRequest
from pillarbox.smtp.wire import ConnectionEnded, TransactionAborted
from pillarbox.statistics import count

if TYPE_CHECKING:
    from pillarbox.session import Session
    from pillarbox.smtp.service import Service
    from pillarbox.smtp.wire import Wire


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rule:
    """What a hook's ``Reject`` means where it does not say, and what the client hears of a bug."""

    hook: str
    refusal: Reply
    failure: Reply = reply.LOCAL_ERROR


_Made = TypeVar("_Made")

ON_CONNECT = Rule("on_connect", reply.CONNECTION_REFUSED, reply.LOCAL_ERROR_CLOSING)
ON_SECURE = Rule("on_secure", reply.CONNECTION_REFUSED, reply.LOCAL_ERROR_CLOSING)
ON_AUTH = Rule("on_auth", reply.BAD_CREDENTIALS, reply.AUTH_FAILED_HERE)
ON_SCRAM = Rule("on_scram", reply.BAD_CREDENTIALS, reply.AUTH_FAILED_HERE)
ON_MAIL_FROM = Rule("on_mail_from", reply.SENDER_REFUSED)
ON_RCPT_TO = Rule("on_rcpt_to", reply.RECIPIENT_REFUSED)
ON_EHLO = Rule("on_ehlo", reply.HELLO_REFUSED)
ON_VRFY = Rule("on_vrfy", reply.NO_SUCH_USER)
ON_EXPN = Rule("on_expn", reply.NO_SUCH_LIST)
ON_HELP = Rule("on_help", reply.NO_HELP)
ON_DATA = Rule("on_data", reply.MESSAGE_REFUSED)
_XCLIENT_LOGIN = Rule("on_auth", reply.LOGIN_REFUSED, reply.AUTH_FAILED_HERE)


def made(make: Callable[[], _Made], rule: Rule) -> _Made:
    """Return what a hook's answer comes to; where nothing can be made of it the hook has failed: raises Refused."""
    try:
        return make()
    except PROGRAM_ENDS:
        raise
    except BaseException as error:
        raise Refused(rule.failure, error) from error


class Asking:
    """One session's way to its application."""

    __slots__ = ("_time_limit", "service", "session", "wire")

    def __init__(self, service: Service, session: Session, wire: Wire) -> None:
        self.service = service
        self.session = session
        self.wire = wire
        self._time_limit = service.options.handler_timeout

    async def ask(self, rule: Rule, *arguments: object) -> Any:
        """Call a hook and return its answer; a refusal or a failure becomes Refused."""
        try:
            # One coroutine for the call and what it may raise: each further layer would cost every command 0.3 µs.
            hook = self.service.hooks[rule.hook]
            answer = None if hook is None else hook(*arguments)
            # "while": what an `async def` returned without awaiting it must not pass for a true answer.
            while answer is not None and hasattr(answer, "__await__"):
                answer = await (answer if self._time_limit is None else self._in_time(answer))
            if answer is not None and isinstance(answer, Reject):
                raise answer  # nor may one that was returned where it was to be raised
        except Reject as reject:
            if rule is ON_DATA and getattr(arguments[0], "refusal", None) is not None:
                raise Refused(reply.MESSAGE_REFUSED) from reject  # what the message is refused for takes its place
            raise Refused(self._refusal(reject, rule)) from reject
        except (Refused, ConnectionEnded, TransactionAborted):
            raise
        except BaseException as error:
            await self.failed(error, rule.hook)
            raise Refused(rule.failure) from error
        return answer

    async def failed(self, error: BaseException, hook: str) -> None:
        """Count and report a handler's failure, whatever it was; what ends the connection or the program goes on up."""
        if self.wire.ends_with(error):
            raise error
        count(self.service.statistics.refusals["failure"], hook)
        await self.report(error)

    async def _in_time(self, answer: Awaitable[Any]) -> Any:
        seconds = self._time_limit
        if seconds is None:
            return await answer
        async with self.wire.time_limit(seconds):
            return await answer

    async def _tell(self, hook: str, *arguments: object) -> None:
        function = self.service.hooks[hook]
        answer: Any = None if function is None else function(*arguments)
        while hasattr(answer, "__await__"):
            answer = await self._in_time(answer)

    async def report(self, error: BaseException) -> None:
        """Tell ``on_error``; a failure of that is logged."""
        try:
            await self._tell("on_error", error, self.session)
        except BaseException as second:
            if self.wire.ends_with(second):
                raise
            # There is no one left to tell but the log.
            self.service.log.event(WARNING, "error", self.session, "on_error failed", error=second)

    async def tell_closed(self) -> None:
        """Tell ``on_close``; what it raises is only reported."""
        try:
            await self._tell("on_close", self.session)
        except BaseException as error:  # noqa: BLE001 - the connection is gone, nobody waits for an answer
            await self.failed(error, "on_close")

    async def tell_reset(self) -> None:
        """Tell ``on_reset``; what it raises is only reported: RSET cannot be refused."""
        try:
            await self._tell("on_reset", self.session)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the answer is 250
            await self.failed(error, "on_reset")

    def _refusal(self, reject: Reject, rule: Rule) -> Reply:
        count(self.service.statistics.refusals["handler"], rule.hook)
        return reply.from_reject(reject, rule.refusal, utf8=self.session.envelope.smtp_utf8)

    # --- The answer to a message

    async def recipient_replies(self, answer: object) -> AsyncIterator[Reply]:
        """Yield the replies of LMTP that ``on_data``'s answer means."""
        # RFC 2033 4.2: "after the final ".", the server … returns one reply for each previously successful RCPT
        # command in the mail transaction, in the order that the RCPT commands were issued."
        entries = await self._for_each_recipient(answer)
        try:
            while entries:
                entry = entries.pop(0)
                if hasattr(entry, "__await__"):
                    self.wire.flush()  # those before are known and need not wait
                yield await self.message_reply(entry)
        finally:
            self.let_go(entries)

    async def _for_each_recipient(self, answer: object) -> list[object]:
        recipients = len(self.session.envelope.rcpt_to)
        if not isinstance(answer, list | tuple):
            return [answer] * recipients
        if len(answer) == recipients:
            return list(answer)
        self.let_go(answer)
        await self.report(ValueError(f"on_data returned {len(answer)} replies for {recipients} recipients"))
        return [Refused(reply.LOCAL_ERROR)] * recipients

    def let_go(self, answer: object) -> None:
        """Close or cancel what ``on_data`` returned to be awaited, where nobody is left to be answered with it."""
        # A message that the client did not finish, or that was refused, must not be delivered; and a coroutine that is
        # forgotten would warn of it.
        for entry in answer if isinstance(answer, list | tuple) else (answer,):
            end = entry.close if iscoroutine(entry) else getattr(entry, "cancel", None)
            if end is not None and hasattr(entry, "__await__"):
                end()

    async def message_reply(self, answer: object) -> Reply:
        """Return the reply that one answer of ``on_data`` means."""
        try:
            while isawaitable(answer):
                answer = await self._in_time(answer)
            if isinstance(answer, list | tuple) and any(hasattr(entry, "__await__") for entry in answer):
                self.let_go(answer)  # 250 would promise what is not done yet
                raise TypeError("on_data returned a list of awaitables where one answer was due")
            if isinstance(answer, BaseException) and not isinstance(answer, Reject | Refused):  # as asyncio.gather does
                raise answer
        except (Reject, Refused) as refusal:
            return self._reply_for(refusal)
        except ConnectionEnded:
            raise
        except BaseException as error:  # noqa: BLE001 - as for every hook
            await self.failed(error, ON_DATA.hook)
            return reply.LOCAL_ERROR
        return self._reply_for(answer)

    def _reply_for(self, answer: object) -> Reply:
        if answer is None:
            return self.service.accepted
        if isinstance(answer, str):
            return reply.message_accepted(answer)
        if isinstance(answer, Reject):
            return self._refusal(answer, ON_DATA)
        if isinstance(answer, Refused):
            return answer.reply
        # The handler took the message and did not refuse it: to answer with an error would have it sent twice.
        kind = type(answer).__name__
        self.service.log.event(WARNING, "error", self.session, "on_data returned %s instead of a string or None", kind)
        return self.service.accepted

    # --- Identities

    async def verify(self, request: AuthRequest, rule: Rule = ON_AUTH) -> object:
        """Ask ``on_auth`` who this is; raises Reject, or Refused where the handler failed."""
        try:
            user = await self.ask(rule, request, self.session)
        except Refused as refused:
            if isinstance(refused.__cause__, Reject):  # the mechanism may have to tell the client more first
                raise refused.__cause__ from None
            raise
        if isinstance(user, dict):
            problem = "on_auth returned a dict: return the user itself, or raise Reject"
            self.service.log.event(WARNING, "error", self.session, problem)
            raise Refused(reply.AUTH_FAILED_HERE)
        if not await self.is_true(user, rule):
            raise Reject(rule.refusal.code, rule.refusal.text, enhanced=rule.refusal.enhanced)
        if user is not True:
            return user
        if not request.username:
            problem = "on_auth returned True for a %s login without a name: return the user that the credential means"
            self.service.log.event(WARNING, "error", self.session, problem, request.method)
            raise Refused(rule.failure)
        return request.username

    async def is_true(self, user: object, rule: Rule) -> bool:
        """Whether an answer accepts; raises Refused where it cannot be asked."""
        try:
            return bool(user)
        except BaseException as error:
            await self.failed(error, rule.hook)
            raise Refused(rule.failure) from error

    async def vouched_user(self, login: str) -> object:
        """Return the user that XCLIENT's LOGIN names; raises Refused."""
        try:
            return await self.verify(AuthRequest("XCLIENT", login, authcid=login), _XCLIENT_LOGIN)
        except Reject as reject:
            # Its refusal is 550, whatever on_auth says to a client of its own.
            raise Refused(reply.login_refused(reject.text)) from reject
