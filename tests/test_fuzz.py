"""What fuzzing begins with and what it has found: each input keeps the invariants of its target (``make fuzz``)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
TARGETS = sorted(path.stem for path in (FUZZ / "invariants").glob("[a-z]*.py"))
INPUTS = sorted(path for kind in ("corpus", "findings") for path in (FUZZ / kind).glob("*/*"))


@pytest.fixture(autouse=True)
def the_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FUZZ))
    yield
    peer = sys.modules.pop("peer", None)
    if peer is not None:
        peer.close()
        for name in [name for name in sys.modules if name.split(".")[0] == "invariants"]:
            del sys.modules[name]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_keeps_the_invariants(path: Path) -> None:
    importlib.import_module(f"invariants.{path.parent.name}").one(path.read_bytes())


def test_each_target_has_seeds() -> None:
    assert {path.parent.name for path in INPUTS if path.parent.parent.name == "corpus"} == set(TARGETS)
