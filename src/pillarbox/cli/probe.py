"""``pillarbox probe``: the command's arguments, which servers they mean, and how it ends."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from pillarbox import ConfigurationError
from pillarbox.cli import complete
from pillarbox.cli.status import Failure, Status

if TYPE_CHECKING:
    from pillarbox.cli.examine import Report
    from pillarbox.cli.peer import Peer

PORTS = (25, 465, 587)

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


@click.command(help=_HELP, short_help="Tell what a server offers, and what is wrong with it.")
@click.option("--lmtp", is_flag=True, help="Speak LMTP.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--strict", is_flag=True, help="Warnings make status 1.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86_400), default=10.0, help="For each step; else 10."
)
@click.argument("server", shell_complete=complete.servers)
def probe(server: str, lmtp: bool, as_json: bool, strict: bool, timeout: float) -> None:
    """Run the command."""
    from pillarbox.cli.report import as_dict, shown

    try:
        peers = _peers(server, lmtp=lmtp)
    except ConfigurationError as error:
        raise Failure(str(error)) from error
    reports = _all(peers, timeout)
    if as_json:
        click.echo(json.dumps([as_dict(each) for each in reports], indent=2))  # ASCII: nothing steers a terminal
    else:
        click.echo("\n\n".join(shown(each) for each in reports))
    sys.exit(_status(reports, strict=strict))


def _peers(server: str, *, lmtp: bool) -> list[Peer]:
    from pillarbox.cli.peer import peer_from_text

    peer = peer_from_text(server, 0)
    if peer.port or peer.path:
        return [replace(peer, lmtp=peer.lmtp or lmtp)]
    if "://" in server:
        peer = peer_from_text(server)
        return [replace(peer, lmtp=peer.lmtp or lmtp, port=24 if lmtp and not peer.implicit_tls else peer.port)]
    if lmtp:
        return [replace(peer_from_text(server), lmtp=True, port=24)]
    return [replace(peer, port=port, implicit_tls=port == 465) for port in PORTS]


def _all(peers: list[Peer], timeout: float) -> list[Report]:
    from concurrent.futures import ThreadPoolExecutor

    from pillarbox.cli.examine import examine

    with ThreadPoolExecutor(len(peers)) as pool:
        return list(pool.map(lambda peer: examine(peer, timeout), peers))


def _status(reports: list[Report], *, strict: bool) -> Status:
    from pillarbox.cli.report import warnings

    answered = [report for report in reports if report.failure is None]
    if not answered:
        return reports[0].status
    worst = next((report.status for report in answered if report.status is not Status.DONE), Status.DONE)
    return Status.WARNINGS if strict and any(list(warnings(report)) for report in answered) else worst
