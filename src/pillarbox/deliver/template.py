"""Fields such as ``{local}`` in a target's path or command: what of an address may become a name, and what is refused.

What a client wrote is hostile: a value is one name of a file or folder, or there is no such mailbox.
"""

from __future__ import annotations

import itertools
import time
import unicodedata
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from string import Formatter

from pillarbox import ConfigurationError, Recipient, Reject, Session
from pillarbox.program.paths import can_be_named, local_path
from pillarbox.program.patterns import unquoted
from pillarbox.program.settings import likely

__all__ = ["PATH_FIELDS", "RECIPIENT_FIELDS", "PathTemplate", "Template", "clean_name", "parts_of"]

NAME_BYTES = 255  # what file systems take for one name
RECIPIENT_FIELDS = frozenset({"address", "local", "mailbox", "domain"})
PATH_FIELDS = RECIPIENT_FIELDS | {"user", "year", "month", "day"}


class Template:
    """A text with ``{fields}``, read once; ``{{`` and ``}}`` are braces.

    Raises ConfigurationError for a field that is not ``known``, with ``where`` (the URL) in front.
    """

    def __init__(self, text: str, known: Collection[str], where: str) -> None:
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error} (a brace is written {{{{ or }}}})") from error
        # (what stands before the field, the field or None)
        self.pieces = [(literal, _field(name, spec, mark, known, where)) for literal, name, spec, mark in parsed]
        self.fields = frozenset(field for _, field in self.pieces if field is not None)

    def beginning(self) -> str:
        """Return what stands before the first field."""
        return "".join(literal for literal, _ in itertools.takewhile(lambda piece: piece[1] is None, self.pieces)) + (
            next((literal for literal, field in self.pieces if field is not None), "")
        )

    def filled(self, value: Callable[[str], str]) -> str:
        """Return the text, with what ``value`` says of each field."""
        return "".join(literal + (value(field) if field else "") for literal, field in self.pieces)


def _field(name: str | None, spec: str | None, mark: str | None, known: Collection[str], where: str) -> str | None:
    if name is None:
        return None
    if name in known and not spec and not mark:
        return name
    fields = " ".join(f"{{{each}}}" for each in sorted(known))
    written = name + (f"!{mark}" if mark else "") + (f":{spec}" if spec else "")
    raise ConfigurationError(f"{where}: unknown field {{{written}}}{likely(name, list(known))} (known: {fields})")


class PathTemplate:
    """The path in a target's URL, with or without fields; ``base`` is what stands before the first of them."""

    def __init__(self, url: str, *, separator: str = "+", suffix: str = "") -> None:
        path = local_path(url, "./mail")
        self._template = Template(str(path), PATH_FIELDS, url)
        self._separator = separator
        self._longest = NAME_BYTES - len(suffix)  # where a name with this suffix stands beside it
        self.fields = self._template.fields
        plain = self._template.beginning()
        self.base = Path(plain).parent if self.fields and not plain.endswith("/") else Path(plain)

    @property
    def fixed(self) -> Path | None:
        """The path, where it is the same for all messages."""
        return None if self.fields else self.base

    def path(self, recipient: Recipient, session: Session) -> Path:
        """Return the path for a recipient; raise Reject where the address cannot be part of one."""
        if not self.fields:
            return self.base
        path = Path(self._template.filled(lambda field: self._value(field, recipient, session)))
        if any(len(name.encode()) > self._longest for name in path.parts) or not can_be_named(path):
            raise _not_a_name()
        return path

    def _value(self, field: str, recipient: Recipient, session: Session) -> str:
        if field == "user":
            return _user(session)
        if field in RECIPIENT_FIELDS:
            return clean_name(parts_of(recipient.address, self._separator)[field])
        return time.strftime({"year": "%Y", "month": "%m", "day": "%d"}[field])


# --- What an address consists of


def parts_of(address: str, separator: str = "+") -> Mapping[str, str]:
    """Return ``address``, ``local``, ``mailbox`` and ``domain`` in the form in which two spellings are the same.

    Lower case, NFC, and the local part without its quotes; nothing is refused here.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        # RFC 5321 4.5.1 wants "RCPT TO:<Postmaster>" (with no domain specification) to be supported.
        local, domain = domain, "localhost"
    local = unquoted(local)
    # RFC 5321 2.4: "the local-part of a mailbox MUST BE treated as case sensitive" by those who relay; what it means to
    # the host it belongs to is that host's own affair, and hardly any tells Joe from joe.
    local, domain = (unicodedata.normalize("NFC", part.lower()) for part in (local, domain))
    head = local.partition(separator)[0] if separator else local
    return {"address": f"{local}@{domain}", "local": local, "mailbox": head or local, "domain": domain}


def clean_name(value: str) -> str:
    """Return a value that is one name of a file or folder, and no hidden one; else raise Reject."""
    # Not printable: control and invisible characters, surrogates, what Unicode has not assigned, ends of lines, and
    # spaces that look like the ordinary one.
    odd = any(c in "/\\" or not c.isprintable() for c in value)
    if not value or odd or value.startswith(".") or len(value.encode()) > NAME_BYTES:
        raise _not_a_name()
    return value


def _user(session: Session) -> str:
    if session.user is None:
        # RFC 4954 6: "530 5.7.0 Authentication required"
        raise Reject(530, "Error: authentication Required", enhanced="5.7.0")
    return clean_name(unicodedata.normalize("NFC", str(session.user)))


def _not_a_name() -> Reject:
    # RFC 5321 4.2.3: "553 Requested action not taken: mailbox name not allowed (e.g., mailbox syntax incorrect)"
    return Reject(553, "Error: this mailbox name is not allowed here", enhanced="5.1.3")
