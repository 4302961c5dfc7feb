"""What scanners find at the STARTTLS and at the implicit TLS port: nothing above "low"."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # the scanner of this machine wrote it

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from interop.peers import HOST, IMPLICIT, STARTTLS, Server, program, run

FORMS = (STARTTLS, IMPLICIT)
Key = ec.EllipticCurvePrivateKey


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issued(
    subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    """Return a certificate as authorities issue them: short-lived, and it says where it would be revoked."""
    now = datetime.datetime.now(datetime.UTC)
    points = x509.DistributionPoint([x509.UniformResourceIdentifier("http://ca.example/crl")], None, None, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name("Test Authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=80))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.CRLDistributionPoints([points]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if not ca:
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    return builder.sign(by, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Give the authority's file, and the server's key and certificate."""
    theirs, ours = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    file.write_bytes(pem(issued("Test Authority", theirs, theirs, ca=True)))
    key = ours.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return file, {"key": key, "cert": pem(issued("localhost", ours, theirs, ca=False))}


@pytest.fixture
def server(authority: tuple[Path, dict[str, Any]]) -> Iterator[Server]:
    with Server(asyncio.new_event_loop, **authority[1]) as running:
        yield running


def port(server: Server, form: str) -> int:
    return server.tls_port if form == IMPLICIT else server.port


@pytest.mark.promises("TLS", "Scanners find nothing weak: sslscan, and nothing above low testssl.sh.")
@pytest.mark.parametrize("form", FORMS)
def test_sslscan_finds_nothing_weak(server: Server, form: str) -> None:
    scan = program("sslscan", "sslscan")
    target = f"{HOST}:{port(server, form)}"
    done = run([scan, "--xml=-", *(["--starttls-smtp"] if form == STARTTLS else []), target])
    done.expect_success()
    report = ElementTree.fromstring(done.output[done.output.index("<?xml") :])
    on = {f"{p.get('type')} {p.get('version')}" for p in report.iter("protocol") if p.get("enabled") == "1"}
    assert on == {"tls 1.2", "tls 1.3"}
    assert [p.get("supported") for p in report.iter("renegotiation")] in (["0"], [])
    assert all(entry.get("vulnerable") == "0" for entry in report.iter("heartbleed"))
    assert all(entry.get("supported") in ("0", None) for entry in report.iter("compression"))
    ciphers = list(report.iter("cipher"))
    assert ciphers
    assert {cipher.get("strength") for cipher in ciphers} <= {"strong", "acceptable"}


@pytest.mark.promises("TLS", "Scanners find nothing weak: sslscan, and nothing above low testssl.sh.")
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes a minute: only with LONG_TESTS=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", FORMS)
def test_testssl_finds_nothing_above_low(
    server: Server, form: str, authority: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    scan = program("testssl", "testssl.sh")
    report = tmp_path / "report.json"
    tests = ["--protocols", "--std", "--server-defaults", "--vulnerable", "--fs"]
    how = ["--starttls", "smtp"] if form == STARTTLS else []
    quiet: list[str | Path] = [
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--add-ca",
        authority[0],
        "--jsonfile",
        report,
    ]
    run([scan, *quiet, *tests, *how, f"localhost:{port(server, form)}"], timeout=500)
    findings = json.loads(report.read_text())
    assert {"TLS1_3", "heartbleed", "SWEET32"} <= {finding["id"] for finding in findings}
    known = {"OK", "INFO", "LOW", "WARN", "DEBUG"}
    assert [finding for finding in findings if finding["severity"] not in known] == []
