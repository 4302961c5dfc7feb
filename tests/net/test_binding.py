"""Channel bindings: which hash RFC 5929 means for which certificate."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pillarbox.net.binding import SentCertificate, end_point

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.com")])
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


# cryptography signs with SHA-1 no more; it is OpenSSL's.
SHA1 = b"""\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS6gAwIBAgIUNA9R6u8Hr6Qw+OTamAQws9Jo1uMwCQYHKoZIzj0EATAZ
MRcwFQYDVQQDDA5teC5leGFtcGxlLmNvbTAgFw0yNjExMjMwMzQ5NTdaGA8yMTI2
MTAzMDAzNDk1N1owGTEXMBUGA1UEAwwObXguZXhhbXBsZS5jb20wWTATBgcqhkjO
PQIBBggqhkjOPQMBBwNCAATBFXJZCWLYIWIuhvDFgLmWP0MsrgXtNcm7nHVurDEA
fCnNz0kAIpZcmODG6BiD/+C04FtjoyEAiL6U5D3SJke4o1MwUTAdBgNVHQ4EFgQU
dPFk6Lr4tGeZO7nIfhavzeQ7o+IwHwYDVR0jBBgwFoAUdPFk6Lr4tGeZO7nIfhav
zeQ7o+IwDwYDVR0TAQH/BAUwAwEB/zAJBgcqhkjOPQQBA0kAMEYCIQCYfA+jTMFO
FMuFwbCY0wEz8SSYBtnLL+LHmVurlSsYSQIhANd7DCdQiQjWCdanwE3xYnr8oD99
vCmV+Pi9x055LTCV
-----END CERTIFICATE-----
"""


def certificate(key: Any, algorithm: Any, **more: Any) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, algorithm, **more)


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in chain)


@pytest.mark.parametrize(
    ("key", "algorithm", "more", "name"),
    [
        (EC, hashes.SHA256(), {}, "sha256"),
        (EC, hashes.SHA384(), {}, "sha384"),
        (RSA, hashes.SHA512(), {}, "sha512"),
        (RSA, hashes.SHA384(), {"rsa_padding": padding.PSS(padding.MGF1(hashes.SHA384()), 48)}, "sha384"),
    ],
)
def test_the_hash_is_the_signatures_or_a_better_one(key: Any, algorithm: Any, more: dict[str, Any], name: str) -> None:
    leaf = certificate(key, algorithm, **more)
    chain = pem(leaf, certificate(EC, hashes.SHA512()))  # its first certificate counts
    expected = hashlib.new(name, leaf.public_bytes(Encoding.DER)).digest()
    assert end_point(b"a comment\n" + chain) == expected
    assert dict(SentCertificate(chain)) == {"tls-server-end-point": expected}


def test_sha_1_is_replaced_by_sha_256() -> None:
    leaf = x509.load_pem_x509_certificate(SHA1)
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA1)
    assert end_point(SHA1) == hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()


def test_a_certificate_without_a_hash_binds_nothing() -> None:
    undefined = pem(certificate(ed25519.Ed25519PrivateKey.generate(), None))
    assert end_point(undefined) is None
    assert not SentCertificate(undefined)
    assert not SentCertificate(b"no certificate")


def test_it_is_worked_out_once_and_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr("pillarbox.net.binding.end_point", asked.append)
    sent = SentCertificate(b"pem")
    assert asked == []
    assert (len(sent), sent.get("tls-unique"), list(sent)) == (0, None, [])
    assert asked == [b"pem"]
