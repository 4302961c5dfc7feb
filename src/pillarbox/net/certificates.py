"""Keys and certificates: how PEM in whatever form reaches OpenSSL, and the certificate made for want of one."""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from pillarbox.errors import ConfigurationError
from pillarbox.optioncheck import wrong

_MARKS = {  # what a PEM file must hold to be this option's, and how that is called
    "key": (b"PRIVATE KEY-----", "private key"),
    "cert": (b"CERTIFICATE-----", "certificate"),
    "ca": (b"CERTIFICATE-----", "certificate"),
}
_MISMATCH = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "NO_PRIVATE_KEY_ASSIGNED"}
_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}  # OpenSSL's reasons that blame the certificate


class _PEM(NamedTuple):
    label: str  # how an error calls it; never its content
    data: bytes


@dataclass(frozen=True)
class Given:
    """key, cert and ca of the server or, with ``host``, of one server name."""

    host: str | None
    key: Any
    cert: Any
    ca: Any = None
    password: str | None = None

    def load_pairs(
        self, contexts: Sequence[ssl.SSLContext], *, alone: Callable[[], ssl.SSLContext] | None = None
    ) -> list[bytes]:
        """Load every key with its certificate; return the certificates' PEM."""
        keys, certs = self._read("key", self.key), self._read("cert", self.cert)
        if len(keys) != len(certs) or not keys:
            self._wrong("cert", f"each certificate needs its key: {len(certs)} of cert, {len(keys)} of key")
        for key, cert in zip(keys, certs, strict=True):
            # In a context of its own first: OpenSSL would not miss the key of a second pair of another type.
            trial = [alone()] if alone and len(keys) > 1 else []
            for context in [*trial, *contexts]:
                self._load_pair(context, key, cert)
        return [cert.data for cert in certs]

    def load_authorities(self, context: ssl.SSLContext) -> None:
        """Load what client certificates are checked against: the system's authorities where none are given."""
        authorities = self._read("ca", self.ca)
        for pem in authorities:
            with file_of(pem.data) as path:
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

        with file_of(cert.data) as cert_path, file_of(key.data) as key_path:
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
            with open(value, "rb") as file:  # noqa: PTH123 - to import pathlib takes 2 ms
                return _PEM(repr(os.fspath(value)), file.read())
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
    with file_of(pem.data) as path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
        except ssl.SSLError:
            return False
        return True


@contextmanager
def file_of(pem: bytes) -> Iterator[str]:
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
    path = f"/proc/self/fd/{descriptor}"
    return path if os.path.exists(path) else None  # noqa: PTH110 - as above


def _on_disk(pem: bytes, cleanup: ExitStack) -> str:
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix="pillarbox-")  # 0600
    cleanup.callback(os.unlink, path)
    with os.fdopen(descriptor, "wb") as file:  # closed before OpenSSL opens it, as Windows wants it
        file.write(pem)
    return path


# --- The self-signed certificate


@lru_cache(maxsize=1)
def self_signed_certificate() -> tuple[bytes, bytes]:
    """Return key and certificate (PEM) for localhost, as a server without any has them: made once for each process.

    For several processes that are to show the same one: give both to each as the options ``key`` and ``cert``.
    """
    # Made here and now: nothing that others could know is shipped.
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
