"""Which server ``send`` and ``probe`` talk to: text becomes a ``Peer`` here, and back.

host   host:port   smtp://[user@]host[:port]   smtps://…   lmtp://…   unix:PATH   smtp:PATH   lmtp:PATH   lmtp+unix:PATH
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pillarbox import ConfigurationError
from pillarbox.cli.addresses import address_text

# RFC 8314 7.3 for 465. LMTP has no port of its own (RFC 2033 5: not 25); 24 is IANA's for private mail systems.
_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}
_FORMS = "write host, host:port, smtp://user@host:port, smtps://…, lmtp://…, unix:PATH or lmtp:PATH"


@dataclass(frozen=True)
class Peer:
    """A server's place (host and port, or the path of a Unix socket), and how it is spoken to."""

    host: str = ""
    port: int = 0
    path: str = ""
    lmtp: bool = False
    implicit_tls: bool = False
    user: str | None = None

    def __str__(self) -> str:
        if self.path:
            return f"lmtp:{self.path}" if self.lmtp else f"unix:{self.path}"
        return address_text((self.host, self.port))


def peer_from_text(text: str, port: int | None = None) -> Peer:
    """Return what the text names; ``port`` is for a text without one. Raise ConfigurationError if it names nothing."""
    kind, _, path = text.partition(":")
    # As in a target's URL, but for a host that is called smtp: smtp:25.
    socket = kind in ("smtp", "lmtp") and not path.isdigit() and (path[:2] != "//" or path[:3] == "///")
    if kind in ("unix", "lmtp+unix") or socket:
        return _at_path(text, path, lmtp=kind not in ("unix", "smtp"))
    scheme, separator, _ = text.partition("://")
    if not separator:
        return _bare(text, port)
    if scheme.lower() not in _PORTS:
        raise ConfigurationError(f"{text!r}: unknown scheme {scheme!r}: {_FORMS}")
    return _from_url(text, scheme.lower(), port)


def _at_path(text: str, path: str, *, lmtp: bool) -> Peer:
    path = path.removeprefix("//")
    if not path or "\0" in path:
        raise ConfigurationError(f"{text!r} names no socket: write {text.partition(':')[0]}:PATH")
    return Peer(path=path, lmtp=lmtp)


def _bare(text: str, port: int | None) -> Peer:
    if text.count(":") > 1 and not text.startswith("["):
        raise ConfigurationError(f"{text!r}: put an IPv6 address in brackets, for example [::1]:2525")
    found = _from_url(text, "smtp", port, f"smtp://{text}")
    # RFC 8314 7.3 gives 465 to mail over implicit TLS: nothing else answers there.
    return _from_url(text, "smtps", port, f"smtps://{text}") if found.port == 465 else found


def _from_url(text: str, scheme: str, port: int | None, url: str = "") -> Peer:
    try:
        parts = urlsplit(url or text)
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no server ({str(error).lower()}): {_FORMS}") from error
    if parts.password is not None:  # it would stand in the list of processes: say so without repeating it
        raise ConfigurationError("a password in an argument can be seen by others: use --password-file FILE")
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment or any(c.isspace() for c in text):
        raise ConfigurationError(f"{text!r} is no server: {_FORMS}")
    return Peer(
        host=host,
        port=_PORTS[scheme] if given is None and port is None else given if given is not None else port or 0,
        lmtp=scheme == "lmtp",
        implicit_tls=scheme == "smtps",
        user=None if parts.username is None else unquote(parts.username),
    )
