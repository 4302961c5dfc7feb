"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from program import Program, Start
from splits import Parts


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program in a folder of its own; it is ended after the test."""
    with ExitStack() as ending:

        def started(*arguments: str, **more: Any) -> Program:
            program = Program(*arguments, cwd=tmp_path, **more)
            ending.callback(program.wait)
            ending.callback(program.process.kill)
            return program

        yield started


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Give what sends octets in parts that the server reads one by one."""
    return Parts(monkeypatch)
