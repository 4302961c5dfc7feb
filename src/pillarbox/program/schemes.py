"""From a URL's scheme to the class that serves it: one table for the targets, one for the users.

Those of pillarbox are imported when they are wanted. Other distributions offer theirs as entry points, and cannot take
the place of one of pillarbox's.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pillarbox import ConfigurationError
from pillarbox.program.settings import Settings, likely, without_login

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

__all__ = ["Schemes"]

_Part = TypeVar("_Part")


class Schemes(Generic[_Part]):
    """The schemes of one kind of part: of targets, or of users.

    base: the class that all are subclasses of. where: the module that has it, for who writes one. methods: those that
    a subclass has to write. group: of the entry points, whose names are schemes. built_in: for a scheme the module and
    the name of a class, or of a function that returns the class for a URL. example: a URL.
    """

    def __init__(
        self,
        base: type[_Part],
        where: str,
        *,
        methods: tuple[str, ...],
        group: str,
        built_in: Mapping[str, tuple[str, str]],
        example: str,
    ) -> None:
        self._base, self._methods, self._group, self.built_in = base, methods, group, built_in
        self._where = where
        self._example = example.partition(":")

    def known(self) -> tuple[str, ...]:
        """Return all schemes, sorted."""
        return tuple(sorted({*self.built_in, *(scheme for scheme, _ in self._offered())}))

    def class_of(self, url: str) -> type[_Part]:
        """Return the class for a URL; raise ConfigurationError where there is none, or one that cannot be used."""
        scheme, colon, _ = url.partition(":")
        scheme = scheme.lower()
        if not colon:
            known, _, rest = self._example
            raise ConfigurationError(f"{url!r} has no scheme: write SCHEME:…, for example {known}:{url or rest}")
        if scheme in self.built_in:
            module, name = self.built_in[scheme]
            found = getattr(import_module(module), name)
            return self._checked(found if isinstance(found, type) else found(url), scheme)
        offers = [point for each, point in self._offered() if each == scheme]
        if not offers:
            raise self._unknown(scheme, url)
        if len(offers) > 1:
            names = ", ".join(map(_described, offers))
            raise ConfigurationError(f"{scheme}: there is more than one: {names}; uninstall what you do not need")
        return self._checked(_loaded(offers[0]), scheme)

    def made(self, url: str, settings: Mapping[str, Any]) -> _Part:
        """Return the part that a URL names, with the settings of its table; raise ConfigurationError."""
        kind: Any = self.class_of(url)
        checked = kind.Settings.from_table(settings)
        try:
            part: Any = kind(url, checked)
            _ = part.url
        except ConfigurationError:
            raise
        except Exception as error:
            if kind.__module__.startswith("pillarbox."):  # a bug of ours
                raise
            problem = f"{kind.__name__}(url, settings) failed: {type(error).__name__}: {error}"
            raise ConfigurationError(f"{without_login(url)}: {problem}") from error
        made: _Part = part
        return made

    def _offered(self) -> list[tuple[str, EntryPoint]]:
        return [(point.name.lower(), point) for point in entry_points(group=self._group)]

    def _unknown(self, scheme: str, url: str) -> ConfigurationError:
        known = self.known()
        names = ", ".join(f"{each}:" for each in known)
        hint = likely(scheme, list(known))
        return ConfigurationError(f"{without_login(url)!r}: unknown scheme {scheme!r}{hint} (known: {names})")

    def _checked(self, found: Any, scheme: str) -> type[_Part]:
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise ConfigurationError(f"{scheme}: {found!r} is no subclass of {self._where}.{self._base.__name__}")
        for name in self._methods:
            if getattr(found, name) is getattr(self._base, name):
                raise ConfigurationError(f"{scheme}: {found.__name__} has no method {name}")
        settings = getattr(found, "Settings", None)
        if not (isinstance(settings, type) and issubclass(settings, Settings)):
            raise ConfigurationError(f"{scheme}: {found.__name__}.Settings is no subclass of {self._where}.Settings")
        return found


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        problem = f"{_described(point)} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigurationError(f"{point.name}: {problem}") from error


def _described(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name if point.dist else 'a distribution'}"
