"""Channel bindings (RFC 5929): what of a TLS connection both ends know, so that a login can be bound to it.

Of those that there are, Python can tell ``tls-server-end-point``, and ``tls-unique`` where that is defined, under
TLS 1.2; there is no ``tls-exporter`` (RFC 9266).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import ssl
    from collections.abc import MutableMapping

_SENT = "pillarbox_certificate"  # the attribute of a context that says which certificate it sends
_NONE: Mapping[str, bytes] = {}


class SentCertificate(Mapping[str, bytes]):
    """The bindings of all connections on which one certificate was sent; worked out when they are first looked at."""

    def __init__(self, pem: bytes) -> None:
        self._pem = pem

    @cached_property
    def _bindings(self) -> dict[str, bytes]:
        binding = end_point(self._pem)
        return {} if binding is None else {"tls-server-end-point": binding}

    def __getitem__(self, name: str) -> bytes:
        return self._bindings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bindings)

    def __len__(self) -> int:
        return len(self._bindings)


def note_certificates(context: ssl.SSLContext, pems: Sequence[bytes]) -> None:
    """Note which certificate a context sends: with several, of different keys, nobody tells which one it was."""
    if len(pems) == 1:
        setattr(context, _SENT, SentCertificate(pems[0]))


def channel_bindings(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> Mapping[str, bytes]:
    """Return the bindings of a connection after its handshake; where SNI chose, of the context that it chose."""
    sent: Mapping[str, bytes] = getattr(ssl_object.context, _SENT, _NONE)
    if ssl_object.version() != "TLSv1.2":
        return sent  # under TLS 1.3 there is no tls-unique (RFC 9266), though Python returns something
    unique = ssl_object.get_channel_binding("tls-unique")
    return ChainMap({"tls-unique": unique}, cast("MutableMapping[str, bytes]", sent)) if unique else sent


def end_point(pem: bytes) -> bytes | None:
    """Return ``tls-server-end-point`` of the first certificate of a chain; None where it is not defined."""
    from cryptography import x509  # 60 ms, which a server without -PLUS saves
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes

    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        algorithm = certificate.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    # RFC 5929 4.1: "if the certificate's signatureAlgorithm uses a single hash function, and that hash function is
    # either MD5 [RFC1321] or SHA-1 [RFC3174], then use SHA-256"; where it has none, as Ed25519, "this channel binding
    # type's channel bindings are undefined at this time".
    if algorithm is None:
        return None
    weak = isinstance(algorithm, hashes.MD5 | hashes.SHA1)
    return certificate.fingerprint(hashes.SHA256() if weak else algorithm)
