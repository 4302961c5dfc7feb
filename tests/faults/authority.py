"""Certificates as a test wants them: of this authority or another, expired, for another purpose."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """A key and its certificate, and who signed it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def cert(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def options(self) -> dict[str, str]:
        """The options ``key`` and ``cert`` of a server."""
        return {"key": self._key().decode(), "cert": self.cert}

    def _key(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write certificate and key, and return the files."""
        cert, key = folder / "cert.pem", folder / "key.pem"
        cert.write_text(self.cert)
        key.write_bytes(self._key())
        return cert, key

    def show(self, context: ssl.SSLContext, folder: Path) -> None:
        """Let a client show it."""
        context.load_cert_chain(*self.write(folder))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Who signs; two of one name have different keys all the same."""

    def __init__(self, name: str = "Test Authority") -> None:
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.identity = Identity(self._key, self._signed(self._name, self._key, ca=True))

    def issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        *,
        days: int = 80,
    ) -> Identity:
        """Issue one for this name; negative days: it ended so long ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Identity(key, self._signed(_name(name), key, (name,), purpose, days))

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: tuple[str, ...] = (),
        purpose: x509.ObjectIdentifier | None = None,
        days: int = 80,
        *,
        ca: bool = False,
    ) -> x509.Certificate:
        """Sign as authorities do: short-lived, and it says where it would be revoked."""
        end = datetime.datetime.now(datetime.UTC) + days * DAY
        where = x509.UniformResourceIdentifier("http://ca.example/crl")
        builder = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(end - 85 * DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.CRLDistributionPoints([x509.DistributionPoint([where], None, None, None)]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if purpose is not None:
            alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            usage = x509.ExtendedKeyUsage([purpose])
            builder = builder.add_extension(alternative, critical=False).add_extension(usage, critical=False)
        return builder.sign(self._key, hashes.SHA256())
