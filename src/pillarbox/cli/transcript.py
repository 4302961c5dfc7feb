"""The conversation as a person reads it: C: what the client says, S: what the server says, and * what happens.

Nothing that the server says reaches a terminal as anything but text, and credentials never appear.
"""

from __future__ import annotations

import os
import re

import click

SHOWN_LINES = 8  # of a message
_MASK = "********"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def plain(text: str | bytes) -> str:
    """Return text without what could steer a terminal."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return _CONTROL.sub("?", text)


class Transcript:
    """Write the conversation to standard error, or nowhere."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._secret = False  # what the client says next answers a challenge of AUTH

    def command(self, verb: str, arguments: str) -> None:
        """Show a command; of AUTH its mechanism alone."""
        if self._secret:
            self._write("C:", _MASK, "cyan")
        elif verb.upper() == "AUTH":
            mechanism, secret, _ = arguments.partition(" ")
            self._write("C:", f"{verb} {mechanism}{' ' + _MASK if secret else ''}", "cyan")
            self._secret = True
        else:
            self._write("C:", f"{verb} {arguments}".rstrip(), "cyan")

    def reply(self, code: int, text: bytes) -> None:
        """Show a reply, all its lines."""
        self._secret = self._secret and code == 334
        lines = text.split(b"\n")
        for number, line in enumerate(lines, 1):
            hyphen = " " if number == len(lines) else "-"
            self._write("S:", f"{code if code >= 0 else '???'}{hyphen}{plain(line)}", "red" if code >= 400 else "green")

    def message(self, content: bytes) -> None:
        """Show the first lines of a message."""
        lines = content.split(b"\r\n", SHOWN_LINES)
        for line in lines[:SHOWN_LINES]:
            self._write("C:", plain(line[:200]), "blue")
        if len(lines) > SHOWN_LINES and lines[SHOWN_LINES]:
            self._write("C:", f"… and {len(lines[SHOWN_LINES]):,} bytes more", "blue")

    def note(self, text: str) -> None:
        """Show what happens beside the conversation."""
        self._write("*", plain(text), "yellow")

    def _write(self, mark: str, text: str, colour: str) -> None:
        if self._shown:
            click.secho(f"{mark:<2} {text}", fg=colour, err=True, color=colours())


def colours() -> bool | None:
    """Return False where the user wants none (no-color.org); None lets the terminal decide."""
    return False if os.environ.get("NO_COLOR") else None
