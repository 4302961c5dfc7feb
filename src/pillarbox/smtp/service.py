"""What a listener's options mean to the protocol, worked out once so that no connection and no command has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import ERROR
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PROGRAM_ENDS, ConfigurationError, Reject
from pillarbox.extension import Command, Extension, Parameter, check_keyword
from pillarbox.networks import Networks
from pillarbox.smtp import limits, reply, sasl
from pillarbox.smtp.asking import Rule
from pillarbox.smtp.commands import CORE
from pillarbox.smtp.extensions import built_in
from pillarbox.smtp.phase import AUTH, HELLO, MAIL, RCPT
from pillarbox.smtp.reply import Refused, Reply, encode
from pillarbox.smtp.wire import ConnectionEnded
from pillarbox.statistics import Statistics, count

if TYPE_CHECKING:
    from pillarbox.logs import EventLog
    from pillarbox.options import Options
    from pillarbox.session import Session
    from pillarbox.smtp.conversation import Conversation

# So many kinds of sessions are remembered with what is announced to them.
_STATES = 64

Hook = Callable[..., Any] | None  # None: nobody asks


class Service:
    """The service that one listener offers."""

    def __init__(
        self,
        options: Options,
        hooks: Mapping[str, Hook],
        log: EventLog,
        rates: limits.Rates | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.options = options
        self.log = log
        self.rates = rates
        self.statistics = Statistics() if statistics is None else statistics
        self.codes = not options.hide_enhanced_status_codes
        self.disabled = frozenset(verb.encode() for verb in options.disabled_commands)
        given = [sasl.built_in(method) if isinstance(method, str) else method for method in options.auth_methods]
        self.mechanisms: dict[str, sasl.Mechanism] = {mechanism.name: mechanism for mechanism in given}
        # Asked for each EHLO: only those that may say no are worth a call.
        self._depending_mechanisms = {m.name for m in given if type(m).offered is not sasl.Mechanism.offered}
        self.must_authenticate = options.must_authenticate
        self.bare_newline = options.bare_newline
        self.size = options.size
        self.max_recipients = options.max_recipients
        self.max_messages = options.max_messages
        self.lenient = options.lenient_address_parsing
        self.auth_needs_tls = options.auth_needs_tls
        self.xclient_peers = Networks(options.use_xclient) or None
        self.xforward_peers = Networks(options.use_xforward) or None
        self.accepted = reply.ACCEPTED if options.lmtp else reply.QUEUED
        self.hooks: dict[str, Hook] = dict(hooks)
        # What MAIL, RCPT and a message need; that AUTH may be waived decides for all of them.
        self._waived = 0 if options.must_authenticate else AUTH
        self.for_message = (HELLO | AUTH | MAIL | RCPT) & ~self._waived
        self._announced: list[str | Callable[[Session], str | None]] = []
        self.mail_parameters: dict[str, Parameter] = {}
        self.rcpt_parameters: dict[str, Parameter] = {}
        self.commands: dict[bytes, Command] = {}
        for command in CORE:
            self._add_command(command)
        for extension in built_in(self):
            self._add(extension)
        for extension in options.extensions:
            self._add(self._of_application(extension))
        self._rate("MAIL", "messages", reply.TOO_MUCH_MAIL_NOW)
        self._rate("RCPT", "recipients", reply.TOO_MANY_RECIPIENTS_NOW)
        for command in self.commands.values():
            command.counted_in(self.statistics.tally(command.verb))
        self._depending = [keyword for keyword in self._announced if not isinstance(keyword, str)]
        self._keywords: dict[tuple[str | None, ...], list[bytes]] = {}
        # The same, by how nearly all clients write them: what needs no look at case and spaces is found by one look-up.
        four = {verb: command for verb, command in self.commands.items() if len(verb) == 4}
        self.usual = {verb + end: command for verb, command in four.items() for end in (b" ", b"")}
        self._hello_parts = options.helo_response.split("%s")
        self._make_replies()

    def _rate(self, verb: str, what: str, refusal: Reply) -> None:
        """Let a verb be counted; where there is no rate for it, it costs nothing."""
        command = self.commands.get(verb.encode())
        if command is not None and self.rates is not None and self.rates.limits(what):
            self.commands[verb.encode()] = limits.rated(command, self.rates, what, refusal)

    def _make_replies(self) -> None:
        o = self.options
        protocol = "LMTP" if o.lmtp else "ESMTP"
        # RFC 2034 4: the greeting and the HELO/EHLO reply carry no enhanced code.
        self.greeting = encode(220, f"{o.name} {protocol} {o.banner}".rstrip())
        self.too_soon = reply.talks_too_soon(o.name)
        self.too_many_clients = reply.too_many_clients(o.name)
        self.too_many_connections = reply.too_many_connections(o.name)
        self.missing = (
            (HELLO, reply.LHLO_FIRST if o.lmtp else reply.HELLO_FIRST),
            (AUTH, reply.authentication_required(o.auth_required_message)),
            (MAIL, reply.NEED_MAIL),
            (RCPT, reply.NEED_RCPT),
        )
        number = "" if o.hide_size or o.size is None else f" {o.size}"
        self.too_large = reply.too_large(number)
        self.enforced_size = self.too_large if o.enforce_size else None

    def stripped(self, line: bytes) -> bytes:
        """Take off the line's end, if it has one, and the trailing spaces that RFC 5321 4.1.1 asks to tolerate."""
        if line[-1:] != b"\n":
            return line.rstrip(b" ")
        if line[-2:] == b"\r\n":
            return line[:-2].rstrip(b" ")
        if self.options.bare_newline == "reject":
            raise ConnectionEnded("a bare LF", reply.BARE_LF)
        return line[:-1].rstrip(b" ")

    def mechanism_names(self, session: Session) -> list[str]:
        """Return the SASL mechanisms that this session may use."""
        if not self._depending_mechanisms:
            return list(self.mechanisms)
        return [name for name in self.mechanisms if self._is_offered(name, session)]

    def mechanism(self, name: str, session: Session) -> sasl.Mechanism | None:
        """Return a mechanism by its name in any case; None where there is none, or not for this session."""
        upper = name.upper() if name.isascii() else ""
        return self.mechanisms[upper] if upper in self.mechanisms and self._is_offered(upper, session) else None

    def _is_offered(self, name: str, session: Session) -> bool:
        if name not in self._depending_mechanisms:
            return True
        try:
            return bool(self.mechanisms[name].offered(session))
        except PROGRAM_ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - an application's; the others are offered nevertheless
            self.log.event(ERROR, "error", session, "offered() of the mechanism %s failed", name, error=error)
            return False

    def check_handlers(self) -> None:
        """Raise ConfigurationError where a mechanism has not the handler that it needs."""
        for name, mechanism in self.mechanisms.items():
            handler = mechanism.needs_handler
            if handler is not None and b"AUTH" not in self.disabled and self.hooks.get(handler) is None:
                problem = f"option auth_methods: {name} needs the handler {handler}(), and there is none"
                raise ConfigurationError(problem, "auth_methods")

    def may_auth(self, session: Session) -> bool:
        """Whether AUTH would be accepted as far as TLS goes."""
        return session.secure or not self.auth_needs_tls

    def may_xclient(self, session: Session) -> bool:
        """Whether this client may say who it speaks for."""
        return self.xclient_peers is not None and _trusted(session, self.xclient_peers)

    def may_xforward(self, session: Session) -> bool:
        """Whether this client may say where a message came from."""
        return self.xforward_peers is not None and _trusted(session, self.xforward_peers)

    # --- Extensions

    def _add_command(self, command: Command) -> bool:
        """Add a verb, unless it is disabled or of the other protocol."""
        verb = command.verb.encode()
        if verb in self.commands:
            raise ConfigurationError(f"option extensions: there is a verb {command.verb} already", "extensions")
        if verb in self.disabled or command.lmtp not in (None, self.options.lmtp):
            return False
        if command.verb in limits.JUNK:
            command = limits.counted(command)
        self.commands[verb] = replace(command, needs=command.needs & ~self._waived)
        return True

    def _add(self, extension: Extension) -> None:
        for there, more in ((self.mail_parameters, extension.mail), (self.rcpt_parameters, extension.rcpt)):
            for name, parameter in more.items():
                if name in there:
                    raise ConfigurationError(f"option extensions: there is a parameter {name} already", "extensions")
                there[name] = parameter
        enabled = [self._add_command(command) for command in extension.commands]
        keyword = extension.keyword
        if keyword is not None and (any(enabled) or not enabled):
            self._announced.append(keyword)

    def _of_application(self, extension: Extension) -> Extension:
        """Call its functions as handlers are called, so that their failures are the application's."""
        keyword = extension.keyword
        if keyword is not None and not isinstance(keyword, str):
            keyword = self._checked(keyword)
        return replace(extension, keyword=keyword, commands=[self._asked(command) for command in extension.commands])

    def _checked(self, keyword: Callable[[Session], str | None]) -> Callable[[Session], str | None]:
        def checked(session: Session) -> str | None:
            try:
                line = keyword(session)
                if hasattr(line, "__await__"):
                    getattr(line, "close", bool)()
                return None if line is None else check_keyword(line)
            except PROGRAM_ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - an application's; the others are announced nevertheless
                self.log.event(ERROR, "error", session, "the EHLO keyword of an extension failed", error=error)
                return None

        return checked

    def _asked(self, command: Command) -> Command:
        rule = Rule(command.verb, reply.verb_refused(command.verb))
        self.hooks[command.verb] = command.run

        async def run(c: Conversation, argument: str) -> Reply | None:
            c.replied = False
            answer = await c.asking.ask(rule, c, argument)
            if isinstance(answer, Reply):
                if answer.code >= 400:
                    count(self.statistics.refusals["handler"], command.verb)
                    # As if it had been raised: 421 closes, the session keeps it, and it is no error of the client.
                    raise Refused(answer) from Reject()
                return answer
            if answer is None and c.replied:
                return None
            problem = f"{command.verb} returned {type(answer).__name__} and not a Reply: the client waits for one"
            raise Refused(reply.LOCAL_ERROR, TypeError(problem))

        return replace(command, run=run)

    def keywords(self, session: Session) -> list[bytes]:
        """Return the EHLO keywords (RFC 5321 4.1.1.1) for a session as it is now."""
        # Made once for each answer of those that depend on the session.
        said = tuple([keyword(session) for keyword in self._depending])
        lines = self._keywords.get(said)
        if lines is None:
            if len(self._keywords) >= _STATES:  # an extension may always say something new
                self._keywords.clear()
            answers = dict(zip(self._depending, said, strict=True))
            found = [keyword if isinstance(keyword, str) else answers[keyword] for keyword in self._announced]
            lines = self._keywords[said] = [line.encode() for line in found if line is not None]
        return lines

    def checked_keywords(self, keywords: Any) -> list[bytes]:
        """Return what ``on_ehlo`` wants to be announced; raises Refused where that is not a list of keywords."""
        try:
            if isinstance(keywords, str):
                raise TypeError("on_ehlo must return a list of keywords, not one string")
            return [check_keyword(keyword).encode() for keyword in keywords]
        except PROGRAM_ENDS:
            raise
        except BaseException as error:
            raise Refused(reply.LOCAL_ERROR, error) from error

    def hello_text(self, session: Session) -> str:
        """Fill in ``helo_response``: each ``%s`` in turn, a third one is empty."""
        first, *others = self._hello_parts
        values = (self.options.name, session.client_hostname)
        filled = [first]
        for place, text in enumerate(others):
            filled += [values[place] if place < len(values) else "", text]
        return "".join(filled)


def _trusted(session: Session, peers: Networks) -> bool:
    """Whether this client may speak for others; not once another has spoken for it."""
    return session.remote_address in peers and "ADDR" not in session.x_client
