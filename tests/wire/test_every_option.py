"""No option without a test that sets it and sees its effect through a socket."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pillarbox.options import declarations

HERE = Path(__file__)
NAMED = set(
    re.findall(
        r"[a-z][a-z0-9_]*",
        "\n".join(path.read_text("utf-8") for path in HERE.parent.glob("test_*.py") if path.name != HERE.name),
    )
)


@pytest.mark.parametrize("option", declarations())
def test_is_named_in_a_wire_test(option: str) -> None:
    assert option in NAMED, f"no test in {HERE.parent.name} sets {option}"
