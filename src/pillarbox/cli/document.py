"""The TOML file: what is read from it, and where each value stands, for the errors."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.program.settings import likely

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TABLES", "Document", "located"]

TABLES = ("server", "listen", "deliver", "users", "access", "program")


class Document:
    """A configuration file, or none; raises ConfigurationError for what is no TOML or has other tables."""

    def __init__(
        self, file: str | None = None, content: str | None = None, pem: Mapping[str, str] | None = None
    ) -> None:
        """Read ``file``; or take what it held, where that is given. pem: what other files held, by their paths."""
        self.file = file
        self._pem = pem or {}
        self.folder = Path(file or "").parent  # where its relative paths begin
        self.content = content if content is not None else _content(file) if file is not None else ""
        self._tables = _parsed(file, self.content)
        for table in self._tables:
            if table not in TABLES:
                raise ConfigurationError(f"{file}: unknown table or key {table!r}{likely(table, list(TABLES))}")

    def read_already(self, value: Any) -> Any:
        """Return what a file holds, where a value is its path and it was read; else the value."""
        return self._pem.get(value, value) if isinstance(value, str) else value

    def table(self, name: str) -> tuple[dict[str, Any], str]:
        """Return a table, maybe empty, and its place."""
        table = self._tables.get(name, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"{self.file}: {name} must be a table, written [{name}]")
        return table, f"{self.file}, [{name}]" if self.file is not None else ""

    def tables(self, name: str) -> list[tuple[dict[str, Any], str]]:
        """Return the tables of an array of tables, each with its place."""
        tables = self._tables.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigurationError(f"{self.file}: {name} must be written [[{name}]], once for each")
        return [(table, f"{self.file}, [[{name}]] {number}") for number, table in enumerate(tables, 1)]


def text(entry: Mapping[str, Any], key: str, source: str, example: str) -> str:
    """Return a table's text under a key, which must be there."""
    value = entry.get(key)
    if value is None:
        raise ConfigurationError(f'{source}: {key} is missing, for example {key} = "{example}"')
    if not isinstance(value, str):
        raise ConfigurationError(f"{source}: {key} must be a string, not {value!r}")
    return value


def located(source: str, text: str) -> str:
    """Put the place in front of a message, if there is one."""
    return f"{source}: {text}" if source else text


def _content(file: str) -> str:
    try:
        return Path(file).read_bytes().decode("utf-8-sig")  # some editors put a mark of the byte order in front
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{file}: is not UTF-8 (at line {line})") from error


def _parsed(file: str | None, content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        last = content.rstrip().count("\n") + 1
        reason = str(error).replace("at end of document", f"at line {last}, the last one")
        raise ConfigurationError(f"{file}: is not TOML: {reason}") from error
    except (ValueError, RecursionError) as error:  # what TOML allows and Python does not read
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise ConfigurationError(f"{file}: {reason}") from None
