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
        self._secrets: set[str] = set()  # what it said so, in case the server repeats it

    def command(self, verb: str, arguments: str) -> None:
        """Show a command; of AUTH its mechanism alone."""
        shown = verb.upper() if verb.isalpha() and len(verb) < 9 else verb
        if self._secret:
            self._secrets.add(f"{verb} {arguments}".strip())
            self._write("C:", _MASK, "cyan")
        elif verb.upper() == "AUTH":
            mechanism, _, secret = arguments.partition(" ")
            self._write("C:", f"{shown} {mechanism}{' ' + _MASK if secret else ''}", "cyan")
            self._secret = True
            self._secrets.add(secret)
        else:
            self._write("C:", f"{shown} {arguments}".rstrip(), "cyan")

    def reply(self, code: int, text: bytes) -> None:
        """Show a reply, all its lines."""
        self._secret = self._secret and code == 334
        lines = self.masked(text).split(b"\n")
        for number, line in enumerate(lines, 1):
            hyphen = " " if number == len(lines) else "-"
            self._write("S:", f"{code if code >= 0 else '???'}{hyphen}{plain(line)}", "red" if code >= 400 else "green")

    def masked(self, text: bytes) -> bytes:
        """Return a reply without credentials: a server that does not know a command may repeat it."""
        for secret in self._secrets - {""}:
            text = text.replace(secret.encode(), _MASK.encode())
        return text

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
