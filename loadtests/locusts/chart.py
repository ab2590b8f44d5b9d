"""python -m loadtests.locusts.chart OUT.png STATS_HISTORY.csv: how late deliveries were, by time.

The file is what `locust --csv NAME --csv-full-history` leaves as NAME_stats_history.csv. Drawn here
as SVG, and turned into a PNG by resvg, which the extra `charts` brings; OUT.svg needs nothing.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

_DELIVERY: Final = "DELIVERY"  # as tally.py names it; importing locust would patch this process
_WIDTH: Final = 760
_HEIGHT: Final = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 40, 50
_LINE: Final = 18  # of the legend
_COLOURS: Final = ("#0b6e4f", "#c84630", "#3d5a80", "#e0a030", "#7a4988", "#555555")
_FONT: Final = "DejaVu Sans"  # where a PNG is drawn; in an SVG, whatever the reader has
_SHOWN: Final = {"50%": "", "99%": ' stroke-dasharray="5 3"'}

# By name and percentile: seconds since the start, and milliseconds.
Lines = Mapping[tuple[str, str], list[tuple[float, float]]]


def lines(rows: Iterable[Mapping[str, str]]) -> Lines:
    """Return the percentiles of deliveries over the last ten seconds, as locust keeps them."""
    found: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    began: float | None = None
    for row in rows:
        at = float(row["Timestamp"])
        began = at if began is None else began
        if row["Type"] != _DELIVERY:
            continue
        for percentile in _SHOWN:
            value = row[percentile]
            if value != "N/A":
                found[row["Name"], percentile].append((at - began, float(value)))
    return found


def svg(drawn: Lines, title: str) -> str:
    """Draw a line for each, with a legend.

    Raises:
        ValueError: there is nothing to draw.
    """
    points = [point for line in drawn.values() for point in line]
    if not points:
        raise ValueError("expected deliveries in the history, found none")
    longest, latest = (max(1.0, *(point[axis] for point in points)) for axis in (0, 1))
    names = list(dict.fromkeys(name for name, _ in drawn))
    field_width, field_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    height = _HEIGHT + _LINE * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 24, title, "start"),
        _text(_LEFT + field_width / 2, _HEIGHT - 12, "seconds; dashed: p99, plain: p50", "middle"),
    ]
    for step in range(5):
        y = _TOP + field_height * (1 - step / 4)
        x = _LEFT + field_width * step / 4
        parts += [
            f'<path d="M{_LEFT} {y:.1f}h{field_width}" stroke="#dddddd"/>',
            _text(_LEFT - 6, y + 4, f"{latest * step / 4:,.0f} ms", "end"),
            _text(x, _TOP + field_height + 16, f"{longest * step / 4:,.0f}", "middle"),
        ]
    for (name, percentile), line in drawn.items():
        path = " ".join(
            f"{_LEFT + field_width * x / longest:.1f},{_TOP + field_height * (1 - y / latest):.1f}"
            for x, y in line
        )
        colour = _COLOURS[names.index(name) % len(_COLOURS)]
        dashes = _SHOWN[percentile]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"{dashes}/>')
    for at, name in enumerate(names):
        y = _HEIGHT + _LINE * at + 4
        colour = _COLOURS[at % len(_COLOURS)]
        parts.append(f'<path d="M{_LEFT} {y - 4}h16" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(_LEFT + 24, y, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def main(out: str, history: str) -> None:
    """Draw one run."""
    with Path(history).open(newline="") as file:
        drawn = svg(lines(csv.DictReader(file)), "delivery, from append to reader")
    if not out.endswith(".png"):
        Path(out).write_text(drawn)
        return
    try:
        import resvg_py
    except ImportError:
        sys.exit(f"{out}: a PNG needs the extra `charts`: pip install 'headwater[charts]'")
    Path(out).write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=drawn, sans_serif_family=_FONT)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"expected {(__doc__ or '').partition(': ')[0]}")
    main(*sys.argv[1:])
