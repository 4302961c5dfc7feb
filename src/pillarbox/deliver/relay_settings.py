"""What a relay's URL and settings mean together: where the next server is, and how safely it is spoken to."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field, SecretStr
from pydantic.config import JsonDict, JsonValue

from pillarbox import ConfigurationError
from pillarbox.deliver.relay_client import LIMITS, Limits
from pillarbox.program.paths import expanded
from pillarbox.program.settings import Settings

__all__ = ["Login", "NextServer", "Place", "RelaySettings", "parse_url"]

# RFC 2033 has no port of its own for LMTP, and forbids 25; IANA's registry has 24 for private mail systems.
_PORTS = {"lmtp": 24, "smtp": 25, "smtps": 465}

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9])?|\[[A-Za-z0-9:.]{1,60}\]")

_PASSWORD: JsonDict = {"anyOf": [{"required": ["password"]}, {"required": ["password_file"]}]}
# What ``_check_login`` says is missing, for editors. The user name may stand in the URL, and the password too.
_NEEDED_FOR_LOGIN: JsonValue = [
    {
        "if": {"properties": {"url": {"not": {"pattern": "@"}}}},
        "then": {
            "dependencies": {"username": _PASSWORD, "password": ["username"], "password_file": ["username"]},
        },
    },
    {"if": {"properties": {"url": {"pattern": "^[a-z]+://[^:@/]+@"}}}, "then": _PASSWORD},
]


class RelaySettings(Settings):
    """The keys of ``[[deliver]]`` for lmtp:, smtp: and smtps:, as docs/target-relay.md describes them."""

    model_config = ConfigDict(json_schema_extra={"dependencies": {"key": ["cert"]}, "allOf": _NEEDED_FOR_LOGIN})

    tls: Literal["if-offered", "required", "off"] | None = None
    tls_verify: bool | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    password_file: str | None = None
    allow_insecure_auth: bool = False
    name: str | None = None
    verify: bool | None = None
    connections: int = Field(default=20, ge=1, le=1000)
    idle: float = Field(default=30.0, ge=0)


@dataclass(frozen=True)
class NextServer:
    """What a URL says. shown: the URL without its password. path: of a Unix socket, or empty."""

    shown: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    username: str | None = None
    password: SecretStr | None = None

    @property
    def near(self) -> bool:
        """Whether nobody listens on the way to it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Login:
    """Who we are to the next server. insecure: also where nothing is encrypted."""

    username: str
    password: str = field(repr=False)
    insecure: bool = False


@dataclass(frozen=True)
class Place:
    """Where the next server is and how to speak to it.

    name: what we call ourselves. path: a Unix socket instead of host and port. implicit: TLS from the first octet.
    starttls: used where it is offered; required: nothing is said without it.
    """

    name: str
    context: ssl.SSLContext
    host: str = ""
    port: int = 0
    path: str = ""
    lmtp: bool = False
    implicit: bool = False
    starttls: bool = False
    required: bool = False
    login: Login | None = None
    limits: Limits = LIMITS


# --- The URL


def parse_url(url: str) -> NextServer:
    """Read ``smtp://[user[:password]@]host[:port]`` or ``smtp:PATH``; raise ConfigurationError, without a password."""
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if rest.startswith("//") and not rest.startswith("///"):
        return _on_a_host(scheme, rest)
    path = rest.removeprefix("//")
    forgotten = "@" in path and "/" not in path  # the slashes of smtp://joe:secret@host, and it would be shown
    if not path or "\0" in path or forgotten or scheme == "smtps":
        raise _wrong(f"{scheme}:{path.rpartition('@')[2]}", scheme)
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigurationError(f"{url!r}: this system has no Unix sockets")
    return NextServer(url, scheme, path=str(expanded(path)))


def _on_a_host(scheme: str, rest: str) -> NextServer:
    shown = f"{scheme}://{rest.removeprefix('//').rpartition('@')[2]}"
    try:
        parts = urlsplit(f"{scheme}:{rest}")
        port = _PORTS[scheme] if parts.port is None else parts.port
    except ValueError:
        raise _wrong(shown, scheme) from None
    if not parts.hostname or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _wrong(shown, scheme)
    username = unquote(parts.username) if parts.username else None
    password = SecretStr(unquote(parts.password)) if parts.password else None
    if parts.username:
        shown = f"{scheme}://{parts.username}@{shown.partition('://')[2]}"
    return NextServer(shown, scheme, parts.hostname, port, username=username, password=password)


def _wrong(shown: str, scheme: str) -> ConfigurationError:
    place = "" if scheme == "smtps" else f" or {scheme}:PATH (a Unix socket)"
    return ConfigurationError(f"{shown!r}: write {scheme}://HOST:PORT{place}")


# --- The settings


def check(server: NextServer, settings: RelaySettings) -> None:
    """Raise ConfigurationError for what does not fit together; touches nothing."""
    _check_tls(server, settings)
    _check_login(server, settings)
    if settings.name is not None and _NAME.fullmatch(settings.name) is None:
        raise ConfigurationError("name must be a host name or an address literal, for example mx.example.com")


def _check_tls(server: NextServer, settings: RelaySettings) -> None:
    if server.scheme == "smtps" and settings.tls is not None:
        raise ConfigurationError("tls: smtps:// has TLS from the start, and needs no STARTTLS")
    if server.path and settings.tls not in (None, "off"):
        raise ConfigurationError("tls: there is none on a Unix socket")
    given = [name for name in ("tls_verify", "ca", "cert", "key") if getattr(settings, name) is not None]
    if given and not encrypts(server, settings):
        raise ConfigurationError(f"{given[0]} has no effect without TLS")
    if settings.key is not None and settings.cert is None:
        raise ConfigurationError("key has no effect without cert")


def _check_login(server: NextServer, settings: RelaySettings) -> None:
    for name in ("username", "password"):
        if getattr(server, name) is not None and getattr(settings, name) is not None:
            raise ConfigurationError(f"{name} stands in the URL already")
    passwords = [server.password, settings.password, settings.password_file]
    given = sum(each is not None for each in passwords)
    if given > 1:
        raise ConfigurationError("there are several passwords: leave password or password_file out")
    if bool(given) != logs_in(server, settings):
        raise ConfigurationError("a login is username and password, or password_file")
    if given and tls_mode(server, settings) != "required" and not (server.near or settings.allow_insecure_auth):
        raise ConfigurationError(
            'without tls = "required" the password could leave in plain text; if it may: allow_insecure_auth = true'
        )


def logs_in(server: NextServer, settings: RelaySettings) -> bool:
    """Tell whether there is a user name."""
    return (server.username or settings.username) is not None


def tls_mode(server: NextServer, settings: RelaySettings) -> Literal["if-offered", "required", "off"]:
    """Return how TLS is used, where the settings leave it open too."""
    if server.scheme == "smtps":
        return "required"
    if settings.tls is not None:
        return settings.tls
    if server.path:
        return "off"
    return "required" if logs_in(server, settings) and not server.near else "if-offered"


def encrypts(server: NextServer, settings: RelaySettings) -> bool:
    """Tell whether TLS is used at all."""
    return tls_mode(server, settings) != "off"


# --- What start() makes of them


def place(server: NextServer, settings: RelaySettings) -> Place:
    """Return how to speak to the next server; reads files and this host's name, and raises ConfigurationError."""
    mode = tls_mode(server, settings)
    return Place(
        name=settings.name or _own_name(),
        context=_context(settings, required=mode == "required"),
        host=server.host,
        port=server.port,
        path=server.path,
        lmtp=server.scheme == "lmtp",
        implicit=server.scheme == "smtps",
        starttls=mode != "off",
        required=mode == "required",
        login=_login(server, settings),
    )


def _own_name() -> str:
    # RFC 5321 4.1.4: who has no name of its own says an address literal; that of the loopback interface lies least.
    name = socket.getfqdn()
    return name if _NAME.fullmatch(name) else "[127.0.0.1]"


def _context(settings: RelaySettings, *, required: bool) -> ssl.SSLContext:
    files = f"ca {settings.ca}"
    try:
        context = ssl.create_default_context(cafile=_expanded(settings.ca))
        if settings.cert is not None:
            files = f"cert {settings.cert}" + (f", key {settings.key}" if settings.key is not None else "")
            # An empty password: for a key with another OpenSSL would ask the terminal, and wait.
            context.load_cert_chain(str(_expanded(settings.cert)), _expanded(settings.key), password="")
    except OSError as error:  # ssl's errors are too
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{files}: cannot be read: {reason}") from error
    # RFC 7435: where plain text would do, a server that cannot be verified is still better than that.
    verified = settings.tls_verify if settings.tls_verify is not None else required or settings.ca is not None
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _login(server: NextServer, settings: RelaySettings) -> Login | None:
    username = server.username or settings.username
    if username is None:
        return None
    given = server.password or settings.password
    password = given.get_secret_value() if given is not None else _password_of(str(settings.password_file))
    return Login(username, password, insecure=server.near or settings.allow_insecure_auth)


def _password_of(file: str) -> str:
    try:
        text = expanded(file).read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"password_file {file}: cannot be read: {reason.lower()}") from error
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise ConfigurationError(f"password_file {file}: is empty")
    return password


def _expanded(path: str | None) -> str | None:
    return None if path is None else str(expanded(path))
