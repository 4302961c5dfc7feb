"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from program import Program, Start
from splits import Parts

HERE = Path(__file__).parent
# What tries every combination, some thousand cases: with SHARE_OF_TESTS=1/3 the first third of them, always the same.
EXHAUSTIVE = (
    "differential",
    "faults",
    "smtp/test_chunks.py",
    "smtp/test_parameters.py",
    "test_fuzz.py",
    "wire/test_bdat.py",
    "wire/test_end_of_data.py",
    "wire/test_lengths.py",
    "wire/test_splits.py",
    "wire/test_threats.py",
)
# What starts programs and real peers, or waits for limits of time: all of it in the first share, and in each of the
# others a share.
PROGRAMS = (
    "cli",
    "deliver",
    "interop",
    "program",
    "test_docs_examples.py",
    "test_examples.py",
    "users",
    "wire/test_option_limits.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not of this share."""
    share, shares = map(int, os.environ.get("SHARE_OF_TESTS", "1/1").split("/"))

    def kept(item: pytest.Item) -> bool:
        mine = crc32(item.nodeid.encode()) % shares == share - 1
        if any(item.path.is_relative_to(HERE / name) for name in EXHAUSTIVE):
            return mine
        return mine or share == 1 or not any(item.path.is_relative_to(HERE / name) for name in PROGRAMS)

    left_out = [item for item in items if not kept(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if kept(item)]


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
