"""What a listener's options mean to the protocol, worked out once so that no connection and no command has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pillarbox.networks import Networks
from pillarbox.smtp import reply
from pillarbox.smtp.commands import COMMANDS
from pillarbox.smtp.phase import AUTH, HELLO, MAIL, RCPT
from pillarbox.smtp.reply import Reply, encode
from pillarbox.smtp.sasl import MECHANISMS
from pillarbox.smtp.wire import ConnectionEnded

if TYPE_CHECKING:
    from pillarbox.logs import EventLog
    from pillarbox.options import Options
    from pillarbox.session import Session

Hook = Callable[..., Any] | None  # None: nobody asks


class Service:
    """The service that one listener offers."""

    def __init__(self, options: Options, hooks: Mapping[str, Hook], log: EventLog) -> None:
        self.options = options
        self.hooks = hooks
        self.log = log
        self.codes = not options.hide_enhanced_status_codes
        self.disabled = frozenset(verb.encode() for verb in options.disabled_commands)
        self.mechanisms = {name: MECHANISMS[name] for name in options.auth_methods}
        self.must_authenticate = options.must_authenticate
        self.bare_newline = options.bare_newline
        self.size = options.size
        self.lenient = options.lenient_address_parsing
        self.auth_needs_tls = options.auth_needs_tls
        self.xclient_peers = Networks(options.use_xclient) or None
        self.xforward_peers = Networks(options.use_xforward) or None
        self.accepted = reply.ACCEPTED if options.lmtp else reply.QUEUED
        # The commands of this listener's protocol that are not disabled, and whether they need AUTH.
        waived = 0 if options.must_authenticate else AUTH
        self.commands = {
            verb: replace(command, needs=command.needs & ~waived)
            for verb, command in COMMANDS.items()
            if verb not in self.disabled and command.lmtp in (None, options.lmtp)
        }
        # The same, by how nearly all clients write them: what needs no look at case and spaces is found by one look-up.
        four = {verb: command for verb, command in self.commands.items() if len(verb) == 4}
        self.usual = {verb + end: command for verb, command in four.items() for end in (b" ", b"")}
        self._hello_parts = options.helo_response.split("%s")
        self._make_replies()
        self._keywords: dict[tuple[bool, bool, bool, bool], list[bytes]] = {}

    def _make_replies(self) -> None:
        o = self.options
        protocol = "LMTP" if o.lmtp else "ESMTP"
        # RFC 2034 4: the greeting and the HELO/EHLO reply carry no enhanced code.
        self.greeting = encode(220, f"{o.name} {protocol} {o.banner}".rstrip())
        self.shutting_down = reply.SHUTTING_DOWN.coded if self.codes else reply.SHUTTING_DOWN.plain
        self.too_soon = Reply(421, "4.7.0", f"{o.name} You talk too soon")
        self.too_many_clients = Reply(421, "4.3.2", f"{o.name} Too many connected clients, try again in a moment")
        self.missing = (
            (HELLO, reply.LHLO_FIRST if o.lmtp else reply.HELLO_FIRST),
            (AUTH, Reply(530, "5.7.0", o.auth_required_message)),
            (MAIL, reply.NEED_MAIL),
            (RCPT, reply.NEED_RCPT),
        )
        number = "" if o.hide_size or o.size is None else f" {o.size}"
        self.too_large = Reply(552, "5.3.4", f"Error: message exceeds fixed maximum message size{number}")
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

    def may_auth(self, session: Session) -> bool:
        """Whether AUTH would be accepted as far as TLS goes."""
        return session.secure or not self.auth_needs_tls

    def keywords(self, session: Session, *, authenticated: bool, xclient: bool, xforward: bool) -> list[bytes]:
        """Return the EHLO keywords (RFC 5321 4.1.1.1) for a session in this state; made once for each state."""
        may_auth = self.may_auth(session) and not authenticated
        state = (session.secure, may_auth, xclient, xforward)
        if state not in self._keywords:
            self._keywords[state] = [k.encode() for k in self._list_keywords(*state)]
        return self._keywords[state]

    def _list_keywords(self, secure: bool, may_auth: bool, xclient: bool, xforward: bool) -> list[str]:
        o = self.options
        size = "SIZE" if o.hide_size else f"SIZE {o.size}"
        offered = (
            (not o.hide_pipelining, "PIPELINING"),
            (not o.hide_8bitmime, "8BITMIME"),
            (not o.hide_smtputf8, "SMTPUTF8"),
            (not o.hide_enhanced_status_codes, "ENHANCEDSTATUSCODES"),
            (not o.hide_dsn, "DSN"),
            (may_auth and b"AUTH" not in self.disabled, "AUTH " + " ".join(self.mechanisms)),
            (not (secure or o.hide_starttls) and b"STARTTLS" not in self.disabled, "STARTTLS"),
            # RFC 8689 4: advertised only where the session is under TLS.
            (secure and not o.hide_requiretls, "REQUIRETLS"),
            (o.size is not None, size),
            (
                xclient and b"XCLIENT" not in self.disabled,
                "XCLIENT NAME REVERSE_NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT",
            ),
            (xforward and b"XFORWARD" not in self.disabled, "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"),
        )
        return [keyword for there, keyword in offered if there]

    def hello_text(self, session: Session) -> str:
        """Fill in ``helo_response``: each ``%s`` in turn, a third one is empty."""
        first, *others = self._hello_parts
        values = (self.options.name, session.client_hostname)
        filled = [first]
        for place, text in enumerate(others):
            filled += [values[place] if place < len(values) else "", text]
        return "".join(filled)
