"""Which charsets a message may name: those of Python, but none that is no charset of mail, and no name more than once.

Python's own look-up keeps every name for ever, known or not: what a stranger wrote must not come to it.
"""

from __future__ import annotations

import encodings
import pkgutil
from encodings.aliases import aliases
from functools import cache

__all__ = ["in_charset"]

# Some of them take time by the square of their input; the others are for programs, or the system's own.
_NO_CHARSETS = {"idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"}


def in_charset(octets: bytes, charset: str | None) -> str:
    """Return the text; one of no charset, or of one that is unknown, is UTF-8. What is no character is U+FFFD."""
    try:
        return octets.decode(_codec(charset or "utf-8"), "replace")
    except (LookupError, ValueError):  # base64 and the like are codecs too
        return octets.decode("utf-8", "replace")


def _codec(charset: str) -> str:
    # As encodings.search_function() does it: `ISO-8859-1`, `iso 8859 1` and `latin-1-` are the same.
    name = encodings.normalize_encoding(charset).lower()
    found = aliases.get(name) or aliases.get(name.replace(".", "_")) or name
    return found if found in _known() else "utf-8"


@cache
def _known() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(encodings.__path__)) - _NO_CHARSETS
