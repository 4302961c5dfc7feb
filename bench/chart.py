"""The chart: an SVG of bars for each workload and of the growth curves, drawn from the JSON file alone.

python bench/chart.py [RESULTS.json [CHART.svg]]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, MARGIN, GAP = 960, 24, 32
PANEL = (WIDTH - 2 * MARGIN - GAP) / 2
BAR, LABEL, VALUE = 18, 128, 76
CURVE_HEIGHT = 190
# Chosen so that they differ in lightness too, for those who see no colours.
COLOURS = {
    "pillarbox": "#b3261e",
    "pillarbox-asyncio": "#e08a84",
    "smtp-sink": "#39424e",
    "go-smtp": "#2f6f8f",
    "smtp-server": "#5b8c3a",
    "aiosmtpd": "#b08a2e",
    "aiosmtpd-uvloop": "#d3b467",
    "floor": "#a9b0b8",
}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d2329}.title{font-weight:600;font-size:13px}"
    ".small{font-size:11px;fill:#5a636d}.ours{font-weight:600}.axis{stroke:#c9ced4;stroke-width:1}"
)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="axis"/>'


def number(value: float) -> str:
    """Write microseconds as people read them."""
    if value >= 10_000:
        return f"{value / 1000:,.0f} ms" if value >= 100_000 else f"{value / 1000:.1f} ms"
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.1f} µs"


def short(value: int) -> str:
    for size, unit in ((1024 * 1024, " MB"), (1024, " KB")):
        if value >= size and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value:,}"


# --- Bars


def bars(x: float, y: float, title: str, measured: list[tuple[str, float]]) -> tuple[list[str], float]:
    """Draw one workload from zero on; return what was drawn and its height."""
    most = max(value for _, value in measured)
    room = PANEL - LABEL - VALUE
    drawn = [text(x, y + 12, title, "title")]
    for at, (peer, value) in enumerate(measured):
        top = y + 22 + at * BAR
        kind = "ours" if peer == "pillarbox" else ""
        length = max(1.0, value / most * room)
        drawn.append(text(x + LABEL - 8, top + 12, peer, kind, "end"))
        colour = COLOURS.get(peer, "#888888")
        size = f'width="{length:.1f}" height="{BAR - 5}" rx="2"'
        drawn.append(f'<rect x="{x + LABEL:.1f}" y="{top + 2:.1f}" {size} fill="{colour}"/>')
        drawn.append(text(x + LABEL + length + 6, top + 12, number(value), kind))
    return drawn, 22 + len(measured) * BAR + GAP


def bar_panels(results: dict[str, Any], y: float) -> tuple[list[str], float]:
    drawn, heights = [], [y, y]
    for workload in results["workloads"].values():
        measured = [(each["peer"], each["median_us"]) for each in workload["peers"] if "median_us" in each]
        if measured:
            column = heights.index(min(heights))
            more, height = bars(MARGIN + column * (PANEL + GAP), heights[column], workload["title"], measured)
            drawn += more
            heights[column] += height
    return drawn, max(heights)


# --- Curves


def curve_panel(x: float, y: float, name: str, curves: Sequence[dict[str, Any]], width: float) -> list[str]:
    """Draw the curves of one quantity, both axes logarithmic: what is linear has a slope of one, or none."""
    points = [tuple(point) for curve in curves for point in curve["points"]]
    left, right, top, bottom = x + 52, x + width - 20, y + 24, y + CURVE_HEIGHT - 24
    low_x, high_x = math.log(min(p[0] for p in points)), math.log(max(p[0] for p in points))
    low_y, high_y = math.log(min(p[1] for p in points) * 0.7), math.log(max(p[1] for p in points) * 1.4)

    def place(point: Sequence[float]) -> tuple[float, float]:
        across = (math.log(point[0]) - low_x) / (high_x - low_x)
        up = (math.log(point[1]) - low_y) / (high_y - low_y)
        return left + across * (right - left), bottom - up * (bottom - top)

    drawn = [text(x, y + 12, f"CPU per message by {name}", "title"), line(left, bottom, right, bottom)]
    for value, _ in curves[0]["points"]:
        at = place((value, points[0][1]))[0]
        drawn.append(text(at, bottom + 14, short(value), "small", "middle"))
    for curve in curves:
        colour = COLOURS.get(curve["peer"], "#888888")
        places = [place(point) for point in curve["points"]]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places]
        for end in (curve["points"][0], curve["points"][-1]):
            if curve["peer"] == "pillarbox":
                px, py = place(end)
                drawn.append(text(px, py - 8, number(end[1]), "small ours", "middle"))
    return drawn


def curve_panels(results: dict[str, Any], y: float) -> tuple[list[str], float]:
    names = list(dict.fromkeys(curve["name"] for curve in results["growth"]))
    if not names:
        return [], y
    width = (WIDTH - 2 * MARGIN) / 3
    drawn = []
    for at, name in enumerate(names):
        curves = [curve for curve in results["growth"] if curve["name"] == name]
        drawn += curve_panel(MARGIN + at * width, y, name, curves, width)
    return drawn, y + CURVE_HEIGHT + 10


# --- The whole


def legend(results: dict[str, Any], y: float) -> list[str]:
    drawn, x = [], float(MARGIN)
    for peer in dict.fromkeys(curve["peer"] for curve in results["growth"]):
        colour = COLOURS.get(peer, "#888888")
        drawn.append(f'<circle cx="{x + 5:.1f}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>')
        drawn.append(text(x + 14, y, peer, "small"))
        x += 30 + 7 * len(peer)
    return drawn


def svg(results: dict[str, Any]) -> str:
    machine = results["machine"]
    ran_on = f"{machine['processor']}, {machine['kernel']}, Python {machine['python']}; medians"
    head = [
        text(MARGIN, 32, "Server CPU time per message (user + system, one core; shorter is better)", "title"),
        text(MARGIN, 50, ran_on, "small"),
    ]
    panels, y = bar_panels(results, 72)
    curves, below = curve_panels(results, y)
    body = head + panels + curves + legend(results, below + 12)
    size = f'viewBox="0 0 {WIDTH} {below + 28:.0f}" width="{WIDTH}" height="{below + 28:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def write(results_file: Path, chart_file: Path) -> None:
    chart_file.write_text(svg(json.loads(results_file.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    write(source, Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg"))
