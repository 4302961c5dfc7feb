"""The effective configuration: what file, command line and defaults say together is decided here, without effects.

The command line beats the file: ``--set`` goes over ``[server]``, and any ``--listen`` or ``--deliver`` replaces all of
the file's. Each error names where the value stands: the file with its table, or the argument.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError, Options
from pillarbox.cli.addresses import listen_arguments
from pillarbox.deliver import Target, target_from_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_ADDRESS = "127.0.0.1:2525"
DEFAULT_TARGET = "maildir:./Maildir"
_TABLES = ("server", "listen", "deliver")
_PEM_OPTIONS = ("key", "cert", "ca")  # what may be a path; relative ones begin at the file that names them


@dataclass(frozen=True)
class Listener:
    """One address to listen on, and what is different there. ``source`` is the place in the file, or empty."""

    address: str
    arguments: Mapping[str, Any]
    overrides: Mapping[str, Any]
    options: Options  # the server's, with the overrides
    source: str = ""


@dataclass(frozen=True)
class Destination:
    """One target. ``source`` is the place in the file, or empty."""

    target: Target
    source: str = ""


@dataclass(frozen=True)
class Configuration:
    """All that ``pillarbox serve`` needs to know."""

    options: Options
    listeners: tuple[Listener, ...]
    destinations: tuple[Destination, ...]
    sources: Mapping[str, str]  # where each option that is set stands

    def located(self, error: ConfigurationError) -> ConfigurationError:
        """Return an error about one of the server's options with the place of that option in front."""
        return ConfigurationError(_located(_blamed(error, self.sources), str(error)))


@dataclass(frozen=True)
class _Given:
    """A value and where it stands."""

    value: Any
    source: str


_Values = dict[str, _Given]  # by option name


def effective(
    file: str | None = None,
    *,
    settings: Sequence[str] = (),
    listen: Sequence[str] = (),
    deliver: Sequence[str] = (),
) -> Configuration:
    """Return what the sources say together; raise ConfigurationError with the place of the first mistake."""
    document = _read(file) if file is not None else {}
    # Whoever starts the program wants mail without making accounts first; the library's default is the safe one.
    defaults = {"auth_optional": _Given(True, "")}
    given = defaults | _server(document, file) | _settings(settings)
    options = _options(None, given)
    return Configuration(
        options,
        tuple(_cli_listeners(listen, options) or _file_listeners(document, file, options) or _default(options)),
        tuple(_cli_targets(deliver) or _file_targets(document, file) or [Destination(target_from_url(DEFAULT_TARGET))]),
        _sources(given),
    )


# --- The command line


def _settings(settings: Iterable[str]) -> _Values:
    given: _Values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {setting}: write --set NAME=VALUE")
        name = name.strip()
        source = f"--set {name}"
        _check_name(name, source)
        given[name] = _Given(toml_value(value), source)
    return given


def toml_value(text: str) -> Any:
    """Read text as a TOML value, or else as the string it is."""
    # Alone and as a list's only entry: so a comment, a second value or a second line do not pass for a part of it.
    try:
        alone, listed = (tomllib.loads(f"value = {form}") for form in (text, f"[{text}]"))
    except tomllib.TOMLDecodeError:
        return text
    return alone["value"] if listed == {"value": [alone["value"]]} and len(alone) == 1 else text


def _cli_listeners(addresses: Iterable[str], options: Options) -> list[Listener]:
    return [Listener(address, _arguments(address, "--listen"), {}, options) for address in addresses]


def _cli_targets(urls: Iterable[str]) -> list[Destination]:
    return [Destination(_target(url, "--deliver")) for url in urls]


def _default(options: Options) -> list[Listener]:
    return _cli_listeners([DEFAULT_ADDRESS], options)


# --- The file


def _read(file: str) -> dict[str, Any]:
    document = _parsed(file, _content(file))
    for table in document:
        if table not in _TABLES:
            raise ConfigurationError(f"{file}: unknown table or key {table!r}{_likely(table, _TABLES)}")
    return document


def _content(file: str) -> str:
    try:
        return Path(file).read_bytes().decode()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{file}: is not UTF-8 (at line {line})") from error


def _parsed(file: str, content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        last = content.rstrip().count("\n") + 1
        reason = str(error).replace("at end of document", f"at line {last}, the last one")
        raise ConfigurationError(f"{file}: is not TOML: {reason}") from error


def _server(document: Mapping[str, Any], file: str | None) -> _Values:
    table = document.get("server", {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{file}: server must be a table, written [server]")
    return _file_values(table, file, f"{file}, [server]")


def _file_listeners(document: Mapping[str, Any], file: str | None, options: Options) -> list[Listener]:
    listeners = []
    for entry, source in _entries(document, "listen", file):
        others = {name: value for name, value in entry.items() if name != "address"}
        values = _file_values(others, file, source, "address")
        address = _text(entry, "address", source, DEFAULT_ADDRESS)
        there = _options(options, values) if values else options
        overrides = {name: given.value for name, given in values.items()}
        listeners.append(Listener(address, _arguments(address, source), overrides, there, source))
    return listeners


def _file_targets(document: Mapping[str, Any], file: str | None) -> list[Destination]:
    destinations = []
    for entry, source in _entries(document, "deliver", file):
        for name in entry:
            if name != "url":
                raise ConfigurationError(f"{source}: unknown key {name!r}{_likely(name, ['url'])}")
        destinations.append(Destination(_target(_text(entry, "url", source, DEFAULT_TARGET), source), source))
    return destinations


def _entries(document: Mapping[str, Any], name: str, file: str | None) -> Iterable[tuple[dict[str, Any], str]]:
    """Return the tables of an array of tables, each with its place."""
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{file}: {name} must be written [[{name}]], once for each")
    return [(table, f"{file}, [[{name}]] {number}") for number, table in enumerate(tables, 1)]


def _text(entry: Mapping[str, Any], key: str, source: str, example: str) -> str:
    value = entry.get(key)
    if value is None:
        raise ConfigurationError(f'{source}: {key} is missing, for example {key} = "{example}"')
    if not isinstance(value, str):
        raise ConfigurationError(f"{source}: {key} must be a string, not {value!r}")
    return value


def _file_values(table: Mapping[str, Any], file: str | None, source: str, *other_keys: str) -> _Values:
    folder = Path(file or "").parent
    for name in table:
        _check_name(name, source, other_keys)
    return {name: _Given(_from_folder(name, value, folder), source) for name, value in table.items()}


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """Let the relative paths of keys and certificates begin at the file's folder."""
    if name == "sni_options" and isinstance(value, dict):
        return {host: _entry_from_folder(entry, folder) for host, entry in value.items()}
    if name not in _PEM_OPTIONS:
        return value
    if isinstance(value, list):
        return [_from_folder(name, each, folder) for each in value]
    if isinstance(value, str) and not value.lstrip().startswith("-----BEGIN"):
        return str(folder / value)
    return value


def _entry_from_folder(entry: Any, folder: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: _from_folder(name, value, folder) for name, value in entry.items()}


# --- Checks, each with the place


def _check_name(name: str, source: str, other_keys: Sequence[str] = ()) -> None:
    options = {field.name: field.metadata["option"] for field in dataclasses.fields(Options)}
    if name not in options:
        hint = _likely(name, other_keys)
        raise ConfigurationError(f"{source}: unknown key {name!r}{hint}" if hint else f"{source}: {_unknown(name)}")
    if options[name].in_code_only:
        raise ConfigurationError(f"{source}: option {name} is a Python object, which only a program can set")


def _unknown(name: str) -> str:
    try:
        Options.make({name: None})  # says the likely spelling
    except ConfigurationError as error:
        return str(error)
    raise AssertionError(name)


def _options(base: Options | None, given: _Values) -> Options:
    try:
        return Options.make(base, **{name: each.value for name, each in given.items()})
    except ConfigurationError as error:
        raise ConfigurationError(_located(_blamed(error, _sources(given)), str(error))) from error


def _sources(given: _Values) -> dict[str, str]:
    return {name: each.source for name, each in given.items() if each.source}


def _blamed(error: ConfigurationError, sources: Mapping[str, str]) -> str:
    """Return the place of the option that the error names; or of the last one set, if it names a missing one."""
    if error.option is not None and error.option in sources:
        return sources[error.option]
    return next(reversed(list(sources.values())), "")


def _arguments(address: str, source: str) -> dict[str, Any]:
    try:
        return listen_arguments(address)
    except ConfigurationError as error:
        raise ConfigurationError(_located(source, str(error))) from error


def _target(url: str, source: str) -> Target:
    try:
        return target_from_url(url)
    except ConfigurationError as error:
        raise ConfigurationError(_located(source, str(error))) from error


def _located(source: str, text: str) -> str:
    return f"{source}: {text}" if source else text


def _likely(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name.lower(), known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""
