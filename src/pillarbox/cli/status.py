"""What the program's exit status says: each number has its one meaning here, for all commands.

Above 63 they are those of sysexits.h, which mail programs share: 75 is the one where it is worth trying again.
"""

from __future__ import annotations

from enum import IntEnum

import click


class Status(IntEnum):
    """The exit status of a command."""

    DONE = 0
    WARNINGS = 1  # found by probe and check, with --strict; click's own for what is no mistake of the user
    USAGE = 2  # wrong arguments or configuration; click's own
    UNREACHABLE = 68  # EX_NOHOST: no such host, nothing listens, no answer
    REFUSED = 69  # EX_UNAVAILABLE: a reply of 500 or more
    LATER = 75  # EX_TEMPFAIL: a reply of 400 to 499, or the connection broke
    PROTOCOL = 76  # EX_PROTOCOL: TLS failed, or it speaks no SMTP
    LOGIN = 77  # EX_NOPERM: the login was refused, or cannot be made


class Failure(click.ClickException):
    """The end of a command: one message, and a status."""

    def __init__(self, message: str, status: Status = Status.USAGE) -> None:
        super().__init__(message)
        self.exit_code = int(status)  # type: ignore[misc]  # of the class in click's types, of each error in its code


def status_of(code: int) -> Status:
    """Return the status for a reply that refuses."""
    if 400 <= code < 500:
        return Status.LATER
    return Status.REFUSED if code >= 500 else Status.PROTOCOL
