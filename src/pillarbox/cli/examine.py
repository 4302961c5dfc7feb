"""What a server offers, before and behind TLS, as far as it answers: seen here, judged and shown in ``report``.

No mail is sent and nobody logs in.
"""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass, field

from pillarbox.cli.certificates import Certificate
from pillarbox.cli.client import Answer, Client, tls_context, told
from pillarbox.cli.peer import Peer
from pillarbox.cli.status import Failure, Status, status_of


@dataclass
class Hello:
    """What the reply to EHLO says."""

    answer: Answer
    keywords: dict[str, str] = field(default_factory=dict)  # upper case → parameters

    @property
    def mechanisms(self) -> list[str]:
        return self.keywords.get("AUTH", "").upper().split()


@dataclass
class TLS:
    """The TLS connection."""

    implicit: bool
    version: str
    cipher: str
    certificate: Certificate | None
    distrust: str | None  # why it is not trusted, None where it is


@dataclass
class Report:
    """What one server said, as far as it came."""

    peer: Peer
    failure: Failure | None = None
    greeting: Answer | None = None
    plain: Hello | None = None  # before TLS
    tls: TLS | None = None
    behind: Hello | None = None  # behind TLS
    problem: str | None = None  # STARTTLS is offered, and fails
    times: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        if self.failure is not None:
            return Status(self.failure.exit_code)
        return Status.PROTOCOL if self.problem else Status.DONE


def examine(peer: Peer, timeout: float) -> Report:
    """Talk to one server; what goes wrong is part of the report."""
    report = Report(peer)
    try:
        distrust = _talk(report, timeout, verified=True)
        if distrust is not None:  # then a second time, to see what is behind
            _talk(report, timeout, verified=False)
            if report.tls is not None:
                report.tls.distrust = distrust
    except Failure as failure:
        report.failure = failure
    except (smtplib.SMTPServerDisconnected, OSError) as error:
        report.failure = Failure(f"{peer} broke the connection off: {error}", Status.LATER)
    except smtplib.SMTPException as error:
        report.failure = Failure(f"{peer} does not speak SMTP: {error}", Status.PROTOCOL)
    return report


def _talk(report: Report, timeout: float, *, verified: bool) -> str | None:
    """Fill the report; return why the certificate is not trusted, where that was the end."""
    with Client(report.peer, patience=(timeout, timeout)) as client:
        report.times = client.times
        try:
            report.greeting = client.open(lambda: tls_context(verified=verified))
            _expect(report.greeting)
            if client.tls:
                _look_behind(report, client, implicit=True)
            else:
                report.plain = _hello(client)
                _start_tls(report, client, verified=verified)
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


def _start_tls(report: Report, client: Client, *, verified: bool) -> None:
    if "STARTTLS" not in (report.plain.keywords if report.plain else {}):
        return
    try:
        _expect(client.upgrade(lambda: tls_context(verified=verified)))
        _look_behind(report, client, implicit=False)
    except Failure as failure:
        report.problem = failure.message


def _look_behind(report: Report, client: Client, *, implicit: bool) -> None:
    report.tls = _tls(client, implicit=implicit)
    report.behind = _hello(client)


def _expect(answer: Answer) -> None:
    if not 200 <= answer[0] < 300:
        raise Failure(f"it refuses: {told(answer)}", status_of(answer[0]))


def _hello(client: Client) -> Hello:
    answer = client.hello()
    _expect(answer)
    return Hello(answer, {name.upper(): text.strip() for name, text in client.esmtp_features.items()})


def _tls(client: Client, *, implicit: bool) -> TLS:
    connection = client.tls
    assert connection is not None  # noqa: S101 - asked for by those who know
    der = connection.getpeercert(binary_form=True)
    try:
        certificate = None if der is None else Certificate.from_der(der)
    except ValueError:  # OpenSSL reads what cryptography does not
        certificate = None
    cipher = connection.cipher() or ("unknown", "", 0)
    return TLS(implicit, connection.version() or "unknown", cipher[0], certificate, None)
