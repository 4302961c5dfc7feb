"""The Grafana dashboard and the alert rules ask for nothing that is not on the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.program.metrics import Snapshots
from pillarbox.program.page import TABLE, page

CONTRIB = Path(__file__).parent.parent.parent / "contrib"
DASHBOARD = CONTRIB / "grafana" / "pillarbox.json"
RULES = CONTRIB / "prometheus" / "pillarbox.rules.yml"

# Of a time series: those that Prometheus adds, and those of a histogram.
ADDED = {"job", "instance", "le"}
_NAME = re.compile(r"\b((?:pillarbox|process)_[a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")


def on_the_page() -> set[str]:
    """Return the names of all series of a page, also of those that have nothing to tell yet."""
    text = page(Snapshots({}), "")[0].decode()
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    endings = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + ending for name, kind in kinds for ending in endings.get(kind, ("",))}


def labels() -> set[str]:
    return {label for entry in TABLE for label in entry.labels} | {"worker"} | ADDED


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def asked_by_dashboard() -> Iterator[str]:
    found = dashboard()
    for panel in found["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (annotation["expr"] for annotation in found["annotations"]["list"])
    for variable in found["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def asked_by_rules() -> list[str]:
    return re.findall(r"^ +expr: (.+)$", RULES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("expression", [*asked_by_dashboard(), *asked_by_rules()])
def test_what_is_asked_for_is_there(expression: str) -> None:
    there = on_the_page()
    names = _NAME.findall(expression)
    assert names or expression.startswith("up{")
    for name, selectors in names:
        assert name in there
        assert set(re.findall(r"(\w+)(?:=|!)", selectors)) <= labels()
    for grouped in _BY.findall(expression):
        assert set(grouped.split(", ")) <= labels()
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for expression in asked_by_dashboard() for name, _ in _NAME.findall(expression)}
    missing = {name for name in on_the_page() if not name.endswith(("_sum", "_count"))} - shown
    assert missing <= {"process_virtual_memory_bytes"}


def test_the_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_rule_says_what_is_wrong() -> None:
    text = RULES.read_text(encoding="utf-8")
    assert text.count("- alert: ") == text.count("summary: ") == len(asked_by_rules()) > 0
