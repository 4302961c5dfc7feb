"""Trace header fields are made here and nowhere else: nothing a client says can leave its place in one.

Both functions return bytes that end with CRLF, to be put in front of the message (RFC 5321 4.4).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pillarbox.smtp.grammar import is_helo_name

if TYPE_CHECKING:
    from datetime import datetime

    from pillarbox.session import Session

# RFC 5322 2.1.1: "Each line of characters MUST be no more than 998 characters, and SHOULD be no more than 78
# characters, excluding the CRLF."
_WIDTH = 78
_LONGEST_PATH = 900  # octets; only lenient_address_parsing lets in more than 256, and no fold can divide a path
_LONGEST_USER = 200  # characters, of up to four octets each

# What could end a line, here or in a reader that knows Unicode's line ends too, or could not be encoded.
_ENDS_LINES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_IP = re.compile(r"[0-9A-Fa-f:.]+")

# RFC 6531 4.3 registers these "WITH protocol types"; each is for the transmission type of RFC 3848 beside it.
_WITH_SMTPUTF8 = {
    "ESMTP": "UTF8SMTP",
    "ESMTPA": "UTF8SMTPA",
    "ESMTPS": "UTF8SMTPS",
    "ESMTPSA": "UTF8SMTPSA",
    "LMTP": "UTF8LMTP",
    "LMTPA": "UTF8LMTPA",
    "LMTPS": "UTF8LMTPS",
    "LMTPSA": "UTF8LMTPSA",
}


def received_header(
    session: Session,
    *,
    by: str,
    confirmed_name: str | None = None,
    date: datetime | None = None,
    utf8: bool = True,
) -> bytes:
    """Return the Received field for the session's transaction.

    by: the server's own name; confirmed_name: the peer's PTR name, only if it resolves back to the peer's address;
    date: now where it is not given; utf8: whether a message that came with SMTPUTF8 may have UTF-8 in this field, which
    not every server takes that it may go to.
    """
    utf8 = utf8 and session.envelope.smtp_utf8
    # RFC 5321 4.4: 'Stamp = From-domain By-domain Opt-info [CFWS] ";" FWS date-time'
    clauses = [
        _from_domain(session, confirmed_name),
        _tls_comment(session),
        _user_comment(session, utf8),
        _by_domain(session, by),
        _for(session, utf8),
    ]
    stamp = [words for words in clauses if words]
    stamp[-1][-1] += ";"
    return _folded("Received:", [*stamp, [_date_time(date)]])


def return_path_header(session: Session) -> bytes:
    """Return the Return-Path field: the reverse path of the session's transaction."""
    # RFC 5321 4.4: "When the delivery SMTP server makes the "final delivery" of a message, it inserts a return-path
    # line at the beginning of the mail data."
    sender = session.envelope.mail_from
    path = _path(sender.address, session.envelope.smtp_utf8) if sender else None
    # A path that fits no header line could not be answered either: the null path says so.
    return _folded("Return-Path:", [[path or "<>"]])


# --- Clauses: lists of words; a fold may come between words, and begins each clause but the first


def _from_domain(session: Session, confirmed_name: str | None) -> list[str]:
    # RFC 5321 4.4: "The FROM clause, which MUST be supplied in an SMTP environment, SHOULD contain both (1) the name of
    # the source host as presented in the EHLO command and (2) an address literal containing the IP address of the
    # source, determined from the TCP connection."
    claimed = session.host_name_appears_as or ""
    domain = ["from", claimed if is_helo_name(claimed) else "unknown"]
    literal = _address_literal(session.remote_address)
    if not literal:  # a Unix socket's peer has none
        return domain
    # RFC 5321 4.4: "TCP-info = address-literal / ( Domain FWS address-literal )"
    if confirmed_name and is_helo_name(confirmed_name):  # what the DNS says is as foreign as what the client says
        return [*domain, f"({confirmed_name}", f"{literal})"]
    return [*domain, f"({literal})"]


def _address_literal(address: str) -> str:
    # RFC 5321 4.1.3: 'IPv6-address-literal = "IPv6:" IPv6-addr'; it has no zone.
    address = address.partition("%")[0]
    if not _IP.fullmatch(address):
        return ""
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _tls_comment(session: Session) -> list[str]:
    if session.tls is None:
        return []
    return ["(using", _comment_text(session.tls.version), "with", "cipher", f"{_comment_text(session.tls.cipher)})"]


def _user_comment(session: Session, utf8: bool) -> list[str]:
    if session.username is None:  # the name, not `session.user`: an object's text could hold anything
        return []
    shown = _comment_text(session.username, utf8=utf8)
    return ["(Authenticated", "sender:", *f"{shown})".split(" ")]


def _by_domain(session: Session, by: str) -> list[str]:
    kind = session.transmission_type
    # RFC 6531 3.7.3: "The protocol value of the WITH clause when this extension is used is one of the SMTPUTF8 values
    # specified in the "IANA Considerations" section of this document."
    if session.envelope.smtp_utf8:
        kind = _WITH_SMTPUTF8.get(kind, kind)
    # RFC 5321 4.4 has an atom or a msg-id here, RFC 5322 3.6.7 a domain too: that is what the dot makes of the id.
    return ["by", by, "(pillarbox)", "with", kind, "id", f"{session.id}.{session.transaction}"]


def _for(session: Session, utf8: bool) -> list[str]:
    # RFC 5321 7.2: "... SMTP clients and servers SHOULD NOT copy the full set of RCPT command arguments into the header
    # section, either as part of trace header fields or as informational or private-extension header fields."
    recipients = session.envelope.rcpt_to
    if len(recipients) != 1:
        return []
    path = _path(recipients[0].address, utf8)
    return ["for", path] if path and (utf8 or path.isascii()) else []


def _date_time(date: datetime | None) -> str:
    from datetime import datetime
    from email.utils import format_datetime  # 15 ms, which the first message pays

    # RFC 5321 4.4: "Local time (with an offset) is preferred to UT when feasible."
    if date is None or date.tzinfo is None:
        date = (date or datetime.now()).astimezone()
    return format_datetime(date)


# --- Text that comes from outside


def _comment_text(text: str, *, utf8: bool = False) -> str:
    """Return what can stand in a comment: the specials of a comment and all that is not printable become "?"."""
    # RFC 5322 3.2.2: ctext is '; Printable US-ASCII characters not including "(", ")", or "\"'. A quoted pair could
    # stand for these, but not every reader knows it: "?" is what Postfix writes too.
    kept = (c if c.isprintable() and c not in "()\\" and (utf8 or c.isascii()) else "?" for c in text)
    shown = "".join(kept)
    return shown if len(shown) <= _LONGEST_USER else f"{shown[:_LONGEST_USER]}..."


def _path(address: str, utf8: bool) -> str | None:
    """Return the address in angle brackets, or None if it cannot stand in a header line."""
    if not utf8 and not address.isascii():
        address = _with_a_labels(address)
    if _ENDS_LINES.search(address) or len(address.encode()) > _LONGEST_PATH:
        return None
    return f"<{address}>"


def _with_a_labels(address: str) -> str:
    """Spell the domain in ASCII: a client that sent `xn--` without SMTPUTF8 gets it back as it was."""
    import idna

    local_part, at, domain = address.rpartition("@")
    try:
        return f"{local_part}{at}{idna.encode(domain, uts46=True).decode('ascii')}"
    except UnicodeError:
        return address


def _folded(name: str, clauses: list[list[str]]) -> bytes:
    lines = [name]
    for number, words in enumerate(clauses):
        if number:
            lines.append("\t")
        for word in words:
            _append(lines, word)
    return "\r\n".join([*lines, ""]).encode("utf-8")


def _append(lines: list[str], word: str) -> None:
    line = lines[-1]
    if line == "\t":
        lines[-1] += word
    elif len(line) + 1 + len(word) <= _WIDTH:
        lines[-1] = f"{line} {word}"
    else:
        lines.append(f"\t{word}")
