"""The house's own rules: imports run one way, and importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pillarbox

SOURCE = Path(pillarbox.__file__).parent
# A folder or module may import what stands before it, and itself.
ORDER = [
    "errors",
    "networks",
    "counts",
    "extension",
    "optioncheck",
    "camelcase",
    "options",
    "session",
    "smtp",
    "keywords",
    "logs",
    "trace",
    "handlers",
    "net",
    "server",
]
PROGRAMS = {"deliver", "users", "program", "cli", "web", "testing", "__main__"}
NO_IO = {"asyncio", "socket", "ssl", "selectors", "threading", "uvloop", "aiodns"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Return what a module imports when it is imported or used, without what is for types only."""
    found: list[str] = []

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.extend(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            found.extend(f"{node.module}.{alias.name}" for alias in node.names if node.module == "pillarbox")

    Visitor().visit(ast.parse(path.read_text()))
    return found


def room(dotted: str) -> str:
    return dotted.split(".")[1] if dotted.count(".") else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    own = room("pillarbox." + ".".join(path.relative_to(SOURCE).with_suffix("").parts))
    if own == "__init__":
        return
    for name in imports(path):
        if own == "smtp":
            assert name.split(".")[0] not in NO_IO, f"{name} in the protocol"
        if name.split(".")[0] != "pillarbox":
            continue
        if own in PROGRAMS:  # programs use only what pillarbox exports, and their own rooms
            public = name == "pillarbox" or name.removeprefix("pillarbox.") in {*pillarbox.__all__, "__version__"}
            assert public or room(name) in PROGRAMS, f"{name} is not public"
        elif name != "pillarbox":
            # options and those that check it are parts of one table: they import it where they use it
            both = own in {"optioncheck", "camelcase"} and room(name) == "options"
            assert both or ORDER.index(room(name)) <= ORDER.index(own), f"{own} imports {name}"


def test_every_public_name_has_a_docstring() -> None:
    for name in pillarbox.__all__:
        assert (getattr(pillarbox, name).__doc__ or "").strip(), name


def test_importing_loads_nothing_that_is_only_needed_later() -> None:
    late = {"pydantic", "cryptography", "idna", "aiodns", "click", "uvloop", "email.parser", "throttled"}
    code = "import sys, pillarbox; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not late & set(loaded)
