"""Lists of address patterns, as ``accept`` and ``recipients`` hold them: what matches an address is decided here.

A pattern is a whole address in which ``*`` stands for any run of characters; ``!`` in front takes away; ``file:PATH``
stands for a file with a pattern on each line, ``#`` in front of comments. Case does not matter, nor do quotes that a
local part does not need.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Patterns", "checked", "expression", "lines", "local_part", "normal", "unquoted"]

# RFC 5321 4.1.2: "Quoted-string = DQUOTE *QcontentSMTP DQUOTE", and what it can hold.
_QUOTED = re.compile(r'"(?:[^\x00-\x1f\x7f"\\]|\\[^\x00-\x1f\x7f])*"')
_PAIR = re.compile(r"\\(.)", re.DOTALL)
# What is no "Dot-string = Atom *("." Atom)".
_NEEDS_QUOTES = re.compile(r'[\x00-\x20"(),:;<>@\[\\\]\x7f]|^\.|\.\.|\.$|^$')
_COMMENT = re.compile(rf"\s*(?:!?{_QUOTED.pattern})?[^#]*(#.*)?", re.DOTALL)


class Patterns:
    """A list of patterns; ``address in patterns`` costs two lookups where they are addresses and ``*@domain``."""

    def __init__(self, patterns: Iterable[str], folder: Path | None = None) -> None:
        """Read patterns and the files they name (relative ones begin at ``folder``); raise ConfigurationError."""
        self.written = tuple(patterns)
        read = list(_read(self.written, folder or Path()))
        wanted = [pattern for pattern in read if not pattern.startswith("!")]
        # Nothing but exceptions: from everything.
        self._wanted = _Set(wanted or ["*"] if read else [])
        self._not_wanted = _Set(pattern[1:] for pattern in read if pattern.startswith("!"))

    def __contains__(self, address: str) -> bool:
        plain = normal(address)
        return plain in self._wanted and plain not in self._not_wanted

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def excludes(self, address: str) -> bool:
        """Whether an exception takes an address away."""
        return normal(address) in self._not_wanted

    @property
    def domains(self) -> frozenset[str]:
        """The domains that patterns name without ``*``."""
        return self._wanted.domains

    @property
    def all(self) -> bool:
        """Whether every address matches."""
        return self._wanted.all and not self._not_wanted

    @property
    def unbounded(self) -> bool:
        """Whether addresses of anybody's domains match: exceptions take nothing back from those that nobody listed."""
        return self._wanted.unbounded


class _Set:
    """Patterns of one kind, sorted by how they are looked up."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.all = False
        self.unbounded = False
        self._addresses: set[str] = set()
        self._domains: set[str] = set()
        others: list[str] = []
        for pattern in patterns:
            local, at, domain = pattern.rpartition("@")
            if pattern in ("*", "*@*"):
                self.all = True
            elif "*" not in pattern:
                self._addresses.add(pattern)
            elif at and local == "*" and "*" not in domain:
                self._domains.add(domain)
            else:
                others.append(expression(pattern))
            self.unbounded = self.unbounded or _is_unbounded(domain)
        self._others = re.compile("|".join(others), re.DOTALL) if others else None

    @property
    def domains(self) -> frozenset[str]:
        return frozenset({*self._domains, *(address.rpartition("@")[2] for address in self._addresses)})

    def __contains__(self, address: str) -> bool:
        return (
            self.all
            or address in self._addresses
            or address.rpartition("@")[2] in self._domains
            or (self._others is not None and self._others.fullmatch(address) is not None)
        )

    def __bool__(self) -> bool:
        return self.all or bool(self._addresses or self._domains or self._others)


# Top-level domains under which there is nothing of strangers (RFC 6761 and 6762, and ICANN's "internal").
_PRIVATE = ("corp", "home", "internal", "intranet", "invalid", "lan", "local", "localhost", "private", "test")


def _is_unbounded(domain: str) -> bool:
    """Whether a pattern's domain, or a pattern without @, stands for domains of many owners: ``*``, ``*.com``."""
    _, star, end = domain.rpartition("*")
    return bool(star) and "." not in end.lstrip(".") and end.lstrip(".") not in _PRIVATE


def expression(pattern: str, literal: Callable[[str], str] = re.escape) -> str:
    """Return the regular expression for a pattern; literal: makes one of the text between its stars."""
    local, at, domain = pattern.rpartition("@")
    if not at:
        return _expression([literal(part) for part in pattern.split("*")], ".*")
    # Without its own @ for the domain, `*@mx.*` would also mean "x@mx."@example.org: a local part may hold any text.
    return (
        _expression([literal(part) for part in local.split("*")], ".*")
        + "@"
        + _expression([literal(part) for part in domain.split("*")], "[^@]*")
    )


def _expression(parts: list[str], run: str) -> str:
    """Return the regular expression for parts with any run of characters between them; it takes linear time."""
    if len(parts) == 1:
        return parts[0]
    # Atomic groups, as in the library's fnmatch: where each part is found first is as good as any other place.
    between = "".join(f"(?>{run}?{part})" for part in parts[1:-1])
    return f"{parts[0]}{between}{run}{parts[-1]}"


def normal(address: str, *, is_pattern: bool = False) -> str:
    """Return the form in which addresses and patterns are compared."""
    # Domains have no case (RFC 5321 2.4); local parts have one by the letter, but nowhere two owners for it. A domain
    # in A-labels is the same as in U-labels (RFC 5890 2.3.2.1), but "strasse" is another one than "straße" (RFC 5894
    # 7.2), whatever casefold() says.
    local, at, domain = address.rpartition("@")
    domain = unicodedata.normalize("NFC", domain).lower()
    if "xn--" in domain:
        domain = _unicode(domain)
    # RFC 5321 4.1.2: "For any purposes that require generating or comparing Local-parts (e.g., to specific mailbox
    # names), all quoted forms MUST be treated as equivalent".
    if local.startswith('"'):
        text = unquoted(local)
        # A star in quotes is for what has to be quoted: as a pattern "*" is not * alone.
        local = _quoted(text) if is_pattern and "*" in text else local_part(text)
    # Not casefold(): "strasse" and "straße" may be two users.
    return unicodedata.normalize("NFC", local).lower() + at + domain


def local_part(name: str) -> str:
    """Return the local part that stands for a name: in quotes where it needs them."""
    return _quoted(name) if _NEEDS_QUOTES.search(name) else name


def unquoted(local: str) -> str:
    """Return a local part without the quotes and backslashes that are no part of it."""
    return _PAIR.sub(r"\1", local[1:-1]) if len(local) > 1 and local[0] == local[-1] == '"' else local


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unicode(domain: str) -> str:
    import idna

    try:
        return unicodedata.normalize("NFC", idna.decode(domain)).lower()
    except (idna.IDNAError, UnicodeError):
        return domain


def _read(patterns: Iterable[str], folder: Path) -> Iterator[str]:
    for pattern, place in lines(patterns, folder):
        yield checked(pattern, place)


def lines(patterns: Iterable[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield patterns, also those of files, each with its place for an error; raise ConfigurationError."""
    for pattern in patterns:
        name = pattern.partition("file:")[2] if pattern.startswith("file:") else ""
        if not name:
            yield pattern, repr(pattern)
            continue
        path = folder / Path(name).expanduser()
        for number, line in enumerate(_lines(path), 1):
            if written := _without_comment(line):
                yield written, f"{path}, line {number}"


def _without_comment(line: str) -> str:
    found = _COMMENT.match(line)
    return line[: found.start(1)].strip() if found and found[1] else line.strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark of the byte order in front
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8") from error


def checked(pattern: str, place: str) -> str:
    """Return a pattern in the form in which it is compared; raise ConfigurationError for what is none."""
    plain = pattern.strip()
    body = plain.removeprefix("!")
    quoted = _QUOTED.match(body)
    rest = body[quoted.end() :] if quoted else body
    if not rest or any(c.isspace() for c in rest) or (body.startswith('"') and not rest.startswith("@")):
        raise ConfigurationError(
            f"{place}: is no pattern: write an address such as joe@example.com, *@example.com or *;"
            ' a local part with spaces in it stands in quotes: "joe doe"@example.com'
        )
    if "@" not in body and "*" not in body:
        raise ConfigurationError(f"{place}: has no @: write {body}@example.com, {body}@* or *@{body}")
    return ("!" if plain.startswith("!") else "") + normal(body, is_pattern=True)
