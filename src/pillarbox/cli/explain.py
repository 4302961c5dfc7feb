"""What a configuration comes to, as plain values: what ``check`` prints and what ``--json`` has come from here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pillarbox import Options
from pillarbox.cli.doubts import may_use_tls, offers_auth
from pillarbox.program.files import is_pem
from pillarbox.program.settings import without_login

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.program.routes import Route

BY_DEFAULT = "the program's default"
MASK = "********"


@dataclasses.dataclass(frozen=True)
class Value:
    """One value that is not the default, and where it stands."""

    name: str
    value: Any
    source: str


def options(configuration: Configuration) -> list[Value]:
    """Return the options of the server that differ from the library's defaults."""
    sources = configuration.sources
    changed = _differing(configuration.options, Options())
    return [Value(name, shown, sources.get(name, BY_DEFAULT)) for name, shown in changed]


def program(configuration: Configuration, arguments: Mapping[str, Any], file: str | None) -> list[Value]:
    """Return the settings of the program that differ from their defaults."""
    settings = configuration.program
    found = []
    for name, value in _set(settings):
        argument = arguments.get(name) not in (None, ())
        source = f"--{name.replace('_', '-')}" if argument else f"{file}, [program]"
        found.append(Value(name, without_login(value) if name == "traces" else value, source))
    return found


def listeners(configuration: Configuration, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each listener is, and what is different there."""
    source = "--listen" if arguments["listen"] else BY_DEFAULT
    return [_listener(each, configuration, each.source or source) for each in configuration.listeners]


def targets(configuration: Configuration, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the targets."""
    source = "--deliver" if arguments["deliver"] else BY_DEFAULT
    return [_target(route, route.source or source) for route in configuration.routes]


def _listener(listener: Listener, configuration: Configuration, source: str) -> dict[str, Any]:
    o = listener.options
    own = [(name, shown) for name, shown in _differing(o, configuration.options) if name not in listener.implied]
    return {
        "address": listener.address,
        "protocol": "LMTP" if o.lmtp else "SMTP",
        "reached_from": "this host" if listener.local else "other hosts",
        "tls": _tls(o),
        "login": _login(o, known=not configuration.users or configuration.states_methods(listener)),
        "access": list(_access(listener)),
        "targets": [route.target.url for route in configuration.routes_of(listener).all],
        "options": [dataclasses.asdict(Value(name, shown, source)) for name, shown in own],
        "source": source,
    }


def _tls(o: Options) -> str:
    if o.secured:
        return "TLS is made outside"
    if o.secure:
        return "implicit TLS"
    if not may_use_tls(o):
        return "no TLS"
    return "hidden STARTTLS" if o.hide_starttls else "STARTTLS"


def users(configuration: Configuration) -> list[dict[str, Any]]:
    """Return who may log in."""
    return [
        {"url": each.users.url, "settings": dict(_set(each.users.settings)), "source": each.source}
        for each in configuration.users
    ]


def _login(o: Options, *, known: bool) -> str:
    if not offers_auth(o):
        return "no AUTH"
    after = " after TLS" if o.auth_needs_tls and not o.secure else ""
    methods = f" {' '.join(map(str, o.auth_methods))}" if known else ""
    return f"AUTH{methods}{after}, {'required' if o.must_authenticate else 'optional'}"


def _access(listener: Listener) -> Iterator[str]:
    o, settings = listener.options, listener.access.settings
    if o.must_authenticate:
        yield "who has logged in may write to anyone, nobody else to anybody"
    elif settings.accept is None:
        yield "anyone may write to anyone"
    else:
        yield f"anyone may write to {', '.join(settings.accept) or 'nobody'}"
        if offers_auth(o):
            yield "who has logged in may write to anyone"
    if settings.networks and not o.must_authenticate:
        yield f"clients in {', '.join(settings.networks)} may write to anyone"
    for user, patterns in (settings.senders or {}).items():
        name = "every other user" if user == "*" else user
        yield f"{name} may write as {', '.join(patterns) or 'nobody'}"


def _target(route: Route, source: str) -> dict[str, Any]:
    return {
        "url": route.target.url,
        "recipients": list(route.recipients.written),
        "listeners": sorted(route.listeners),
        "optional": route.optional,
        "timeout": route.timeout,
        "settings": dict(_set(route.target.settings)),
        "source": source,
    }


# --- Values, without what must not show


def _differing(there: Options, usual: Options) -> list[tuple[str, Any]]:
    found = []
    for field in dataclasses.fields(Options):
        value = getattr(there, field.name)
        if value != getattr(usual, field.name):
            found.append((field.name, value if field.repr else _without_secret(field.name, value)))
    return found


def _without_secret(name: str, value: Any) -> Any:
    if name == "key":
        keys = value if isinstance(value, tuple) else (value,)
        return [each if isinstance(each, str) and not is_pem(each) else "PEM text" for each in keys]
    if name == "sni_options":
        return sorted(value)
    return without_login(str(value)) if name == "rate_store" and "://" in str(value) else MASK


def _set(settings: BaseModel | None) -> Iterator[tuple[str, Any]]:
    """Yield what is not the default; secrets are asterisks."""
    if settings is None:
        return
    plain = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        if getattr(settings, name) != field.get_default(call_default_factory=True):
            yield name, plain[name]
