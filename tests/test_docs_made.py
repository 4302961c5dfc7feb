"""The pages that are made from something say what that says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from pillarbox.options import declarations

DOCS = Path(__file__).parent.parent / "docs"


def maker(name: str = "make_options") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    assert page == maker().page(), 'docs/options.md is not what the declarations say: run "make docs"'


def test_every_option_has_its_row_with_every_cell() -> None:
    rows = [line.replace("\\|", "") for line in maker().page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(declarations())
    assert {row.count("|") for row in rows} == {7}


def test_units_and_defaults_are_shown() -> None:
    page = maker().page()
    assert "| `socket_timeout` | float | `60.0` | s | `socketTimeout` |" in page
    assert "| `size` | int | none | bytes | `size` |" in page
    assert '| `auth_methods` | list of str | `["LOGIN", "PLAIN"]` |' in page
    assert "| `name` | str | the host's name |" in page


def test_the_page_of_replies_is_that_of_the_table() -> None:
    page = (DOCS / "replies.md").read_text(encoding="utf-8")
    assert page == maker("make_replies").page(), 'docs/replies.md is not what smtp/reply.py says: run "make docs"'


def test_the_page_of_speed_is_that_of_the_last_run() -> None:
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert page == maker("make_speed").page(), 'docs/speed.md is not what was measured: run "make docs"'
