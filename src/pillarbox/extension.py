"""What a service extension is made of (RFC 5321 2.2): a keyword of the EHLO reply, verbs, parameters of MAIL and RCPT.

The server's own extensions (``smtp.extensions``) are made of the same classes as an application's.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from pillarbox.errors import ConfigurationError

if TYPE_CHECKING:
    from pillarbox.options import Options
    from pillarbox.session import Address, Envelope, Session
    from pillarbox.smtp.conversation import Conversation
    from pillarbox.smtp.reply import Reply

# RFC 5321 4.1.2: "esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")", and verbs are written like that too.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
# RFC 5321 4.1.1.1: "ehlo-line = ehlo-keyword *( SP ehlo-param )", all of it printable ASCII.
_LINE = re.compile(r"[!-~]+(?: [!-~]+)*")
# What RFC 5321 4.5.3.1.5 leaves of a reply line.
_LONGEST_LINE = 512 - len("250-\r\n")


class Phase(IntFlag):
    """What a session has done: a verb needs some of it, and may be refused after some of it."""

    HELLO = 1
    TLS = 2
    AUTH = 4
    MAIL = 8
    RCPT = 16
    CHUNKS = 32  # a message has begun with BDAT
    DOOMED = 64  # the next command is refused, whatever it is


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One verb, and when it is legal.

    verb: in upper case, ASCII letters, digits and hyphens.
    run: ``run(conversation, argument)`` returns the reply, or a coroutine that returns it; None where it has replied
        itself. It raises ``Reject`` to refuse (550 by default).
    needs: what must have been done before (503, for AUTH 530).
    clashes: after which it is refused, each with its reply.
    last_in_group: its reply comes before anything else is read (RFC 2920 3.1).
    lmtp: True: in LMTP only; False: not in LMTP; None: in both.
    """

    verb: str
    run: Callable[[Conversation, str], Reply | Awaitable[Reply | None]]
    needs: int = 0
    clashes: tuple[tuple[int, Reply], ...] = ()
    last_in_group: bool = False
    lmtp: bool | None = None
    concerns: int = field(init=False, repr=False)  # the phases that decide
    tally: list[int] = field(init=False, repr=False)  # where a server counts it

    def __post_init__(self) -> None:
        _check_name(self.verb, "verb")
        if not callable(self.run):
            raise ConfigurationError(f"verb {self.verb}: run must be a function run(conversation, argument)")
        bits = 0 if self.verb == "QUIT" else int(Phase.DOOMED)
        for bit, _ in self.clashes:
            bits |= bit
        # Plain numbers: the flags of `enum` take 0.5 µs for each of their operations.
        object.__setattr__(self, "needs", int(self.needs))
        object.__setattr__(self, "concerns", bits | int(self.needs))

    def counted_in(self, tally: list[int]) -> None:
        """Let it be counted there."""
        object.__setattr__(self, "tally", tally)


@dataclass(slots=True, eq=False)
class Asked:
    """What a parameter belongs to; it takes effect only where the whole command is accepted.

    address: the sender of MAIL, the ``Recipient`` of RCPT; its ``args`` hold the parameters as they were sent.
    envelope: of this transaction; on MAIL it is new.
    """

    options: Options
    session: Session
    envelope: Envelope
    address: Address


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """One parameter of MAIL or RCPT.

    apply: plain function ``apply(asked, value)``; ``value`` is "" for a flag. It raises ``Reject`` (501 by default) to
        refuse the command. What it returns, unless that is None, stands in ``address.args`` in the place of the text.
    takes_value: ``KEYWORD=value``, or else a flag; the other form is 501.
    """

    apply: Callable[[Asked, str], Any]
    takes_value: bool = True

    def __post_init__(self) -> None:
        if not callable(self.apply) or _is_async(self.apply):
            raise ConfigurationError(
                "Parameter: apply must be a plain function apply(asked, value), not `async def`:"
                " what has to wait belongs into on_mail_from or on_rcpt_to, where the value stands in address.args"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """A service extension, for the option ``extensions``.

    keyword: what EHLO announces, "XCOUNTRY DE AT" for example; a function of the session that returns it or None; or
        None: nothing. Where all its commands are disabled it is not announced.
    commands: its verbs. mail, rcpt: its parameters, by keyword in upper case.

    Raises ConfigurationError for what is malformed or of the wrong kind.
    """

    keyword: str | Callable[[Session], str | None] | None = None
    commands: Sequence[Command] = ()
    mail: Mapping[str, Parameter] = field(default_factory=dict)
    rcpt: Mapping[str, Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if callable(self.keyword):
            if _is_async(self.keyword):
                raise ConfigurationError("Extension: keyword must be a string or a plain function, not `async def`")
        elif self.keyword is not None:
            check_keyword(self.keyword)
        if not (isinstance(self.commands, Sequence) and all(isinstance(each, Command) for each in self.commands)):
            raise ConfigurationError("Extension: commands must be a list of pillarbox.Command")
        for field_name, parameters in (("mail", self.mail), ("rcpt", self.rcpt)):
            _check_parameters(field_name, parameters)


def _check_parameters(field_name: str, parameters: Mapping[str, Parameter]) -> None:
    if not isinstance(parameters, Mapping):
        raise ConfigurationError(f"Extension: {field_name} must map keywords to pillarbox.Parameter")
    for name, parameter in parameters.items():
        _check_name(name, "parameter")
        if not isinstance(parameter, Parameter):
            kind = type(parameter).__name__
            raise ConfigurationError(f"parameter {name}: must be a pillarbox.Parameter, not {kind}")


def _check_name(name: str, what: str) -> None:
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of a {what} must be a string, not {type(name).__name__}")
    _check(_WORD, name, what)
    if name != name.upper():
        raise ConfigurationError(f"{what} {name!r} must be in upper case: {name.upper()!r}")


def _is_async(function: Any) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_keyword(line: str) -> str:
    """Refuse a malformed line of an EHLO reply; raises ConfigurationError."""
    if not isinstance(line, str):
        raise ConfigurationError(f"an EHLO keyword must be a string, not {type(line).__name__}")
    _check(_LINE, line, "EHLO keyword")
    if len(line) > _LONGEST_LINE:
        raise ConfigurationError(f"EHLO keyword {line[:20]}… is longer than {_LONGEST_LINE} characters")
    return line


def _check(form: re.Pattern[str], text: str, what: str) -> None:
    if not form.fullmatch(text):
        raise ConfigurationError(f"{what} {text!r} is malformed (RFC 5321 4.1.2)")
