"""What may be wrong with a configuration that works: each doubt has a code, a place, and a sentence.

Only files that the configuration names are read; nothing is made, bound or asked for.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.cli.certificates import Certificate
from pillarbox.program.access import everyone
from pillarbox.program.files import is_pem
from pillarbox.program.paths import local_path
from pillarbox.program.privileges import account_named
from pillarbox.program.recipients import Recipients
from pillarbox.program.settings import is_http_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pillarbox import Options
    from pillarbox.cli.config import Configuration, Listener
    from pillarbox.users import Users

_PASSWORD_IN_URL = re.compile(r"""://[^\s/@"']*:[^\s/@"']+@""")
_LIMITS = ("max_clients", "max_clients_per_address", "rates_per_address", "rates_over_all")


@dataclass(frozen=True)
class Doubt:
    """Something that may be wrong. where: listeners, or files."""

    code: str
    where: tuple[str, ...]
    text: str


def doubts(configuration: Configuration, file: str | None) -> list[Doubt]:
    """Return what may be wrong, each once with all its places."""
    places: dict[tuple[str, str], list[str]] = {}
    for listener in configuration.listeners:
        for doubt in _of_listener(configuration, listener):
            places.setdefault(doubt, []).append(listener.address)
    found = [Doubt(code, tuple(dict.fromkeys(where)), text) for (code, text), where in places.items()]
    return [*found, *_without_effect(configuration), *_missing(configuration, file), *_about_files(configuration, file)]


def _of_listener(configuration: Configuration, listener: Listener) -> Iterator[tuple[str, str]]:
    options = listener.options
    yield from _certificates(options)
    if listener.local:
        return
    if not listener.loopback:
        yield from _trust(options)
    yield from _login(options)
    if may_use_tls(options) and options.cert is None:
        made_up = "there is no certificate: a self-signed one is made at each start, which no client can verify"
        yield "no-certificate", f"{made_up} (set key and cert)"
    yield from _limits(options)
    if not options.must_authenticate:
        yield from _recipients(configuration, listener)


# --- Who may do what


def may_use_tls(options: Options) -> bool:
    """Whether TLS is made here."""
    return not options.secured and (options.secure or "STARTTLS" not in options.disabled_commands)


def offers_auth(options: Options) -> bool:
    """Whether clients may log in."""
    return bool(options.auth_methods) and "AUTH" not in options.disabled_commands


def _trust(options: Options) -> Iterator[tuple[str, str]]:
    said = {
        "use_proxy": "say by a PROXY header which address it has",
        "use_xclient": "say by XCLIENT who it is, also that it has logged in",
        "use_xforward": "say by XFORWARD from whom the mail is",
    }
    for name, what in said.items():
        if everyone(getattr(options, name)):
            yield f"open-{name.removeprefix('use_')}", f"every client may {what}: list those that may in {name}"


def _login(options: Options) -> Iterator[tuple[str, str]]:
    if not offers_auth(options) or options.secure or options.auth_needs_tls:
        return
    why = "allow_insecure_auth" if options.allow_insecure_auth else "STARTTLS is hidden or disabled"
    yield "plaintext-auth", f"AUTH is taken before TLS ({why}): passwords can be read on the way"


def _limits(options: Options) -> Iterator[tuple[str, str]]:
    if all(getattr(options, name) is None for name in _LIMITS):
        yield "no-limits", f"nothing limits how much one client may do: set {', '.join(_LIMITS)}"
    if options.size is None:
        yield "no-size", "a message may be of any size: set size"


def _recipients(configuration: Configuration, listener: Listener) -> Iterator[tuple[str, str]]:
    accept, routes = listener.access.accept, configuration.routes_of(listener)
    if (accept is None or accept.unbounded) and any(route.recipients.unbounded for route in routes.all):
        yield "accepts-everything", "mail for any address is taken: say which are yours (accept in [access])"
        return
    if listener.options.lmtp:
        return
    # RFC 5321 4.5.1: "Any system that includes an SMTP server supporting mail relaying or delivery MUST support the
    # reserved mailbox "postmaster" as a case-insensitive local name." Only an exception takes it away.
    recipients = Recipients(listener.options.name, routes, listener.access)
    for address in sorted(recipients.postmasters):
        if (accept is not None and accept.excludes(address)) or not recipients.routes(address):
            yield "no-postmaster", f"{address} is refused by an exception, and must be accepted (RFC 5321 4.5.1)"


def _without_effect(configuration: Configuration) -> Iterator[Doubt]:
    """Yield what somebody wrote down for nothing."""
    with_networks = [each for each in configuration.listeners if each.access.networks_given]
    if with_networks and not any(map(_lets_networks_in, with_networks)):
        where = tuple(each.address for each in with_networks)
        yield Doubt("no-effect", where, f"networks changes nothing: {_why_not(with_networks[0])}")
    with_senders = [each for each in configuration.listeners if each.access.looks_at_senders]
    if with_senders and not any(offers_auth(each.options) or each.options.use_xclient for each in with_senders):
        where = tuple(each.address for each in with_senders)
        yield Doubt("no-effect", where, "senders changes nothing: it is about those who have logged in, and nobody can")
    listeners = configuration.listeners
    if configuration.users and not any(offers_auth(each.options) for each in listeners):
        where = tuple(each.address for each in listeners)
        yield Doubt("no-effect", where, "users change nothing: AUTH is disabled, and nobody can log in")
    for route in configuration.routes:
        if not route.recipients:
            yield Doubt("no-effect", (route.target.url,), "this target gets no message: its recipients name nobody")


def _lets_networks_in(listener: Listener) -> bool:
    accept = listener.access.accept
    return not listener.options.must_authenticate and accept is not None and not accept.all


def _why_not(listener: Listener) -> str:
    if listener.options.must_authenticate:
        return "its clients have to log in too, as auth_optional = false says"
    return "all clients may write to anyone, as no accept says to whom strangers may"


# --- Certificates and files


def _certificates(options: Options) -> Iterator[tuple[str, str]]:
    if not may_use_tls(options):
        return
    yield from _flaws(options.cert, [options.name])
    for host, entry in (options.sni_options or {}).items():
        yield from _flaws(entry.get("cert"), [host])


def _flaws(certs: Any, hosts: list[str]) -> Iterator[tuple[str, str]]:
    for label, pem in _pems(certs):
        try:
            certificate = Certificate.from_pem(pem)
        except ValueError:  # OpenSSL has read it, cryptography does not
            continue
        for host in hosts:
            for code, text in certificate.flaws(host):
                yield code, f"{label}: {text}"


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _pems(value: Any) -> Iterator[tuple[str, bytes]]:
    for each in _items(value):
        if isinstance(each, str) and is_pem(each):
            yield "the certificate in the file", each.encode(errors="replace")
        elif isinstance(each, str):
            with open(each, "rb") as file:  # noqa: PTH123 - it has been read before: an error is an error
                yield each, file.read()


def _paths(value: Any) -> list[str]:
    return [each for each in _items(value) if isinstance(each, str) and not is_pem(each)]


def _missing(configuration: Configuration, file: str | None) -> Iterator[Doubt]:
    """Yield what would stop ``serve`` on this host; it may be there on another."""
    user = configuration.program.user
    if user is not None:
        try:
            account_named(user)
        except ConfigurationError as error:
            yield Doubt("no-user", (file or "--user",), f"serve would not start here: {error}")
    for what, module, extra in _libraries(configuration):
        if not _can_be_imported(module):
            needs = f"it needs {module}: pip install 'pillarbox[{extra}]'"
            yield Doubt("no-library", (what,), f"serve would not start here: {needs}")
    for backend in configuration.users:
        place = _local_path(backend.users)
        problem = None if place is None else _problem(place, backend.users)
        if problem is not None:
            yield Doubt("users-file", (str(place),), f"serve would not start here: {problem}")


def _local_path(users: Users) -> Path | None:
    """Return the file or socket that users cannot start without."""
    scheme, _, place = users.url.partition(":")
    is_local = scheme.lower() in ("htpasswd", "dovecot") or (scheme.lower() == "jwt" and not is_http_url(place))
    return local_path(users.url) if is_local else None


def _problem(path: Path, users: Users) -> str | None:
    from pillarbox.users.accounts import parse_accounts
    from pillarbox.users.htpasswd import HtpasswdUsers
    from pillarbox.users.jwt import JWTUsers
    from pillarbox.users.keysets import parse_keys

    try:
        if isinstance(users, HtpasswdUsers):
            return next(iter(parse_accounts(path.read_bytes()).problems), None)
        if isinstance(users, JWTUsers):
            parse_keys(path.read_bytes())
        elif not path.is_socket():
            return "there is no such socket"
    except FileNotFoundError:
        made = ": make it with 'pillarbox user add'" if isinstance(users, HtpasswdUsers) else ""
        return f"there is no such file{made}"
    except PermissionError:  # who runs it may read more than who looks at it
        return None
    except (OSError, ValueError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None


def _libraries(configuration: Configuration) -> Iterator[tuple[str, str, str]]:
    """Yield what of the configuration looks for a library when it starts: its name, the module, the extra."""
    from pillarbox.deliver.relay_settings import RelaySettings

    for route in configuration.routes:
        if isinstance(route.target.settings, RelaySettings):
            yield route.target.url, "aiosmtplib", "smtp"
    for backend in configuration.users:
        scheme, _, place = backend.users.url.partition(":")
        if scheme in ("http", "https"):
            yield backend.users.url, "aiohttp", "http"
        if scheme == "jwt":
            yield backend.users.url, "jwt", "jwt"
            if place.lower().startswith("http"):
                yield backend.users.url, "aiohttp", "jwt"
    if configuration.program.metrics is not None:
        yield "metrics", "prometheus_client", "metrics"
    if configuration.program.traces is not None:
        yield "traces", "opentelemetry", "traces"


def _can_be_imported(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _about_files(configuration: Configuration, file: str | None) -> Iterator[Doubt]:
    from pillarbox.users.htpasswd import HtpasswdUsers

    secret: dict[str, str] = {}
    for options in (configuration.options, *(listener.options for listener in configuration.listeners)):
        keys = [options.key, *(entry.get("key") for entry in (options.sni_options or {}).values())]
        secret |= {path: "a private key" for key in keys for path in _paths(key)}
    for backend in configuration.users:
        if isinstance(backend.users, HtpasswdUsers):
            secret[str(backend.users.path)] = "what passwords can be guessed from"
    if file is not None and _holds_secrets(configuration):
        secret[file] = "a secret"
    for path, what in secret.items():
        if _others_may_read(path):
            yield Doubt(
                "readable-by-all", (path,), f"everybody on this host may read it, and it holds {what}: chmod o= {path}"
            )


def _holds_secrets(configuration: Configuration) -> bool:
    from pydantic import BaseModel, SecretStr

    def secret(value: Any) -> bool:
        if isinstance(value, BaseModel):
            return any(secret(each) for _, each in value)
        if isinstance(value, dict):
            return any(map(secret, value.values()))
        return any(map(secret, value)) if isinstance(value, list | tuple) else isinstance(value, SecretStr)

    options = (configuration.options, *(listener.options for listener in configuration.listeners))
    written = any(each.key_password is not None for each in options)
    pem = any(isinstance(key, str) and is_pem(key) for each in options for key in _items(each.key))
    settings: list[BaseModel | None] = [route.target.settings for route in configuration.routes]
    settings += [backend.users.settings for backend in configuration.users]
    in_url = _PASSWORD_IN_URL.search(configuration.snapshot["content"] or "") is not None
    return written or pem or in_url or any(map(secret, settings))


def _others_may_read(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path as it is written
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH) and os.name == "posix"
