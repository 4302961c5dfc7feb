"""Write docs/peers.md from the report of a run of tests/interop; ``make peers`` does both.

    python docs/make_peers.py REPORT.xml            writes the page
    python docs/make_peers.py --check REPORT.xml    says which peer the report or the page does not show, and fails

REPORT.xml is what ``pytest --junitxml`` writes. What a test shows of which peer are the properties that
tests/interop/conftest.py records from the marks ``proves`` and ``lived_with``.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).with_name("peers.md")
TESTS = Path(__file__).parent.parent / "tests" / "interop"

# What names a peer in the tests by its first argument: the marks, and what makes rows with marks.
_NAMING = ("proves", "lived_with", "forms", "mechanisms", "networks")

# The page's groups, and how the names of their peers begin; the last takes the rest.
_GROUPS = {
    "Mail servers that relay to it": ("postfix", "exim", "opensmtpd", "sendmail", "nullmailer", "dma"),
    "Proxies and submission servers before it": ("haproxy", "nginx", "dovecot"),
    "Servers that the program hands on to": ("to ",),
    "Clients and libraries": ("",),
}
_FIRST = ("plaintext", "STARTTLS", "implicit TLS")  # in a cell; then what begins with AUTH, then the rest

_HEAD = """\
<!-- Made by docs/make_peers.py from a run of tests/interop: run "make peers". -->

# Peers

Real programs that talk to pillarbox in its tests, each from its package: Debian's, npm's or PyPI's. The tests
configure, start and stop them. What a peer did stands here with the number of tests that showed it; all run again with
every change of the code.

"""

_ABSENT = """\
## Who is not here

- **Angus Mail** (Java) is Jakarta Mail under its later name. Debian has the earlier one, which is what runs here.
- **MailKit**: Debian has no package of it, nor a .NET SDK to build it with.
"""


@dataclass
class Peer:
    """What a report says of one peer."""

    name: str
    versions: set[str] = field(default_factory=set)
    shown: dict[str, Counter[str]] = field(default_factory=dict)  # what → how many tests passed, failed, were skipped
    oddities: dict[str, str] = field(default_factory=dict)  # a sentence → how its tests ended, "passed" if all did

    @property
    def passed(self) -> bool:
        """Whether a test has shown anything of it."""
        return any(ends["passed"] for ends in self.shown.values()) or "passed" in self.oddities.values()


@dataclass
class Report:
    """A run of the tests."""

    day: str
    systems: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    peers: dict[str, Peer] = field(default_factory=dict)
    unshown: Counter[str] = field(default_factory=Counter)  # tests that failed or were skipped, and why

    def peer(self, name: str) -> Peer:
        return self.peers.setdefault(name, Peer(name))


# --- Reading


def read(path: Path) -> Report:
    """Read what ``pytest --junitxml`` wrote, tests without a peer left out."""
    root = ElementTree.parse(path).getroot()  # noqa: S314 - a file of our own run
    report = Report(next(suite.get("timestamp", "")[:10] for suite in root.iter("testsuite")))
    for case in root.iter("testcase"):
        said = [(each.get("name", ""), each.get("value", "")) for each in case.iter("property")]
        if any(name.startswith(("proves ", "lived_with ")) for name, _ in said):
            _take(report, case, said)
    return report


def _take(report: Report, case: ElementTree.Element, said: list[tuple[str, str]]) -> None:
    end, why = _end(case)
    report.ends[end] += 1
    if end != "passed":
        file, test = case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0]
        report.unshown[f"{file}::{test}: {end}, {why}"] += 1
    for name, value in said:
        kind, _, peer = name.partition(" ")
        if kind == "proves":
            report.peer(peer).shown.setdefault(value, Counter())[end] += 1
        elif kind == "lived_with":
            before = report.peer(peer).oddities.get(value, "passed")
            report.peer(peer).oddities[value] = end if before == "passed" else before
        elif kind == "version" and value:
            report.peer(peer).versions.add(value)
        elif name == "system":
            report.systems.add(value)


def _end(case: ElementTree.Element) -> tuple[str, str]:
    """Return how a test ended, and the first line of why."""
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            return word, (found.get("message") or "").strip().partition("\n")[0]
    return "passed", ""


# --- What the tests name


def named() -> set[str]:
    """Return every peer that a test in tests/interop names."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.glob("*.py"))]
    constants: dict[str, str] = {}
    for tree in trees:
        constants.update(_constants(tree))
    return {name for tree in trees for name in _names(tree, constants | _constants(tree))}


def _constants(tree: ast.Module) -> dict[str, str]:
    return {
        target.id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }


def _names(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        # partial(pytest.mark.proves, "curl") names it as pytest.mark.proves("curl") does.
        function, *arguments = call.args if _last(call.func) == "partial" else (call.func, *call.args)
        if _last(function) in _NAMING and arguments:
            first = arguments[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
            elif isinstance(first, ast.Name) and first.id in constants:
                yield constants[first.id]


def _last(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


# --- Writing


def page(report: Report) -> str:
    """Return the text of the page."""
    ran = ", ".join(f"{report.ends[end]} {end}" for end in ("passed", "failed", "skipped") if report.ends[end])
    lines = [f"Last run: {report.day}, {'; '.join(sorted(report.systems))}. Tests: {ran}.", ""]
    for title, peers in _grouped(report).items():
        if peers:
            lines += [f"## {title}", "", "| peer | version | what it did (tests) |", "|---|---|---|"]
            lines += [_row(peer) for peer in peers]
            lines.append("")
    return _HEAD + "\n".join([*lines, *_oddities(report), *_unshown(report), _ABSENT])


def _grouped(report: Report) -> dict[str, list[Peer]]:
    groups: dict[str, list[Peer]] = {title: [] for title in _GROUPS}
    for peer in sorted(report.peers.values(), key=lambda peer: peer.name.lower()):
        title = next(title for title, names in _GROUPS.items() if peer.name.lower().startswith(names))
        groups[title].append(peer)
    return groups


def _row(peer: Peer) -> str:
    shown = "; ".join(_count(what, peer.shown[what]) for what in sorted(peer.shown, key=_place))
    return f"| {_cell(peer.name)} | {_cell(', '.join(sorted(peer.versions)) or 'not there')} | {shown} |"


def _place(what: str) -> tuple[int, str]:
    known = _FIRST.index(what) if what in _FIRST else len(_FIRST) + (not what.startswith("AUTH "))
    return known, what.lower()


def _count(what: str, ends: Counter[str]) -> str:
    rest = [f"{ends[end]} {end}" for end in ("failed", "skipped") if ends[end]]
    return f"{_cell(what)} ({', '.join([str(ends['passed']), *rest])})"


def _oddities(report: Report) -> Iterator[str]:
    sentences = [
        f"- **{_cell(peer.name)}**: {_cell(sentence)}" + ("" if end == "passed" else f" ({end})")
        for peers in _grouped(report).values()
        for peer in peers
        for sentence, end in sorted(peer.oddities.items())
    ]
    if sentences:
        yield from ("## What peers do that the RFCs do not say", "", "Each is a test: the server bears it.", "")
        yield from (*sentences, "")


def _unshown(report: Report) -> Iterator[str]:
    if report.unshown:
        tests = [f"- {_cell(test)} ({report.unshown[test]})" for test in sorted(report.unshown)]
        yield from ("## What did not run, or failed", "", *tests, "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


# --- The command


def lacking(report: Report) -> list[str]:
    """Return what is wrong: peers that no test of the report shows, or that the page does not name."""
    written = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    names = sorted(named())
    unproven = [name for name in names if name not in report.peers or not report.peers[name].passed]
    unwritten = [name for name in names if f"| {_cell(name)} |" not in written]
    return [
        *(f"the run shows nothing of {name}" for name in unproven),
        *(f'docs/peers.md does not name {name}: run "make peers"' for name in unwritten),
    ]


def main(arguments: list[str]) -> str | None:
    """Write the page, or check a run; return what is wrong, None where nothing is."""
    report = read(Path(arguments[-1]))
    if "--check" not in arguments:
        PAGE.write_text(page(report), encoding="utf-8")
    return "\n".join(lacking(report)) or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
