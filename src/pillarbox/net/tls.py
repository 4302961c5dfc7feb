"""Every TLS context is made here, at construction: a bad key or certificate is an error then, not at a handshake.

What only the handshake knows is here too: the name that the client asked for (SNI), and which certificate that chooses.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PROGRAM_ENDS
from pillarbox.net.binding import channel_bindings, note_certificates
from pillarbox.net.certificates import Given, self_signed_certificate
from pillarbox.net.dns import is_host_name
from pillarbox.optioncheck import wrong
from pillarbox.session import TLSInfo

if TYPE_CHECKING:
    from pillarbox.options import Options

OnProblem = Callable[[BaseException, str | None], None]
TLSObject = ssl.SSLObject | ssl.SSLSocket

_SERVERNAME = "pillarbox_servername"  # the attribute of the ssl object that outlives the callback
_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


class TLSContexts:
    """The TLS contexts of one listener, made from its options.

    ``on_problem(error, server_name)`` hears what goes wrong in the option ``sni_callback``; the handshake goes on
    with the default. Raises ConfigurationError for anything OpenSSL cannot use, naming option and file.
    """

    def __init__(self, options: Options, on_problem: OnProblem | None = None) -> None:
        self._lacks_certificate = options.ssl_context is None and options.cert is None
        self._context = options.ssl_context or _base_context(options)
        names = _ServerNames(options.sni_callback, _host_contexts(options), on_problem, self._context.sni_callback)
        self._context.sni_callback = names

    @property
    def context(self) -> ssl.SSLContext:
        """The context to start TLS with; the self-signed certificate is made when this is first read."""
        if self._lacks_certificate:
            key, cert = self_signed_certificate()
            note_certificates(self._context, Given(None, key, cert).load_pairs([self._context]))
            self._lacks_certificate = False
        return self._context


def tls_info(ssl_object: TLSObject) -> TLSInfo:
    """Return the facts of a finished handshake."""
    certificate = ssl_object.getpeercert(binary_form=True)
    return TLSInfo(
        version=ssl_object.version() or "",
        cipher=(ssl_object.cipher() or ("",))[0],
        servername=getattr(ssl_object, _SERVERNAME, None),
        peer_certificate=certificate,
        # A server gets a certificate only where it asked for one, and then Python lets none in that does not verify.
        # (The verify mode to ask is the base context's; after SNI `ssl_object.context` is another one.)
        authorized=certificate is not None,
        channel_bindings=channel_bindings(ssl_object),
    )


# --- Contexts


def _base_context(o: Options) -> ssl.SSLContext:
    context = _bare_context(o)
    given = Given(None, o.key, o.cert, o.ca, o.key_password)
    if o.cert is not None:
        note_certificates(context, given.load_pairs([context], alone=lambda: _bare_context(o)))
    given.load_authorities(context)
    if o.request_cert and (o.sni_options or o.sni_callback):
        # A TLS 1.3 session resumes under any name: a client that proved itself to the authorities of one host would
        # be let in at another without a look at its certificate. (TLS 1.2 resumes under the first name only.)
        context.num_tickets = 0
    return context


def _host_contexts(o: Options) -> dict[str, ssl.SSLContext]:
    contexts: dict[str, ssl.SSLContext] = {}
    for host, entry in (o.sni_options or {}).items():
        name = _host_pattern(host)
        if name in contexts:
            wrong("sni_options", f"{host!r} stands there twice (names compare without case)")
        contexts[name] = _host_context(o, host, entry)
    return contexts


def _host_context(o: Options, host: str, entry: Mapping[str, Any]) -> ssl.SSLContext:
    context = _bare_context(o)
    # The switch takes the authorities along: without its own a host keeps the server's.
    authorities = entry.get("ca", o.ca)
    given = Given(host, entry.get("key"), entry.get("cert"), authorities, o.key_password)
    note_certificates(context, given.load_pairs([context], alone=lambda: _bare_context(o)))
    given.load_authorities(context)
    if o.ssl_context is not None and authorities is None:
        _copy_authorities(o.ssl_context, context)
    return context


def _copy_authorities(source: ssl.SSLContext, target: ssl.SSLContext) -> None:
    authorities = b"".join(source.get_ca_certs(binary_form=True))
    if authorities:
        target.load_verify_locations(cadata=authorities)


def _bare_context(o: Options) -> ssl.SSLContext:
    """Return a context with everything but certificates: versions, ciphers, what is asked of the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_minimum_version(context, o.minimum_tls_version)
    _set_ciphers(context, o.ciphers, lowered=o.minimum_tls_version in ("TLSv1", "TLSv1.1"))
    if o.request_cert:
        context.verify_mode = ssl.CERT_REQUIRED if o.reject_unauthorized else ssl.CERT_OPTIONAL
    return context


def _set_minimum_version(context: ssl.SSLContext, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 and 1.1: who sets the option knows
        try:
            context.minimum_version = _VERSIONS[version]
        except ValueError:
            wrong("minimum_tls_version", f"this OpenSSL has no {version}")


def _set_ciphers(context: ssl.SSLContext, ciphers: str | None, *, lowered: bool) -> None:
    if ciphers is None and not lowered:
        return
    # Python's own list leaves out SHA-1, and with it every suite of TLS 1.0 and 1.1.
    wanted = ciphers or "DEFAULT:!aNULL:!eNULL:!PSK:!SRP"
    if lowered and "@SECLEVEL" not in wanted:
        wanted += ":@SECLEVEL=0"  # OpenSSL 3 refuses the SHA-1 signatures of TLS 1.0 and 1.1 above this level
    try:
        context.set_ciphers(wanted)
    except (ssl.SSLError, ValueError):
        wrong(
            "ciphers",
            f"{ciphers!r} leaves no cipher: it must name OpenSSL ciphers of TLS 1.2 or older"
            " (Python cannot choose those of TLS 1.3)",
        )


# --- Server names


@dataclass(frozen=True)
class _ServerNames:
    """What OpenSSL calls when the client has said which server it wants. It never raises: that ends the handshake.

    ``earlier`` is the callback that a user's own context had before; it decides where no option does.
    """

    callback: Callable[[str], Any] | None
    hosts: Mapping[str, ssl.SSLContext]
    on_problem: OnProblem | None
    earlier: Callable[..., int | None] | None

    def __post_init__(self) -> None:
        if isinstance(self.earlier, _ServerNames):  # the same context given again: by a reload, to a second listener
            object.__setattr__(self, "earlier", self.earlier.earlier)

    def __call__(self, ssl_object: TLSObject, server_name: str | None, base: ssl.SSLContext) -> int | None:
        name = _as_recorded(server_name)
        setattr(ssl_object, _SERVERNAME, name)
        try:
            chosen = (self._asked(name) or self._listed(name)) if name else None
            if chosen is not None:
                ssl_object.context = chosen  # changes certificate and authorities, nothing else
            elif self.earlier is not None:
                return self.earlier(ssl_object, server_name, base)
        except PROGRAM_ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - a user's code
            self._report(error, name)
        return None

    def _asked(self, name: str) -> ssl.SSLContext | None:
        if self.callback is None:
            return None
        try:
            return _context_or_none(self.callback(name))
        except PROGRAM_ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - a user's code
            self._report(error, name)
            return None

    def _listed(self, name: str) -> ssl.SSLContext | None:
        # RFC 9525 6.3: the wildcard is "the complete left-most DNS label", and stands for one.
        return self.hosts.get(name) or self.hosts.get("*." + name.partition(".")[2])

    def _report(self, error: BaseException, name: str | None) -> None:
        with suppress(Exception):
            if self.on_problem is not None:
                self.on_problem(error, name)


def _context_or_none(answer: Any) -> ssl.SSLContext | None:
    if answer is None or isinstance(answer, ssl.SSLContext):
        return answer
    if iscoroutine(answer):
        answer.close()
    raise TypeError(f"sni_callback must return an ssl.SSLContext or None, not {type(answer).__name__}")


def _as_recorded(server_name: str | None) -> str | None:
    """Return the name in lower case; None for what is no host name, which may hold anything ("../../etc")."""
    name = (server_name or "").lower().removesuffix(".")
    return name if is_host_name(name) else None


def _host_pattern(host: str) -> str:
    """Return a key of ``sni_options`` as clients send the name: lower case, A-labels (RFC 6066 3)."""
    star = "*." if host.startswith("*.") else ""
    name = host.removeprefix(star).lower().removesuffix(".")
    if not name.isascii():
        name = _a_labels(host, name)
    if not is_host_name(name):
        wrong("sni_options", f"{host!r} is no host name")
    return star + name


def _a_labels(host: str, name: str) -> str:
    import idna

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        wrong("sni_options", f"{host!r} is no host name: {error}")
