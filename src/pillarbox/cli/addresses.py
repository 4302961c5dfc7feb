"""What ``--listen ADDRESS`` means: text becomes the arguments of ``SMTPServer.listen`` here, and back.

host:port   [v6]:port   :port (all interfaces)   unix:PATH   fd:N   fd:NAME
"""

from __future__ import annotations

from typing import Any

from pillarbox import ConfigurationError

_FORMS = "write host:port, [IPv6]:port, :port for all interfaces, unix:PATH, fd:N or fd:NAME"


def listen_arguments(address: str) -> dict[str, Any]:
    """Return the keyword arguments of ``SMTPServer.listen``; raise ConfigurationError for what is no address.

    ``fd`` may be a name, which only the process that was handed the sockets can turn into a number.
    """
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return {"path": _unix_path(address, rest)}
    if kind == "fd":
        return {"fd": _descriptor(address, rest)}
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ConfigurationError(f"{address!r} is no address: {_FORMS}")
    return {"host": _host(address, host), "port": _port(address, port)}


def address_text(bound: tuple[str, int] | str) -> str:
    """Spell what ``SMTPServer.listen`` returned in the way ``--listen`` takes it."""
    if isinstance(bound, str):
        return f"unix:{bound}"
    host, port = bound
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unix_path(address: str, path: str) -> str:
    if not path or "\0" in path:
        raise ConfigurationError(f"{address!r} names no socket: write unix:PATH")
    return path


def _descriptor(address: str, number: str) -> int | str:
    if number.isascii() and number.isdigit() and len(number) < 10:
        return int(number)
    if not number or not all("!" <= c <= "~" and c not in ":/" for c in number):
        raise ConfigurationError(f"{address!r}: {number!r} is no descriptor: write fd:N, for example fd:3")
    return number


def _host(address: str, host: str) -> str | None:
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    if ":" in host:
        raise ConfigurationError(f"{address!r}: put an IPv6 address in brackets, for example [::1]:2525")
    if any(c.isspace() or c in "[]/" for c in host):
        raise ConfigurationError(f"{address!r}: {host!r} is no host: {_FORMS}")
    return host or None


def _port(address: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise ConfigurationError(f"{address!r}: {port!r} is no port from 0 to 65535: {_FORMS}")
    return int(port)
