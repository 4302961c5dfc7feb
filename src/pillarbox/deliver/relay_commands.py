"""MAIL and RCPT for the next server: what of the envelope it is told, as far as it offers to know it.

What a message cannot do without and the next server does not offer is refused here, before the message is on its way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pillarbox import Reject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pillarbox import Envelope, Recipient

__all__ = ["mail_command", "rcpt_command", "sends_utf8", "with_a_labels"]


# A quoted local part may hold anything but control characters; else no bracket or quote that could end the path.
_PATH = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"(?=@|$))?[^<>"\x00-\x1f\x7f]*')


def sends_utf8(envelope: Envelope, offers: Mapping[str, str]) -> bool:
    """Tell whether MAIL says SMTPUTF8: the message came with it, and the next server offers it."""
    return envelope.smtp_utf8 and "SMTPUTF8" in offers


def mail_command(envelope: Envelope, offers: Mapping[str, str], *, size: int | None, tls: bool) -> bytes:
    """Return the MAIL command, with CRLF; ``tls``: the connection is encrypted, to a server whose name was verified.

    Raises Reject (5xx) for what the next server cannot be asked for.
    """
    utf8 = sends_utf8(envelope, offers)
    sender = envelope.mail_from
    path = _path(sender.address if sender else "", utf8, 550)
    parameters = [*_content(envelope, offers, size), *_wishes(envelope, offers, tls)]
    return _line("MAIL FROM:", path, parameters, utf8)


def rcpt_command(recipient: Recipient, envelope: Envelope, offers: Mapping[str, str]) -> bytes:
    """Return the RCPT command, with CRLF; raise Reject (5xx) for what the next server cannot be asked for."""
    utf8 = sends_utf8(envelope, offers)
    path = _path(recipient.address, utf8, 553)
    return _line("RCPT TO:", path, list(_recipient_wishes(recipient, offers)), utf8)


def _line(verb: str, path: str, parameters: list[str], utf8: bool) -> bytes:
    known = [each for each in parameters if utf8 or each.isascii()]
    return " ".join([verb + path, *known]).encode() + b"\r\n"


# --- Paths


def _path(address: str, utf8: bool, code: int) -> str:
    if not utf8 and not address.isascii():
        address = with_a_labels(address)
        if not address.isascii():
            # RFC 6531 3.5 has 550 for a sender and 553 for a recipient, and X.6.7 "Non-ASCII addresses not permitted
            # for that sender/recipient".
            raise Reject(code, "Error: the next server does not take UTF-8 in addresses", enhanced="5.6.7")
    if _PATH.fullmatch(address) is None:  # only lenient_address_parsing lets such in
        raise Reject(553, "Error: this address cannot be handed on", enhanced="5.1.3")
    return f"<{address}>"


def with_a_labels(address: str) -> str:
    """Spell the domain in ASCII: a session has it in Unicode, also where the client sent ``xn--``."""
    import idna

    local_part, at, domain = address.rpartition("@")
    if domain.isascii():
        return address
    try:
        return f"{local_part}{at}{idna.encode(domain, uts46=True).decode('ascii')}"
    except UnicodeError:
        return address


# --- Parameters


def _content(envelope: Envelope, offers: Mapping[str, str], size: int | None) -> Iterator[str]:
    """Yield what MAIL says of the message itself."""
    if size is not None and "SIZE" in offers:
        yield f"SIZE={size}"
    if envelope.body_type == "8bitmime" and "8BITMIME" in offers:
        yield "BODY=8BITMIME"
    if envelope.body_type == "binarymime":
        # RFC 3030 3 lets such a message go on to a server with BINARYMIME and CHUNKING alone; any other would need it
        # converted, which is not done here. RFC 3463 3.7: "X.6.3 Conversion required but not supported".
        if not {"BINARYMIME", "CHUNKING"} <= set(offers):
            raise Reject(554, "Error: the next server does not take BODY=BINARYMIME", enhanced="5.6.3")
        yield "BODY=BINARYMIME"
    if sends_utf8(envelope, offers):
        yield "SMTPUTF8"


def _wishes(envelope: Envelope, offers: Mapping[str, str], tls: bool) -> Iterator[str]:
    """Yield what MAIL asks of those who hand the message on."""
    args = envelope.mail_from.args if envelope.mail_from else {}
    if "DSN" in offers:
        if envelope.dsn.ret:
            yield f"RET={envelope.dsn.ret}"
        if envelope.dsn.envid:
            yield f"ENVID={args['ENVID']}"
    if envelope.require_tls:
        # RFC 8689 4.2.1 lets it go on only under TLS, to a server whose name was verified and that offers REQUIRETLS;
        # its X.7.30 is "REQUIRETLS support required".
        if not (tls and "REQUIRETLS" in offers):
            raise Reject(550, "Error: REQUIRETLS support required of the next server", enhanced="5.7.30")
        yield "REQUIRETLS"
    if envelope.mt_priority is not None and "MT-PRIORITY" in offers:
        yield f"MT-PRIORITY={envelope.mt_priority}"
    if envelope.deliver_by is not None:
        yield from _asked("BY", args, "DELIVERBY", offers, needed=envelope.deliver_by.mode == "return")
    if envelope.hold_until is not None:
        keyword = "HOLDFOR" if "HOLDFOR" in args else "HOLDUNTIL"
        yield from _asked(keyword, args, "FUTURERELEASE", offers, needed=True)


def _recipient_wishes(recipient: Recipient, offers: Mapping[str, str]) -> Iterator[str]:
    """Yield what RCPT asks; RFC 3461 5.2.1 has NOTIFY and ORCPT go on as they came."""
    if "DSN" in offers:
        if recipient.dsn.notify:
            yield f"NOTIFY={','.join(recipient.dsn.notify)}"
        if recipient.dsn.orcpt:
            yield f"ORCPT={recipient.args['ORCPT']}"
    if recipient.rrvs is not None:
        needed = recipient.rrvs.action == "reject"
        yield from _asked("RRVS", recipient.args, "RRVS", offers, needed=needed)


def _asked(
    keyword: str, args: Mapping[str, object], extension: str, offers: Mapping[str, str], *, needed: bool
) -> Iterator[str]:
    """Yield a parameter as it came; refuse where it is needed and not offered."""
    if extension in offers:
        yield f"{keyword}={args[keyword]}"
    elif needed:
        # RFC 3463 3.4: "X.3.3 System not capable of selected features".
        raise Reject(550, f"Error: the next server does not offer {extension}", enhanced="5.3.3")
