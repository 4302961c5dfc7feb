"""EXTERNAL (RFC 4422 A): who the client is was proven outside, by the certificate of its TLS handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillarbox.smtp.sasl.base import AuthRequest, Exchange, Mechanism, identity

if TYPE_CHECKING:
    from pillarbox.session import Session


class External(Mechanism):
    """At most a name as whom to act; offered where the client's certificate verified."""

    name = "EXTERNAL"

    def offered(self, session: Session) -> bool:
        # After XCLIENT the certificate is the proxy's, and the session another's.
        return session.tls is not None and session.tls.authorized and not session.x_client

    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        # RFC 4422 A.1: the message is an authorization identity; empty, it is whom the certificate names.
        answer = await exchange.challenge(b"") if initial is None else initial
        authzid = identity(answer)
        tls = exchange.session.tls
        certificate = tls.peer_certificate if tls is not None else None
        authcid = identity(name_in(certificate or b"").encode("utf-8", "replace"))
        return await exchange.verify(AuthRequest(self.name, authzid or authcid, authcid=authcid, authzid=authzid))


def name_in(certificate: bytes) -> str:
    """Return the first e-mail address of a certificate (DER), else its common name; "" where it has neither."""
    from cryptography import x509  # 60 ms, for those who use it
    from cryptography.x509.oid import NameOID

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        names = [str(attribute.value) for attribute in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        addresses = _addresses(parsed)
    except ValueError:  # it verified, so OpenSSL is less strict: it names nobody
        return ""
    return next(iter([*addresses, *names]), "")


def _addresses(certificate: object) -> list[str]:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)  # noqa: S101 - for the type checker: the import is local
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.RFC822Name)
