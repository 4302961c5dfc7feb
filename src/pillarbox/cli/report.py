"""What is thought of a server that was examined, and how a person and a machine read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pillarbox.cli.client import told
from pillarbox.cli.examine import TLS, Hello, Report
from pillarbox.cli.transcript import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

# RFC 6409 3.1: 587 is for submission; RFC 8314 3.3: 465 for submission with implicit TLS.
SUBMISSION = (465, 587)
SECRET_MECHANISMS = {"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}  # send what a listener could use again


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
    protocol = "LMTP" if report.peer.lmtp else "SMTP"
    rows = [(label, plain(text)) for label, text in _rows(report)]
    rows += [("warning", plain(text)) for _, text in warnings(report)]
    lines = [click.style(f"{report.peer} ({protocol})", bold=True)]
    for label, text in rows:
        lines.append(f"  {click.style(f'{label:<12}', fg=_COLOURS.get(label))}{text}")
    return "\n".join(lines)


_COLOURS = {"failed": "red", "warning": "yellow"}


def _rows(report: Report) -> Iterator[tuple[str, str]]:
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
