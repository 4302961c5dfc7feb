"""gsasl: it logs in and sends nothing. It knows channel bindings, of which Python has one under TLS 1.2."""

from __future__ import annotations

import pytest

from interop.conftest import Authority, ClientCertificate
from interop.peers import HOST, PASSWORD, PLAIN, STARTTLS, USER, Outcome, Server, program, run

TLS_1_2 = ("--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2")
SUCCESS = "Client authentication finished"


class Gsasl:
    """The program."""

    def __init__(self, authority: Authority) -> None:
        self._program = program("gsasl", "gsasl")
        self._trust = ("--x509-ca-file", str(authority.file), "--hostname", HOST)

    def log_in(self, server: Server, mechanism: str, *more: str, form: str = PLAIN) -> Outcome:
        place = ("--smtp", f"--connect={HOST}:{server.port}", "--mechanism", mechanism)
        tls = ("--no-starttls",) if form == PLAIN else ("--starttls", *self._trust)
        return run([self._program, *place, *tls, *more])


@pytest.fixture
def gsasl(authority: Authority) -> Gsasl:
    return Gsasl(authority)


def credential(password: str = PASSWORD) -> tuple[str, ...]:
    return ("--authentication-id", USER, "--password", password)


@pytest.mark.proves("gsasl", "AUTH SCRAM-SHA-256", "AUTH SCRAM-SHA-1")
@pytest.mark.parametrize("form", [PLAIN, STARTTLS])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"])
def test_it_logs_in(sasl_server: Server, gsasl: Gsasl, mechanism: str, form: str) -> None:
    name = ("--authorization-id", "") if mechanism == "PLAIN" else ()
    outcome = gsasl.log_in(sasl_server, mechanism, *credential(), *name, "--no-cb", form=form)
    outcome.expect_success()
    assert SUCCESS in outcome.output
    gsasl.log_in(sasl_server, mechanism, *credential("wrong"), *name, "--no-cb", form=form).expect_failure()


@pytest.mark.proves("gsasl", "AUTH SCRAM-SHA-256-PLUS", "AUTH SCRAM-SHA-1-PLUS")
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"])
def test_channel_binding(sasl_server: Server, gsasl: Gsasl, mechanism: str) -> None:
    outcome = gsasl.log_in(sasl_server, mechanism, *credential(), *TLS_1_2, form=STARTTLS)
    outcome.expect_success()
    assert SUCCESS in outcome.output  # it has checked the server's proof too
    gsasl.log_in(sasl_server, mechanism, *credential("wrong"), *TLS_1_2, form=STARTTLS).expect_failure()
    # Under TLS 1.3 it takes tls-exporter alone, which Python does not have.
    gsasl.log_in(sasl_server, mechanism, *credential(), form=STARTTLS).expect_failure()


@pytest.mark.proves("gsasl", "AUTH ANONYMOUS")
def test_anonymous(sasl_server: Server, gsasl: Gsasl) -> None:
    outcome = gsasl.log_in(sasl_server, "ANONYMOUS", "--anonymous-token", "jo@example.com")
    outcome.expect_success()
    assert SUCCESS in outcome.output


@pytest.mark.proves("gsasl", "AUTH EXTERNAL")
def test_external(sasl_server: Server, gsasl: Gsasl, client_certificate: ClientCertificate) -> None:
    file = str(client_certificate.file)
    shown = ("--x509-cert-file", file, "--x509-key-file", file, "--authorization-id", "")
    gsasl.log_in(sasl_server, "EXTERNAL", *shown, form=STARTTLS).expect_success()
    gsasl.log_in(sasl_server, "EXTERNAL", "--authorization-id", "", form=STARTTLS).expect_failure()
