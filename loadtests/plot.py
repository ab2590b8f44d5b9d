"""python -m loadtests.plot OUT.svg FILE...: what a reader costs, and how late the last one is.

Each FILE is the JSON of a run of `fanout`; a line is one server in one mode, by number of readers.
Both figures span orders of magnitude, so all axes are logarithmic.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import orjson

PANELS: Final = {
    "user_bytes_per_reader": "user bytes a waiting reader",
    "ms_last": "ms to the last reader",
}
_WIDTH: Final = 440  # of one panel
_HEIGHT: Final = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 36, 40, 45  # around the field of a panel
_LINE: Final = 18  # of the legend
_COLOURS: Final = ("#0b6e4f", "#c84630", "#3d5a80", "#e0a030", "#7a4988", "#555555")

Points = Mapping[str, Sequence[tuple[float, float]]]  # by line: readers and figure, in order


def points(reports: Iterable[dict[str, Any]], figure: str) -> Points:
    """Return one figure of fan-out reports, by server and mode.

    Of several runs with as many readers, the last one counts. What is not above 0 is left out: it
    has no place on the axis, and says no more than that the machine's noise was larger.
    """
    lines: defaultdict[str, dict[float, float]] = defaultdict(dict)
    for report in reports:
        if report["scenario"] != "fanout":
            raise ValueError(f"expected a report of fanout, received one of {report['scenario']}")
        parameters = report["parameters"]
        for server, figures in report["servers"].items():
            value = figures.get(figure)
            if value is not None and value > 0:
                lines[f"{server}, {parameters['mode']}"][parameters["readers"]] = value
    return {name: sorted(line.items()) for name, line in lines.items()}


def decades(values: Iterable[float]) -> range:
    """Return the powers of ten that enclose all values, at least one decade."""
    logs = [math.log10(value) for value in values]
    low = math.floor(min(logs))
    return range(low, max(math.ceil(max(logs)), low + 1) + 1)


def svg(panels: Mapping[str, Points]) -> str:
    """Draw panels side by side, with one legend.

    Args:
        panels: by title; lines of one name have one colour in all of them.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
    width, height = _WIDTH * len(panels), _HEIGHT + _LINE * len(names) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for at, (title, lines) in enumerate(panels.items()):
        parts += _panel(at * _WIDTH, title, lines, colours)
    for at, name in enumerate(names):
        y = _HEIGHT + _LINE * at + 6
        parts.append(_dot(_LEFT, y - 4, colours[name]) + _text(_LEFT + 10, y, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _panel(x0: int, title: str, lines: Points, colours: Mapping[str, str]) -> list[str]:
    parts = [_text(x0 + _LEFT, 24, title, "start", bold=True)]
    if not lines:
        return parts
    xs = decades(x for line in lines.values() for x, _ in line)
    ys = decades(y for line in lines.values() for _, y in line)
    field_width, field_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - xs[0]) / (xs[-1] - xs[0])
        up = (math.log10(y) - ys[0]) / (ys[-1] - ys[0])
        return x0 + _LEFT + across * field_width, _TOP + (1 - up) * field_height

    for power in xs:
        x, y = place(10.0**power, 10.0 ** ys[0])
        parts += [_rule(x, _TOP, x, y), _text(x, y + 16, _number(power), "middle")]
    for power in ys:
        x, y = place(10.0 ** xs[0], 10.0**power)
        parts += [_rule(x, y, x + field_width, y), _text(x - 6, y + 4, _number(power), "end")]
    parts.append(_text(x0 + _LEFT + field_width / 2, _HEIGHT - 10, "readers", "middle"))
    for name, line in lines.items():
        placed = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
        )
        parts += [_dot(x, y, colours[name]) for x, y in placed]
    return parts


def _number(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#dddddd"/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


def main(out: str, *files: str) -> None:
    """Draw the reports in files."""
    reports = [orjson.loads(Path(file).read_bytes()) for file in files]
    panels = {title: points(reports, figure) for figure, title in PANELS.items()}
    Path(out).write_text(svg(panels))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"expected {(__doc__ or '').partition(':')[0]}")
    main(*sys.argv[1:])
