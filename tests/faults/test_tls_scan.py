"""What scanners find at the STARTTLS and at the implicit TLS port: nothing above "low".

Also where the server asks for client certificates, and by each of its names.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # the scanner of this machine wrote it

import pytest

from faults.authority import CLIENT, SERVER, Authority, Identity
from interop.peers import HOST, IMPLICIT, STARTTLS, Server, program, run

FORMS = (STARTTLS, IMPLICIT)
NAMES = ("localhost", "a.example", "b.example")


@lru_cache
def authority() -> Authority:
    return Authority()


@lru_cache
def identity(name: str) -> Identity:
    return authority().issue(name, SERVER)


@lru_cache
def client() -> Identity:
    return authority().issue("scanner.example", CLIENT)


@dataclass(frozen=True)
class Case:
    """A server's options, and how the scanner comes to it."""

    options: dict[str, Any]
    name: str = "localhost"  # that it asks for
    shows: bool = False  # a certificate of its own


def cases() -> dict[str, Case]:
    """Return what is scanned."""
    own = identity("localhost").options
    asking = {**own, "request_cert": True, "ca": authority().identity.cert}
    optional = {**asking, "reject_unauthorized": False}
    named = {**own, "sni_options": {name: identity(name).options for name in NAMES[1:]}}
    return {
        "plain": Case(own),
        "certificate required": Case(asking, shows=True),
        "certificate optional, shown": Case(optional, shows=True),
        "certificate optional, none": Case(optional),
        **{f"name {name}": Case(named, name) for name in NAMES},
        "name and certificate": Case({**asking, **named}, "a.example", shows=True),
    }


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    return cases()[request.param]


@pytest.fixture
def server(case: Case) -> Iterator[Server]:
    with Server(asyncio.new_event_loop, **case.options) as running:
        running.tolerated = (Exception,)  # a scanner breaks off most of its handshakes
        yield running


def port(server: Server, form: str) -> int:
    return server.tls_port if form == IMPLICIT else server.port


@pytest.mark.promises("TLS", "Scanners find nothing weak: sslscan, and nothing above low testssl.sh.")
@pytest.mark.parametrize("form", FORMS)
def test_sslscan_finds_nothing_weak(server: Server, form: str, case: Case, tmp_path: Path) -> None:
    scan = program("sslscan", "sslscan")
    arguments = [f"--sni-name={case.name}", *(["--starttls-smtp"] if form == STARTTLS else [])]
    if case.shows:
        cert, key = client().write(tmp_path)
        arguments += [f"--certs={cert}", f"--pk={key}"]
    done = run([scan, "--xml=-", *arguments, f"{HOST}:{port(server, form)}"])
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
    assert {subject.text for subject in report.iter("subject")} == {case.name}


# It shows no certificate of its own (3.2 is the first version that can): where one is required sslscan has to do.
TESTSSL_CASES = ["plain", "certificate optional, none", "name a.example"]
if os.environ.get("LONG_TESTS") != "all":
    del TESTSSL_CASES[1:]


@pytest.mark.promises("TLS", "Scanners find nothing weak: sslscan, and nothing above low testssl.sh.")
@pytest.mark.skipif(
    "LONG_TESTS" not in os.environ, reason="takes a minute for each: LONG_TESTS=1, or all for the others"
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", TESTSSL_CASES, indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_testssl_finds_nothing_above_low(server: Server, form: str, case: Case, tmp_path: Path) -> None:
    scan = program("testssl", "testssl.sh")
    report, ca = tmp_path / "report.json", tmp_path / "ca.pem"
    ca.write_text(authority().identity.cert)
    tests = ["--protocols", "--std", "--server-defaults", "--vulnerable", "--fs"]
    how = ["--ip", HOST, *(["--starttls", "smtp"] if form == STARTTLS else [])]
    quiet = ["--quiet", "--color", "0", "--warnings", "off", "--add-ca", str(ca), "--jsonfile", str(report)]
    run([scan, *quiet, *tests, *how, f"{case.name}:{port(server, form)}"], timeout=500)
    findings = json.loads(report.read_text())
    assert {"TLS1_3", "heartbleed", "SWEET32"} <= {finding["id"] for finding in findings}
    known = {"OK", "INFO", "LOW", "WARN", "DEBUG"}
    assert [finding for finding in findings if finding["severity"] not in known] == []
