"""The effective configuration: what file, command line and defaults say together is decided here, without effects.

The command line beats the file: ``--set`` goes over ``[server]``, other arguments over the key of their name in
``[program]`` and ``[access]``, and any ``--listen``, ``--deliver`` or ``--users`` replaces all of the file's. Each
error names where the value stands: the file with its table, or the argument.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError, Options
from pillarbox.cli.addresses import listen_arguments
from pillarbox.cli.document import Document, located, text
from pillarbox.cli.logins import Backend, backends, with_logins
from pillarbox.cli.tables import ProgramSettings, RouteSettings, home_of
from pillarbox.cli.whole import checked
from pillarbox.deliver import target_class, target_from_url
from pillarbox.program.access import Access, AccessSettings
from pillarbox.program.cpus import number_of_workers
from pillarbox.program.files import PEM_OPTIONS, is_pem, named_by, pem_files
from pillarbox.program.paths import expanded
from pillarbox.program.patterns import Patterns
from pillarbox.program.routes import Route, Routes
from pillarbox.program.settings import likely

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

DEFAULT_ADDRESS = "127.0.0.1:2525"
DEFAULT_TARGET = "maildir:./Maildir"
_ACCESS_KEYS = tuple(AccessSettings.model_fields)
# What is done once, at the start.
_FIXED = ("workers", "user", "metrics", "traces", "trace_addresses")
_ROUTE_KEYS = tuple(RouteSettings.model_fields)


@dataclass(frozen=True)
class Listener:
    """One address to listen on, and what is different there. ``source`` is the place in the file, or empty."""

    address: str
    arguments: Mapping[str, Any]
    overrides: Mapping[str, Any]
    options: Options  # the server's, with the overrides
    access: Access
    source: str = ""
    implied: frozenset[str] = frozenset()  # of the overrides those that nobody has stated: see `with_logins`

    @property
    def loopback(self) -> bool:
        """Whether only this host connects to it."""
        host = self.arguments.get("host")
        if "path" in self.arguments or host == "localhost":
            return True
        try:
            return host is not None and ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def local(self) -> bool:
        """Whether only this host is served there: no proxy connects that hands on clients from elsewhere."""
        return self.loopback and not (self.options.use_proxy or self.options.use_xclient)


@dataclass(frozen=True)
class Configuration:
    """All that ``pillarbox serve`` needs to know."""

    options: Options
    listeners: tuple[Listener, ...]
    routes: tuple[Route, ...]
    users: tuple[Backend, ...]
    program: ProgramSettings
    sources: Mapping[str, str]  # where each option that is set stands
    snapshot: Mapping[str, Any]  # what `effective` made it of, in values that JSON can hold: it makes it again
    files: tuple[str, ...] = ()  # of keys and certificates

    def again(self) -> Configuration:
        """Return what the file says now, with the same arguments."""
        return effective(**{**self.snapshot, "content": None, "pem": None, "fixed": None})

    def with_files_read(self) -> Configuration:
        """Return the same with the content of keys and certificates in place of their paths."""
        pem = self.snapshot["pem"] or {file: self._pem(file) for file in self.files}
        return effective(**{**self.snapshot, "pem": pem})

    def _pem(self, file: str) -> str:
        try:
            return _pem(file)
        except ConfigurationError as error:
            name, source = self._naming(file)
            raise ConfigurationError(located(source, f"option {name}: {error}"), name) from error

    def _naming(self, file: str) -> tuple[str, str]:
        """Return the option that names a file, and where it stands."""
        places = [
            (self.options, self.sources),
            *((each.options, dict.fromkeys(each.overrides, each.source)) for each in self.listeners),
        ]
        return next(
            (name, sources[name]) for options, sources in places for name in named_by(options, file) if name in sources
        )

    def with_files_again(self) -> Configuration:
        """Return the same with the paths of keys and certificates, which are read when it is used."""
        return effective(**{**self.snapshot, "pem": None})

    def fixed_unlike(self, other: Configuration) -> list[str]:
        """Return the settings of the program that a reload cannot change, and that are others than there."""
        return [name for name in _FIXED if getattr(self.program, name) != getattr(other.program, name)]

    def with_fixed_of(self, other: Configuration) -> Configuration:
        """Return the same with the settings of another that a reload cannot change."""
        return effective(**{**self.snapshot, "fixed": {name: getattr(other.program, name) for name in _FIXED}})

    def routes_of(self, listener: Listener) -> Routes:
        """Return the routes of one listener."""
        return Routes(self.routes, listener.address)

    def states_methods(self, listener: Listener) -> bool:
        """Whether the mechanisms of a listener are stated, and not left to what its users can."""
        return "auth_methods" in listener.overrides or "auth_methods" in self.sources

    def located(self, error: ConfigurationError) -> ConfigurationError:
        """Return an error about one of the server's options with the place of that option in front."""
        return ConfigurationError(located(_blamed(error, self.sources), str(error)))


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
    users: Sequence[str] = (),
    accept: Sequence[str] = (),
    program: Mapping[str, Any] | None = None,
    content: str | None = None,
    pem: Mapping[str, str] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Configuration:
    """Return what the sources say together; raise ConfigurationError with the place of the first mistake.

    program: arguments for keys of ``[program]``. content and pem: what the file, and the files of keys and certificates
    held, where they are not to be read again. fixed: keys of ``[program]`` that are so, whatever anyone says.
    """
    document = Document(file, content, pem)
    who = backends(document, users)
    # Whoever starts the program wants mail without making accounts first; the library's default is the safe one.
    defaults = {} if who else {"auth_optional": _Given(True, "")}
    given = defaults | _server(document) | _settings(settings, document)
    options = _options(None, given)
    access, _ = document.table("access")
    own = {**access, "accept": _argument_patterns(accept)} if accept else access
    listeners = tuple(
        _cli_listeners(listen, options, own, document)
        or _file_listeners(document, options, own)
        or _cli_listeners([DEFAULT_ADDRESS], options, own, document)
    )
    routes = tuple(_cli_routes(deliver) or _file_routes(document) or _cli_routes([DEFAULT_TARGET], ""))
    sources = _sources(given)
    listeners = tuple(with_logins(listener, who, sources) for listener in listeners)
    snapshot = {
        "file": file, "settings": settings, "listen": listen, "deliver": deliver, "users": users, "accept": accept,
        "program": program or {}, "content": None if file is None else document.content, "pem": pem, "fixed": fixed,
    }  # fmt: skip
    chosen = _program(document, program or {}).model_copy(update=fixed)
    configuration = Configuration(options, listeners, routes, who, chosen, sources, snapshot)
    configuration = checked(configuration)
    files = pem_files(configuration) if pem is None else tuple(pem)
    return dataclasses.replace(configuration, files=tuple(files))


# --- The command line


def _settings(settings: Iterable[str], document: Document) -> _Values:
    given: _Values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {setting}: write --set NAME=VALUE")
        name = name.strip()
        source = f"--set {name}"
        _check_name(name, source)
        given[name] = _Given(document.read_already(toml_value(value)), source)
    return given


def toml_value(text: str) -> Any:
    """Read text as a TOML value, or else as the string it is."""
    # Alone and as a list's only entry: so a comment, a second value or a second line do not pass for a part of it.
    try:
        alone, listed = (tomllib.loads(f"value = {form}") for form in (text, f"[{text}]"))
    except (ValueError, RecursionError):  # also what TOML allows, and Python does not read
        return text
    return alone["value"] if listed == {"value": [alone["value"]]} and len(alone) == 1 else text


def _cli_listeners(
    addresses: Iterable[str], options: Options, access: Mapping[str, Any], document: Document
) -> Iterable[Listener]:
    rules = _access(access, {}, document, "")
    return [Listener(address, _arguments(address, "--listen"), {}, options, rules) for address in addresses]


def _cli_routes(urls: Iterable[str], source: str = "--deliver") -> list[Route]:
    routes = []
    for url in urls:
        with _placed(source):
            routes.append(Route(target_from_url(url)))
    return routes


def _argument_patterns(accept: Iterable[str]) -> list[str]:
    """Check patterns, and let the files they name begin at the working directory: others begin at the file's folder."""
    with _placed("--accept"):
        named = [f"file:{expanded(each[5:]).absolute()}" if each.startswith("file:") else each for each in accept]
        Patterns(named)
    return named


# --- The file


def _program(document: Document, arguments: Mapping[str, Any]) -> ProgramSettings:
    table, source = document.table("program")
    with _placed(source):
        number_of_workers(ProgramSettings.from_table(table).workers)
    try:
        chosen = ProgramSettings.from_table({**table, **arguments})
        number_of_workers(chosen.workers)
    except ConfigurationError as error:  # it names the argument as the key is called
        name, colon, problem = str(error).partition(":")
        raise ConfigurationError(f"--{name.replace('_', '-')}{colon}{problem}") from error
    return chosen


def _server(document: Document) -> _Values:
    table, source = document.table("server")
    return _file_values(table, document, source)


def _file_listeners(
    document: Document, options: Options, access: Mapping[str, Any]
) -> Iterator[Listener] | list[Listener]:
    listeners = []
    for entry, source in document.tables("listen"):
        others = {name: value for name, value in entry.items() if name != "address" and name not in _ACCESS_KEYS}
        values = _file_values(others, document, source, ("address", *_ACCESS_KEYS))
        address = text(entry, "address", source, DEFAULT_ADDRESS)
        there = _options(options, values) if values else options
        overrides = {name: given.value for name, given in values.items()}
        rules = _access(access, entry, document, source)
        listeners.append(Listener(address, _arguments(address, source), overrides, there, rules, source))
    return listeners


def _access(common: Mapping[str, Any], entry: Mapping[str, Any], document: Document, source: str) -> Access:
    own = {name: value for name, value in entry.items() if name in _ACCESS_KEYS}
    with _placed(source if own else document.table("access")[1]):
        return Access(AccessSettings.from_table({**common, **own}), document.folder)


def _file_routes(document: Document) -> list[Route]:
    return [_route(entry, source, document.folder) for entry, source in document.tables("deliver")]


def _route(entry: Mapping[str, Any], source: str, folder: Path) -> Route:
    url = text(entry, "url", source, DEFAULT_TARGET)
    with _placed(source):
        known = ["url", *_ROUTE_KEYS, *target_class(url).Settings.model_fields]
        for name in entry:
            if name not in known:
                raise ConfigurationError(f"unknown key {name!r}{likely(name, known)}")
        common = RouteSettings.from_table({name: value for name, value in entry.items() if name in _ROUTE_KEYS})
        own = {name: value for name, value in entry.items() if name != "url" and name not in _ROUTE_KEYS}
        return Route(
            target_from_url(url, own),
            Patterns(common.recipients, folder),
            frozenset(common.listeners),
            common.optional,
            common.patience,
            source,
        )


def _file_values(table: Mapping[str, Any], document: Document, source: str, other_keys: Sequence[str] = ()) -> _Values:
    for name in table:
        _check_name(name, source, other_keys)
    return {name: _Given(_from_folder(name, value, document), source) for name, value in table.items()}


def _from_folder(name: str, value: Any, document: Document) -> Any:
    """Let the relative paths of keys and certificates begin at the file's folder."""
    if name == "sni_options" and isinstance(value, dict):
        return {host: _entry_from_folder(entry, document) for host, entry in value.items()}
    if name not in PEM_OPTIONS:
        return value
    if isinstance(value, list):
        return [_from_folder(name, each, document) for each in value]
    if isinstance(value, str) and not is_pem(value):
        return document.read_already(str(document.folder / value))
    return value


def _entry_from_folder(entry: Any, document: Document) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: _from_folder(name, value, document) for name, value in entry.items()}


def _pem(file: str) -> str:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    # A comment, or what openssl says of a certificate, may stand around it.
    if b"-----BEGIN" not in content:
        raise ConfigurationError(f"{file}: holds nothing in PEM form (no line '-----BEGIN …')")
    return content.decode("ascii", "ignore")


# --- Checks, each with the place


def _check_name(name: str, source: str, other_keys: Sequence[str] = ()) -> None:
    options = {field.name: field.metadata["option"] for field in dataclasses.fields(Options)}
    if name not in options:
        if home := home_of(name):
            raise ConfigurationError(f"{source}: unknown key {name!r}: it stands in {home}")
        hint = likely(name, list(other_keys))
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
        raise ConfigurationError(located(_blamed(error, _sources(given)), str(error))) from error


def _sources(given: _Values) -> dict[str, str]:
    return {name: each.source for name, each in given.items() if each.source}


def _blamed(error: ConfigurationError, sources: Mapping[str, str]) -> str:
    """Return the place of the option that the error names; or of the last one set, if it names a missing one."""
    if error.option is not None and error.option in sources:
        return sources[error.option]
    return next(reversed(list(sources.values())), "")


def _arguments(address: str, source: str) -> dict[str, Any]:
    with _placed(source):
        return listen_arguments(address)


class _placed:  # noqa: N801 - used as a function
    """Put a place in front of the configuration errors of a block."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ConfigurationError) and self._source:
            raise ConfigurationError(located(self._source, str(error)), error.option) from error
