"""Write the table of docs/metrics.md from that of the program; ``make docs`` runs this, a test keeps the page true."""

from __future__ import annotations

from pathlib import Path

from pillarbox.program.page import PROCESS, TABLE

PAGE = Path(__file__).with_name("metrics.md")

_BEGIN = '<!-- Made by docs/make_metrics.py from src/pillarbox/program/page.py: change it there, "make docs". -->'
_END = "<!-- The end of what is made. -->"


def page() -> str:
    """Return the whole page: what is written there, with the table as it is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, behind = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{_table()}\n{_END}{behind}"


def _table() -> str:
    rows = [("metric", "type", "labels", ""), ("---",) * 4]
    rows += [
        ("`pillarbox_build_info`", "gauge", "`version`, `python`", "Always 1."),
        ("`pillarbox_workers`", "gauge", "", "Processes that serve."),
    ]
    rows += [(f"`{entry.name}`", entry.kind, _labels(entry.labels), entry.help) for entry in TABLE]
    rows += [
        (f"`{name}`", "counter" if name.endswith("_total") else "gauge", "`worker`", help_)
        for name, help_ in PROCESS.items()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _labels(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
