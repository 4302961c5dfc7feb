"""How many workers there are to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pillarbox import ConfigurationError
from pillarbox.program import cpus


def quota(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text)


def test_auto_is_the_smallest_quota_of_the_cgroups_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_own_cgroup", lambda: "/system.slice/pillarbox.service")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    if sys.platform == "win32":
        pytest.skip("there is one process")
    assert cpus.number_of_workers("auto") == 64
    quota(tmp_path / "system.slice/pillarbox.service", "max 100000\n")
    assert cpus.number_of_workers("auto") == 64
    quota(tmp_path / "system.slice", "350000 100000\n")
    assert cpus.number_of_workers("auto") == 4
    quota(tmp_path / "system.slice/pillarbox.service", "50000 100000\n")
    assert cpus.number_of_workers("auto") == 1
    assert cpus.number_of_workers(7) == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
def test_auto_is_what_the_affinity_allows() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from pillarbox.program.cpus import number_of_workers; print(number_of_workers('auto'))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"1"]


def test_on_windows_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert cpus.number_of_workers("auto") == cpus.number_of_workers(1) == 1
    with pytest.raises(ConfigurationError, match="workers: on Windows there is one process"):
        cpus.number_of_workers(2)
