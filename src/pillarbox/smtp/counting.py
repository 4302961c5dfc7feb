"""Under which name a refusal is counted: what the protocol refuses by its reply, a limit by the option that sets it.

What a hook refuses, and its failures, are counted where it is asked (``asking``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillarbox.errors import Reject
from pillarbox.smtp import chunks, reply
from pillarbox.smtp.wire import LimitCrossed
from pillarbox.statistics import count

if TYPE_CHECKING:
    from pillarbox.smtp.reply import Refused, Reply
    from pillarbox.smtp.service import Service
    from pillarbox.smtp.wire import ConnectionEnded

_BY_REPLY: dict[Reply | None, str] = {
    reply.HTTP: "http",
    reply.OUT_OF_TURN: "pipelining",
    reply.BARE_LF: "bare_newline",
    reply.LINE_TOO_LONG: "line_too_long",
    reply.NOT_RECOGNIZED: "unknown_command",
    reply.EHLO_IN_LMTP: "unknown_command",
    reply.BAD_CHARACTERS: "characters",
    reply.AUTH_ABORTED: "auth_aborted",
    chunks.BAD_SYNTAX: "syntax",
}
# Where many replies say the same.
_BY_CODE = {
    500: "syntax",
    501: "syntax",
    503: "sequence",
    504: "unknown_mechanism",
    530: "tls_or_login_needed",
    538: "tls_or_login_needed",
    550: "not_permitted",
    553: "smtputf8",
    555: "parameter",
}


def refused(service: Service, verb: str, refusal: Refused) -> None:
    """Count a command that is refused, unless that was a hook or a limit that counts itself."""
    refusals, code = service.statistics.refusals, refusal.reply.code
    if refusal.failure is not None:
        count(refusals["failure"], verb)
    elif code == 552:
        count(refusals["limit"], "size")
    elif code >= 500 and not isinstance(refusal.__cause__, Reject):
        count(refusals["protocol"], _BY_REPLY.get(refusal.reply) or _BY_CODE.get(code, "other"))


def ended(service: Service, end: ConnectionEnded) -> None:
    """Count the end of a conversation where a limit or the protocol made it."""
    refusals = service.statistics.refusals
    if isinstance(end, LimitCrossed):
        count(refusals["limit"], end.limit)
    elif end.reply is service.too_soon:
        count(refusals["protocol"], "early_talk")
    elif end.reply in _BY_REPLY:
        count(refusals["protocol"], _BY_REPLY[end.reply])
