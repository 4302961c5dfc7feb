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
# To cut a long one at every place takes seconds: those say nothing that a short one does not.
CUT = [path for path in INPUTS if path.parent.name in ("content", "dialogue", "wire") and path.stat().st_size < 600]


@pytest.fixture(autouse=True)
def the_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FUZZ))
    yield
    if "peer" in sys.modules:
        sys.modules["peer"].close()
    here = {path.stem for path in FUZZ.glob("*.py")} | {"invariants"}
    for name in [name for name in sys.modules if name.split(".")[0] in here]:
        del sys.modules[name]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_keeps_the_invariants(path: Path) -> None:
    importlib.import_module(f"invariants.{path.parent.name}").one(path.read_bytes())


@pytest.mark.parametrize("path", CUT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_keeps_the_invariants_cut_at_every_place(path: Path) -> None:
    importlib.import_module(f"invariants.{path.parent.name}").every_cut(path.read_bytes())


def test_each_target_has_seeds() -> None:
    assert {path.parent.name for path in INPUTS if path.parent.parent.name == "corpus"} == set(TARGETS)
