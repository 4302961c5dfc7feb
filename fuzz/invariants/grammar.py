"""Paths, parameters, domains and xtext: a value or a GrammarError, and what comes out is clean."""

from __future__ import annotations

from collections.abc import Callable

from pillarbox.smtp import grammar
from pillarbox.smtp.grammar import GrammarError

READERS: tuple[Callable[[str], object], ...] = (
    lambda text: grammar.split_path(text, "FROM"),
    lambda text: grammar.split_path(text, "TO", lenient=True),
    grammar.parse_parameters,
    grammar.parse_domain,
    lambda text: grammar.parse_domain(text, lenient=True),
    grammar.parse_address_literal,
    grammar.decode_xtext,
    grammar.is_helo_name,
)


def one(octets: bytes) -> None:
    """Try one input: which reader, and the text."""
    if not octets:
        return
    text = octets[1:].decode("utf-8", "replace")
    try:
        value = READERS[octets[0] % len(READERS)](text)
    except GrammarError as error:
        assert str(error).isprintable(), error
        assert str(error).isascii(), error
        return
    for part in _texts(value):
        assert not grammar.has_forbidden_characters(part), part
    if octets[0] % len(READERS) == 6:
        assert grammar.decode_xtext(grammar.encode_xtext(str(value))) == value


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []
