"""The picture of bytes and latency over numbers of readers."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from loadtests.plot import decades, main, points, svg


def report(readers: int, mode: str = "lp", **servers: float | None) -> dict[str, Any]:
    return {
        "scenario": "fanout",
        "parameters": {"readers": readers, "mode": mode},
        "servers": {name: {"ms_last": value} for name, value in servers.items()},
    }


def test_a_line_is_a_server_in_a_mode_in_the_order_of_readers() -> None:
    reports = [report(1000, a=9.0, b=2.0), report(100, a=3.0), report(100, "sse", a=4.0)]
    assert points(reports, "ms_last") == {
        "a, lp": [(100, 3.0), (1000, 9.0)],
        "b, lp": [(1000, 2.0)],
        "a, sse": [(100, 4.0)],
    }


def test_the_last_run_counts_and_nothing_below_zero_has_a_place() -> None:
    reports = [report(10, a=1.0), report(10, a=2.0, b=-5.0, c=None)]
    assert points(reports, "ms_last") == {"a, lp": [(10, 2.0)]}


def test_another_scenario_is_refused() -> None:
    with pytest.raises(ValueError, match="received one of reads"):
        points([report(1, a=1.0) | {"scenario": "reads"}], "ms_last")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([10, 1000], [1, 2, 3], id="exactly"),
        pytest.param([11, 999], [1, 2, 3], id="within"),
        pytest.param([0.5, 2], [-1, 0, 1], id="below-one"),
        pytest.param([100], [2, 3], id="one-value-still-has-a-decade"),
    ],
)
def test_axes_enclose_all_values(values: list[float], expected: list[int]) -> None:
    assert list(decades(values)) == expected


def test_each_point_is_drawn(tmp_path: Path) -> None:
    for readers in (100, 1000):
        text = json.dumps(report(readers, headwater=readers / 9, node=readers / 2))
        (tmp_path / f"{readers}.json").write_text(text)
    main(str(tmp_path / "out.svg"), *map(str, sorted(tmp_path.glob("*.json"))))
    drawn = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert len(drawn.findall("{*}polyline")) == 2
    assert len(drawn.findall("{*}circle")) == 4 + 2  # and the legend's
    texts = [text.text for text in drawn.findall("{*}text")]
    assert {"headwater, lp", "node, lp", "ms to the last reader", "1,000"} <= set(texts)


def test_names_cannot_break_the_picture() -> None:
    ElementTree.fromstring(svg({"<&>": {"a <b>": [(10, 1.0)]}}))
