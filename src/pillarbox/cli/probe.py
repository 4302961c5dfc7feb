"""``pillarbox probe``: asks a server what it offers, before and behind TLS, and sends no mail.

What is seen is a ``Report``; what is thought of it is ``warnings``; how it is shown is the rest.
"""

from __future__ import annotations

import json
import smtplib
import ssl
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError
from pillarbox.cli import complete
from pillarbox.cli.status import Failure, Status, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pillarbox.cli.certificates import Certificate
    from pillarbox.cli.client import Answer, Client
    from pillarbox.cli.peer import Peer

# RFC 6409 3.1: 587 is for submission; RFC 8314 3.3: 465 for submission with implicit TLS.
PORTS = (25, 465, 587)
SUBMISSION = (465, 587)
SECRET_MECHANISMS = {"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}  # send what a listener could use again

_HELP = """
\b
Tell what a server offers, before and behind TLS, and what is wrong with that.
No mail is sent. SERVER is HOST (then ports 25, 465 and 587 are tried),
HOST:PORT (465: TLS from the start), smtp://…, smtps://…, lmtp://…,
unix:PATH or lmtp:PATH. For example:
  pillarbox probe mx.example.com
  pillarbox probe --json --strict mx.example.com:587

\b
Exit status: 0 it answered; 1 with --strict: there are warnings; 68 cannot
connect; 69 or 75 it refuses (5xx, 4xx); 76 TLS failed, or it is no SMTP.
"""


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


@click.command(help=_HELP, short_help="Tell what a server offers, and what is wrong with it.")
@click.option("--lmtp", is_flag=True, help="Speak LMTP.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--strict", is_flag=True, help="Warnings make status 1.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1), default=10.0, help="For each step; else 10.")
@click.argument("server", shell_complete=complete.servers)
def probe(server: str, lmtp: bool, as_json: bool, strict: bool, timeout: float) -> None:
    """Run the command."""
    try:
        peers = _peers(server, lmtp=lmtp)
    except ConfigurationError as error:
        raise Failure(str(error)) from error
    reports = _all(peers, timeout)
    if as_json:
        click.echo(json.dumps([as_dict(each) for each in reports], indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(shown(each) for each in reports))
    sys.exit(_status(reports, strict=strict))


def _peers(server: str, *, lmtp: bool) -> list[Peer]:
    from pillarbox.cli.peer import peer_from_text

    peer = peer_from_text(server, 0)
    if peer.port or peer.path:
        return [replace(peer, lmtp=peer.lmtp or lmtp)]
    if lmtp:
        return [replace(peer_from_text(server), lmtp=True, port=24)]
    return [replace(peer, port=port, implicit_tls=port == 465) for port in PORTS]


def _all(peers: list[Peer], timeout: float) -> list[Report]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(peers)) as pool:
        return list(pool.map(lambda peer: examine(peer, timeout), peers))


def _status(reports: list[Report], *, strict: bool) -> Status:
    answered = [report for report in reports if report.failure is None]
    if not answered:
        return reports[0].status
    worst = next((report.status for report in answered if report.status is not Status.DONE), Status.DONE)
    return Status.WARNINGS if strict and any(list(warnings(report)) for report in answered) else worst


# --- Asking


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
    from pillarbox.cli.client import Client, tls_context

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
    from pillarbox.cli.client import tls_context

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
    from pillarbox.cli.client import told

    if not 200 <= answer[0] < 300:
        raise Failure(f"it refuses: {told(answer)}", status_of(answer[0]))


def _hello(client: Client) -> Hello:
    answer = client.hello()
    _expect(answer)
    return Hello(answer, {name.upper(): text.strip() for name, text in client.esmtp_features.items()})


def _tls(client: Client, *, implicit: bool) -> TLS:
    from pillarbox.cli.certificates import Certificate

    connection = client.tls
    assert connection is not None  # noqa: S101 - asked for by those who know
    der = connection.getpeercert(binary_form=True)
    try:
        certificate = None if der is None else Certificate.from_der(der)
    except ValueError:  # OpenSSL reads what cryptography does not
        certificate = None
    cipher = connection.cipher() or ("unknown", "", 0)
    return TLS(implicit, connection.version() or "unknown", cipher[0], certificate, None)


# --- What is thought of it


def warnings(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what is not as it should be: a code, and a sentence."""
    if report.failure is not None:
        return
    yield from _about_tls(report)
    yield from _about_certificate(report)
    yield from _about_login(report)
    if not (report.behind or report.plain or Hello((0, b""))).keywords:
        yield "no-esmtp", "it knows no extension: it is very old, or something in between takes EHLO away"


def _about_tls(report: Report) -> Iterator[tuple[str, str]]:
    if report.problem is not None:
        yield "starttls-fails", f"STARTTLS is offered and fails: {report.problem}"
    elif report.tls is None and not report.peer.path:
        yield "no-starttls", "no STARTTLS: whoever sits in between reads and changes the mail"
    if report.tls is not None and report.tls.version in ("TLSv1", "TLSv1.1"):
        yield "old-tls", f"{report.tls.version} is out of date (RFC 8996)"
    if report.behind is not None and "STARTTLS" in report.behind.keywords:
        yield "starttls-behind-tls", "STARTTLS is offered behind TLS too (RFC 3207 4.2 forbids it)"


def _about_certificate(report: Report) -> Iterator[tuple[str, str]]:
    if report.tls is None:
        return
    found = dict(report.tls.certificate.flaws(report.peer.host or None)) if report.tls.certificate else {}
    yield from found.items()
    explained = {"certificate-expired", "certificate-not-yet-valid", "certificate-wrong-name"} & set(found)
    self_signed = report.tls.certificate is not None and report.tls.certificate.self_signed
    if report.tls.distrust is not None and (self_signed or not explained):
        yield "certificate-not-trusted", f"the certificate is not trusted: {report.tls.distrust}"


def _about_login(report: Report) -> Iterator[tuple[str, str]]:
    exposed = [name for name in report.plain.mechanisms if name in SECRET_MECHANISMS] if report.plain else []
    if exposed and not report.peer.path:
        yield "plaintext-auth", f"AUTH {' '.join(exposed)} is offered before TLS: passwords can be read on the way"
    last = report.behind or report.plain
    if report.peer.port in SUBMISSION and last is not None and not last.mechanisms:
        yield "no-auth", f"no AUTH, though port {report.peer.port} is for mail programs that log in"


# --- How it is shown


def shown(report: Report) -> str:
    """Return the report as a person reads it."""
    from pillarbox.cli.transcript import plain

    protocol = "LMTP" if report.peer.lmtp else "SMTP"
    rows = [(label, plain(text)) for label, text in _rows(report)]
    rows += [("warning", plain(text)) for _, text in warnings(report)]
    lines = [click.style(f"{report.peer} ({protocol})", bold=True)]
    for label, text in rows:
        lines.append(f"  {click.style(f'{label:<12}', fg=_COLOURS.get(label))}{text}")
    return "\n".join(lines)


_COLOURS = {"failed": "red", "warning": "yellow"}


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    from pillarbox.cli.client import told

    if report.greeting is not None:
        yield "greeting", told(report.greeting)
    if report.plain is not None:
        yield "before TLS" if report.tls else "offers", _keywords(report.plain)
    if report.tls is not None:
        yield "TLS", f"{report.tls.version}, {report.tls.cipher}, {'at once' if report.tls.implicit else 'by STARTTLS'}"
        yield from _certificate_rows(report.tls)
    if report.behind is not None:
        yield "behind TLS", _keywords(report.behind)
    if report.times:
        yield "times", ", ".join(f"{step} {seconds * 1000:.0f} ms" for step, seconds in report.times.items())
    if report.failure is not None:
        yield "failed", report.failure.message


def _certificate_rows(tls: TLS) -> Iterator[tuple[str, str]]:
    if tls.certificate is not None:
        names = ", ".join(tls.certificate.names) or "no name"
        yield "certificate", f"for {names}, until {tls.certificate.not_after:%Y-%m-%d}"
        yield "issued by", tls.certificate.issuer
    yield "trusted", "yes" if tls.distrust is None else f"no: {tls.distrust}"


def _keywords(hello: Hello) -> str:
    return ", ".join(f"{name} {text}".strip() for name, text in hello.keywords.items()) or "nothing"


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON has it."""
    from pillarbox.cli.client import told

    return {
        "server": str(report.peer),
        "protocol": "lmtp" if report.peer.lmtp else "smtp",
        "status": int(report.status),
        "failure": None if report.failure is None else report.failure.message,
        "greeting": None if report.greeting is None else told(report.greeting),
        "keywords": None if report.plain is None else report.plain.keywords,
        "tls": None if report.tls is None else _tls_dict(report.tls),
        "keywords_behind_tls": None if report.behind is None else report.behind.keywords,
        "seconds": {step: round(seconds, 6) for step, seconds in report.times.items()},
        "warnings": [{"code": code, "text": text} for code, text in warnings(report)],
    }


def _tls_dict(tls: TLS) -> dict[str, Any]:
    return {
        "implicit": tls.implicit,
        "version": tls.version,
        "cipher": tls.cipher,
        "trusted": tls.distrust is None,
        "distrust": tls.distrust,
        "certificate": None if tls.certificate is None else tls.certificate.as_json(),
    }
