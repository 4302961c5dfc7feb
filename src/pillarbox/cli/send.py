"""``pillarbox send``: the command's arguments, and what they come to."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pillarbox import ConfigurationError
from pillarbox.cli import complete
from pillarbox.cli.status import Failure, Status, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pillarbox.cli.handover import Order
    from pillarbox.cli.message import Wanted
    from pillarbox.cli.peer import Peer
    from pillarbox.cli.transaction import Envelope, Outcome

DEFAULT_SERVER = "smtp://127.0.0.1:2525"
PASSWORD_VARIABLE = "PILLARBOX_PASSWORD"  # noqa: S105 - where it stands, not what it is
TLS_MODES = ("auto", "never", "always")

_HELP = """
\b
Deliver FILE (- is standard input) or a made-up message, and show how it went.
For example:
  pillarbox send --to you@example.com --attach photo.jpg
  pillarbox send --to you@example.com --server smtp://joe@localhost:587 a.eml
"""


@dataclass(frozen=True)
class Arguments:
    """The command's arguments as they are given."""

    recipients: tuple[str, ...]
    sender: str | None
    server: str
    tls: str
    insecure: bool
    password_file: str | None
    subject: str | None
    body: str | None
    headers: tuple[str, ...]
    attachments: tuple[str, ...]
    size: str | None
    mail: tuple[str, ...]
    rcpt: tuple[str, ...]
    count: int
    quiet: bool
    file: str | None


@click.command(help=_HELP, short_help="Deliver a message to any server, and show how it went.")
@click.option("--to", "recipients", metavar="ADDRESS", multiple=True, required=True, help="Repeat it for several.")
@click.option("--from", "sender", metavar="ADDRESS", help="Else you at this host; '' is an empty one.")
@click.option(
    "--server",
    metavar="URL",
    default=DEFAULT_SERVER,
    shell_complete=complete.servers,
    help="smtp://, smtps://, lmtp://, unix: or lmtp:PATH.",
)
@click.option("--tls", metavar="WHEN", type=click.Choice(TLS_MODES), default="auto", help="auto, never or always.")
@click.option("--insecure", is_flag=True, help="Trust any certificate, log in without TLS.")
@click.option(
    "--password-file", metavar="PATH", type=click.Path(), help=f"Else ${PASSWORD_VARIABLE}, else it is asked for."
)
@click.option("--subject", metavar="TEXT", help="This and the next four: of a message made up.")
@click.option("--body", metavar="TEXT", help="Its text.")
@click.option("--header", "headers", metavar="'NAME: TEXT'", multiple=True, help="A further field; repeat it.")
@click.option(
    "--attach", "attachments", metavar="PATH", type=click.Path(), multiple=True, help="A file to go with it; repeat it."
)
@click.option("--size", metavar="BYTES", help="Fill it up to so much, for example 10M.")
@click.option("--mail-parameter", "mail", metavar="TEXT", multiple=True, help="Behind MAIL, for example RET=HDRS.")
@click.option("--rcpt-parameter", "rcpt", metavar="TEXT", multiple=True, help="Behind RCPT: NOTIFY=FAILURE.")
@click.option("--count", metavar="N", type=click.IntRange(1), default=1, help="Send it N times, in one connection.")
@click.option("--quiet", "-q", is_flag=True, help="Show the outcome alone.")
@click.argument("file", metavar="[FILE]", type=click.Path(allow_dash=True), required=False)
def send(**given: Any) -> None:
    """Run the command."""
    from pillarbox.cli.handover import handed_over
    from pillarbox.cli.transcript import Transcript

    arguments = Arguments(**given)
    try:
        order = _order(arguments)
        status = _report(handed_over(order, Transcript(shown=not arguments.quiet)))
    except ConfigurationError as error:
        raise Failure(str(error)) from error
    sys.exit(status)


# --- What the arguments come to


def _order(given: Arguments) -> Order:
    from pillarbox.cli.handover import Order
    from pillarbox.cli.peer import peer_from_text
    from pillarbox.cli.transaction import Envelope

    if given.file is not None and any((given.subject, given.body, given.headers, given.attachments, given.size)):
        raise ConfigurationError("--subject, --body, --header, --attach and --size make a message up: leave FILE out")
    peer = peer_from_text(given.server)
    envelope = Envelope(_sender(given.sender, peer), given.recipients, given.mail, given.rcpt)
    _check(envelope)
    return Order(
        peer=peer,
        envelope=envelope,
        wanted=_wanted(given, envelope),
        data=None if given.file is None else _content(given.file),
        count=given.count,
        tls=given.tls,
        insecure=given.insecure,
        password=None if peer.user is None else _password(peer.user, given.password_file),
    )


def _wanted(given: Arguments, envelope: Envelope) -> Wanted:
    from pillarbox.cli.message import Wanted, attachment, header_field, size_of

    texts = {"subject": given.subject, "body": given.body}
    return Wanted(
        envelope.sender,
        envelope.recipients,
        headers=tuple(map(header_field, given.headers)),
        attachments=tuple(map(attachment, given.attachments)),
        size=None if given.size is None else size_of(given.size),
        **{name: text for name, text in texts.items() if text is not None},
    )


def _sender(sender: str | None, peer: Peer) -> str:
    if sender is not None:
        return "" if sender == "<>" else sender
    if peer.user and "@" in peer.user:
        return peer.user
    import getpass

    from pillarbox.cli.client import own_name

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "nobody"
    return f"{user}@{own_name()}"


def _check(envelope: Envelope) -> None:
    for address in (envelope.sender, *envelope.recipients):
        if any(c in "<>\r\n\0" or "\ud800" <= c <= "\udfff" for c in address):  # the last: no UTF-8
            raise ConfigurationError(f"{address!r} is no address: write joe@example.com")
    for parameter in (*envelope.mail_parameters, *envelope.rcpt_parameters):
        if not parameter or not parameter.isprintable():
            raise ConfigurationError(f"{parameter!r} is no parameter: write NAME or NAME=VALUE")


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        if "://" in file:
            raise ConfigurationError(f"{file} is no FILE: a server is given as --server {file}") from error
        raise ConfigurationError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _password(user: str, file: str | None) -> str:
    if file is not None:
        return _content(file).decode("utf-8", "surrogateescape").rstrip("\r\n")
    if (given := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return given
    if not (sys.stdin.isatty() or sys.stderr.isatty()):
        raise ConfigurationError(f"no password for {user}: use --password-file PATH, or set {PASSWORD_VARIABLE}")
    password: str = click.prompt(f"Password of {user}", hide_input=True, err=True)
    return password


# --- The outcome


def _report(outcomes: Iterable[Outcome]) -> Status:
    """Write a line for each recipient, and return the worst of them."""
    from pillarbox.cli.client import told

    status = Status.DONE
    for outcome in outcomes:
        click.echo(f"{'accepted' if outcome.accepted else 'refused'}: {outcome.recipient}: {told(outcome.answer)}")
        if not outcome.accepted and status is not Status.REFUSED:
            status = status_of(outcome.answer[0])
    return status
