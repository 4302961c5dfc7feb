"""``pillarbox serve`` as people start it: swaks delivers, and a file is in the Maildir."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest

from interop.peers import HOST, RECIPIENT, SENDER, Background, Outcome, program, run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Background]:
    with Background(sys.executable, "-m", "pillarbox", "serve", "--listen", f"{HOST}:0", folder=tmp_path) as running:
        yield running


def swaks(port: int, *more: str) -> Outcome:
    message = ("--to", RECIPIENT, "--from", SENDER, "--ehlo", "client.example.org", "--body", "first\\n.\\nlast")
    return run([program("swaks", "swaks"), "--server", f"{HOST}:{port}", *message, *more])


def stored(folder: Path) -> bytes:
    [file] = (folder / "Maildir" / "new").iterdir()
    assert list((folder / "Maildir" / "tmp").iterdir()) == []
    return file.read_bytes()


def parsed(octets: bytes) -> EmailMessage:
    return message_from_bytes(octets, policy=policy.default)


@pytest.mark.proves("swaks", "pillarbox serve")
def test_a_message_is_a_file_in_the_maildir(served: Background, tmp_path: Path) -> None:
    swaks(served.port()).expect_success()
    octets = stored(tmp_path)
    assert octets.startswith(b"Return-Path: <sender@example.org>\nReceived: from client.example.org ")
    assert b"\r" not in octets  # a Maildir's readers expect LF
    message = parsed(octets)
    assert message["To"] == RECIPIENT
    received = re.sub(r"\s+", " ", message["Received"])
    assert re.match(r"from client\.example\.org \(([^ ]+ )?\[127\.0\.0\.1\]\) by \S+ ", received)
    assert re.search(rf" with ESMTP id \S+ for <{RECIPIENT}>; \w{{3}}, \d", received)
    assert message.get_content().startswith("first\n.\nlast\n")
    served.line(f"message from <{SENDER}> to <{RECIPIENT}>")


@pytest.mark.proves("swaks", "pillarbox serve", "STARTTLS")
def test_starttls_works_at_once_and_stands_in_the_trace(served: Background, tmp_path: Path) -> None:
    swaks(served.port(), "--tls").expect_success()
    received = re.sub(r"\s+", " ", parsed(stored(tmp_path))["Received"])
    assert " with ESMTPS id " in received
    assert "(using TLSv1.3 with cipher " in received


@pytest.mark.proves("swaks", "pillarbox serve")
def test_it_ends_when_it_is_told_to(served: Background) -> None:
    swaks(served.port()).expect_success()
    assert served.stop() == 0
