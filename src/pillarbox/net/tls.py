"""Every TLS context is made here, at construction: a bad key or certificate is an error then, not at a handshake.

What only the handshake knows is here too: the name that the client asked for (SNI), and which certificate that chooses.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from inspect import iscoroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pillarbox.errors import ConfigurationError
from pillarbox.net.dns import is_host_name
from pillarbox.optioncheck import wrong
from pillarbox.session import TLSInfo

if TYPE_CHECKING:
    from pillarbox.options import Options

OnProblem = Callable[[Exception, str | None], None]
TLSObject = ssl.SSLObject | ssl.SSLSocket

_SERVERNAME = "pillarbox_servername"  # the attribute of the ssl object that outlives the callback
_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
_MARKS = {  # what a PEM file must hold to be this option's, and how that is called
    "key": (b"PRIVATE KEY-----", "private key"),
    "cert": (b"CERTIFICATE-----", "certificate"),
    "ca": (b"CERTIFICATE-----", "certificate"),
}
_MISMATCH = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "NO_PRIVATE_KEY_ASSIGNED"}
_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}  # OpenSSL's reasons that blame the certificate


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
            key, cert = _self_signed()
            _Given(None, key, cert).load_pairs([self._context])
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
    )


# --- Contexts


def _base_context(o: Options) -> ssl.SSLContext:
    context = _bare_context(o)
    given = _Given(None, o.key, o.cert, o.ca, o.key_password)
    if o.cert is not None:
        given.load_pairs([context], alone=lambda: _bare_context(o))
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
    given = _Given(host, entry.get("key"), entry.get("cert"), authorities, o.key_password)
    given.load_pairs([context], alone=lambda: _bare_context(o))
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


# --- Keys, certificates and authorities


class _PEM(NamedTuple):
    label: str  # how an error calls it; never its content
    data: bytes


@dataclass(frozen=True)
class _Given:
    """key, cert and ca of the server or, with ``host``, of one server name."""

    host: str | None
    key: Any
    cert: Any
    ca: Any = None
    password: str | None = None

    def load_pairs(
        self, contexts: Sequence[ssl.SSLContext], *, alone: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        """Load every key with its certificate."""
        keys, certs = self._read("key", self.key), self._read("cert", self.cert)
        if len(keys) != len(certs) or not keys:
            self._wrong("cert", f"each certificate needs its key: {len(certs)} of cert, {len(keys)} of key")
        for key, cert in zip(keys, certs, strict=True):
            # In a context of its own first: OpenSSL would not miss the key of a second pair of another type.
            trial = [alone()] if alone and len(keys) > 1 else []
            for context in [*trial, *contexts]:
                self._load_pair(context, key, cert)

    def load_authorities(self, context: ssl.SSLContext) -> None:
        """Load what client certificates are checked against: the system's authorities where none are given."""
        authorities = self._read("ca", self.ca)
        for pem in authorities:
            with _file_of(pem.data) as path:
                try:
                    context.load_verify_locations(path)
                except ssl.SSLError as error:
                    self._wrong("ca", f"OpenSSL cannot use {pem.label}: {_reason(error)}")
        if not authorities and context.verify_mode != ssl.CERT_NONE:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)

    def _load_pair(self, context: ssl.SSLContext, key: _PEM, cert: _PEM) -> None:
        asked = []

        def password() -> str:  # without it OpenSSL would ask on the terminal
            asked.append(key)
            if self.password is None:
                self._wrong("key", f"{key.label} is encrypted: set key_password")
            return self.password

        with _file_of(cert.data) as cert_path, _file_of(key.data) as key_path:
            try:
                context.load_cert_chain(cert_path, key_path, password)
            except ConfigurationError:
                raise
            except (ssl.SSLError, ValueError) as error:  # ValueError: a password of more than 1,024 bytes
                self._explain(error, key, cert, encrypted=bool(asked))

    def _explain(self, error: Exception, key: _PEM, cert: _PEM, *, encrypted: bool) -> NoReturn:
        reason = getattr(error, "reason", None)
        if reason in _MISMATCH:
            self._wrong("key", f"{key.label} does not belong to the certificate in {cert.label}")
        if reason in _WEAK or not _is_certificate(cert):
            self._wrong("cert", f"OpenSSL cannot use {cert.label}: {_reason(error)}")
        if encrypted:
            self._wrong("key_password", f"does not open {key.label}")
        self._wrong("key", f"OpenSSL cannot use {key.label}: {_reason(error)}")

    def _read(self, option: str, value: Any) -> list[_PEM]:
        if value is None:
            return []
        items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        return [self._read_one(option, item) for item in items]

    def _read_one(self, option: str, value: Any) -> _PEM:
        mark, kind = _MARKS[option]
        pem = self._content(option, value)
        if mark not in pem.data:
            self._wrong(option, f"{pem.label} holds no PEM {kind}")
        return pem

    def _content(self, option: str, value: Any) -> _PEM:
        if isinstance(value, bytes):
            return _PEM("the PEM text", value)
        if isinstance(value, str) and "-----BEGIN" in value:
            return _PEM("the PEM text", value.encode(errors="replace"))
        if not isinstance(value, str | os.PathLike):
            self._wrong(option, f"must be PEM text, bytes or a path, not {type(value).__name__}")
        try:
            return _PEM(repr(os.fspath(value)), Path(value).read_bytes())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no path"
            self._wrong(option, f"cannot read {_shown(os.fspath(value))}: {why}")

    def _wrong(self, option: str, problem: str) -> NoReturn:
        if self.host is None:
            wrong(option, problem)
        wrong("sni_options", f"{self.host!r}: {option}: {problem}")


def _shown(path: str) -> str:
    """Return the path for an error, unless it looks like a key without its BEGIN line."""
    secret = "\n" in path or re.fullmatch(r"[A-Za-z0-9+/=\s]{60,}", path)
    return "what is neither a path nor PEM text (that has a line '-----BEGIN …')" if secret else repr(path)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or "it is damaged or of an unknown kind"
    return str(reason).replace("_", " ").lower()


def _is_certificate(pem: _PEM) -> bool:
    with _file_of(pem.data) as path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
        except ssl.SSLError:
            return False
        return True


@contextmanager
def _file_of(pem: bytes) -> Iterator[str]:
    """Give OpenSSL a path, the only thing it reads from; nothing is left of it afterwards."""
    with ExitStack() as cleanup:
        yield _in_memory(pem, cleanup) or _on_disk(pem, cleanup)


def _in_memory(pem: bytes, cleanup: ExitStack) -> str | None:
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.memfd_create("pem")
    except (OSError, AttributeError):  # a sandbox forbids it, an old C library has none
        return None
    cleanup.callback(os.close, descriptor)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(pem)
    path = Path(f"/proc/self/fd/{descriptor}")
    return str(path) if path.exists() else None


def _on_disk(pem: bytes, cleanup: ExitStack) -> str:
    descriptor, path = tempfile.mkstemp(prefix="pillarbox-")  # 0600
    cleanup.callback(os.unlink, path)
    with os.fdopen(descriptor, "wb") as file:  # closed before OpenSSL opens it, as Windows wants it
        file.write(pem)
    return path


# --- The self-signed certificate


@lru_cache(maxsize=1)
def _self_signed() -> tuple[bytes, bytes]:
    """Make key and certificate for localhost, once for each process: nothing that others could know is shipped."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, _certificate_for(key)


def _certificate_for(key: Any) -> bytes:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    addresses = [x509.IPAddress(ip_address(ip)) for ip in ("127.0.0.1", "::1")]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


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
        except Exception as error:  # noqa: BLE001 - a user's code
            self._report(error, name)
        return None

    def _asked(self, name: str) -> ssl.SSLContext | None:
        if self.callback is None:
            return None
        try:
            return _context_or_none(self.callback(name))
        except Exception as error:  # noqa: BLE001 - a user's code
            self._report(error, name)
            return None

    def _listed(self, name: str) -> ssl.SSLContext | None:
        # RFC 9525 6.3: the wildcard is "the complete left-most DNS label", and stands for one.
        return self.hosts.get(name) or self.hosts.get("*." + name.partition(".")[2])

    def _report(self, error: Exception, name: str | None) -> None:
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
