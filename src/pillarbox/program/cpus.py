"""How many workers ``auto`` is: the CPUs that this process may use, by its affinity and by its cgroup's quota."""

from __future__ import annotations

import os
import sys
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from pillarbox import ConfigurationError

__all__ = ["Workers", "number_of_workers"]

_CGROUPS = Path("/sys/fs/cgroup")


def _checked(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError('must be a whole number above 0, or "auto"') from None


Workers = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], WrapValidator(_checked)]
"""The key ``workers`` of ``[program]``."""


def number_of_workers(setting: int | str) -> int:
    """Return how many processes to start; raise ConfigurationError where there can be only one."""
    if setting == "auto":
        return 1 if sys.platform == "win32" else _cpus()
    if sys.platform == "win32" and setting != 1:
        raise ConfigurationError("workers: on Windows there is one process: sockets cannot be shared there as needed")
    return int(setting)


def _cpus() -> int:
    count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
    if count is not None:
        usable = count() or 1
    else:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *_quotas(_CGROUPS, _own_cgroup())]))


def _own_cgroup() -> str:
    """Return this process's group in the unified hierarchy: ``/system.slice/pillarbox.service``."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _quotas(root: Path, group: str) -> list[int]:
    """Return the quotas of a cgroup and of those it is in, in whole CPUs; what has none is left out."""
    found = []
    folder = root / group.lstrip("/")
    for each in (folder, *folder.parents):
        try:
            quota, period = (each / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota = period = "max"
        if quota != "max":
            found.append(ceil(int(quota) / int(period)))
        if each == root:
            break
    return found
