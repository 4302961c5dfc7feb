"""``pillarbox user``: the commands that make and change the file of ``htpasswd:FILE``; a password is no argument."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pillarbox import ConfigurationError
from pillarbox.cli.status import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pillarbox.users.accounts import Accounts

__all__ = ["user"]

_KINDS = ("argon2", "bcrypt")
_LONGEST_LINE = 4096  # octets of a password on standard input
_HELP = """Say who may log in, in a file for --users htpasswd:FILE.

The password is asked for on the terminal, or read from standard input with --stdin. A running server
reads the file again by itself.

\b
Examples:
  pillarbox user add users alice
  pillarbox user add --scram --stdin users bob < password
  pillarbox user verify users alice
"""


@click.group(help=_HELP)
def user() -> None:
    """Hold the commands together."""


_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
_NAME = click.argument("name")
_STDIN = click.option("--stdin", is_flag=True, help="Read the password from standard input: its first line.")


@user.command()
@_FILE
@_NAME
@click.option("--hash", "kind", type=click.Choice(_KINDS), help="How the password is kept.  [default: argon2]")
@click.option("--scram/--no-scram", help="Keep keys for SCRAM instead; with --hash both.  [default: no-scram]")
@_STDIN
def add(file: Path, name: str, *, kind: str | None, scram: bool, stdin: bool) -> None:
    """Add a user, or give one another password. FILE is made where there is none."""
    from pillarbox.users.accounts import with_secrets

    name = _checked(name)
    secrets = _secrets(_password(stdin=stdin, twice=True), kind, scram=scram)
    known = False

    def edit(lines: list[str]) -> Sequence[str]:
        nonlocal known
        known = name in _names(lines)
        return with_secrets(lines, name, secrets)

    _change(file, edit, make=True)
    click.echo(f"{file}: {name} has {'another password' if known else 'been added'}")
    _tell_of_scram(file, name)


@user.command()
@_FILE
@_NAME
def remove(file: Path, name: str) -> None:
    """Remove a user. Status 1: there is none of that name."""
    from pillarbox.users.accounts import without

    name = _checked(name)
    known = False

    def edit(lines: list[str]) -> Sequence[str]:
        nonlocal known
        known = name in _names(lines)
        return without(lines, name)

    _change(file, edit)
    if not known:
        click.echo(f"{file}: there is no user {name}", err=True)
        sys.exit(1)
    click.echo(f"{file}: {name} has been removed")


@user.command()
@_FILE
@_NAME
@_STDIN
def verify(file: Path, name: str, *, stdin: bool) -> None:
    """Try a password. Status 0: it is the user's; 1: it is not."""
    accounts = _accounts(file)
    account = accounts.get(_checked(name))
    if account is None:
        click.echo(f"{file}: there is no user {name}", err=True)
        sys.exit(1)
    password = _password(stdin=stdin, twice=False)
    # Each of them: a login may use any, and they may be of different passwords.
    wrong = [secret.kind for secret in account.secrets() if not secret.fits(password)]
    if wrong:
        click.echo(f"{file}: that is not the password of {account.name} ({', '.join(wrong)})", err=True)
        sys.exit(1)
    click.echo(f"{file}: that is the password of {account.name}")


@user.command("list")
@_FILE
def list_users(file: Path) -> None:
    """List the users, and how their passwords are kept. Status 1: a line is wrong."""
    accounts = _accounts(file)
    width = max((len(name) for name in accounts), default=0)
    for account in accounts.values():
        click.echo(f"{account.name:{width}}  {' '.join(secret.kind for secret in account.secrets())}")
    for problem in accounts.problems:
        click.echo(f"{file}, {problem}", err=True)
    sys.exit(1 if accounts.problems else 0)


# --- The password, and what is kept of it


def _password(*, stdin: bool, twice: bool) -> str:
    if stdin:
        return _line_of_stdin()
    if not sys.stdin.isatty():
        raise Failure("there is no terminal to ask for the password on: give it on standard input, with --stdin")
    try:
        asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=twice)
    except click.Abort:  # its status, 1, would say of `verify` that the password is not the user's
        raise Failure("no password was given") from None
    return asked


def _line_of_stdin() -> str:
    line = sys.stdin.buffer.readline(_LONGEST_LINE + 1)
    if len(line) > _LONGEST_LINE:
        raise Failure(f"the password has more than {_LONGEST_LINE} octets")
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise Failure("the password on standard input is not UTF-8") from None


def _secrets(password: str, kind: str | None, *, scram: bool) -> list[str]:
    """Return what is kept of a password, each for a line of its own."""
    from pillarbox import ScramKeys
    from pillarbox.users.passwords import KINDS, make_hash, need_libraries

    secrets = []
    try:
        for each in KINDS:
            if each == kind or (each == "argon2" and kind is None and not scram):
                need_libraries({each})
                secrets.append(make_hash(password, each))
        if scram:
            secrets.append(str(ScramKeys.from_password(password)))
    except ConfigurationError as error:
        raise Failure(str(error)) from error
    except ValueError as error:
        raise Failure(f"this password cannot be kept: {error}") from None
    return secrets


# --- The file


def _checked(name: str) -> str:
    from pillarbox.users.accounts import stored_name

    try:
        return stored_name(name)
    except ValueError as error:
        raise Failure(str(error)) from None


def _names(lines: Sequence[str]) -> set[str]:
    from pillarbox.users.accounts import names_in

    return set(names_in(lines))


def _change(file: Path, edit: Callable[[list[str]], Sequence[str]], *, make: bool = False) -> None:
    try:
        from pillarbox.users.editing import change
    except ImportError as error:  # fcntl
        raise Failure("users can be changed only on a system that has locks of files, as Unix has") from error
    try:
        change(file, edit, make=make)
    except OSError as error:
        raise Failure(f"{file}: {_reason(error, file)}") from error


def _accounts(file: Path) -> Accounts:
    from pillarbox.users.accounts import parse_accounts

    try:
        return parse_accounts(file.read_bytes())
    except OSError as error:
        raise Failure(f"{file}: {_reason(error, file)}") from error


def _tell_of_scram(file: Path, name: str) -> None:
    """Say where one user's secret keeps SCRAM from being offered to the others."""
    accounts = _accounts(file)
    with_keys = [account.name for account in accounts.values() if account.keys]
    if with_keys and len(with_keys) < len(accounts):
        others = "have" if name not in with_keys else "lack"
        click.echo(f"{file}: other users {others} keys for SCRAM: it is offered only where all have them", err=True)


def _reason(error: OSError, file: Path) -> str:
    missing = "make it with 'pillarbox user add'" if file.parent.is_dir() else "make its folder first"
    advice = {
        PermissionError: " (run it as the owner of the file and of its folder, or as root)",
        FileNotFoundError: f" ({missing})",
    }
    return (error.strerror or str(error)).lower() + advice.get(type(error), "")
