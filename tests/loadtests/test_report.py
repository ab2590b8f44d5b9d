"""Percentiles, tables, ratios, and the facts that stand beside them."""

import json
from pathlib import Path

import pytest

from loadtests.report import Result, disk, machine, milliseconds, percentile, table

HUNDRED = list(range(1, 101))


@pytest.mark.parametrize(
    ("ordered", "share", "expected"),
    [
        pytest.param([7.0], 0.5, 7.0, id="one-value-is-every-percentile"),
        pytest.param([1.0, 2.0], 0.5, 1.0, id="half-of-two-is-the-first"),
        pytest.param([1.0, 2.0], 0.51, 2.0, id="more-than-half-of-two-is-the-second"),
        pytest.param(HUNDRED, 0.99, 99, id="p99-of-100-leaves-one-above"),
        pytest.param(HUNDRED, 0.07, 7, id="a-share-that-floats-overshoot"),
        pytest.param(HUNDRED, 0.5, 50, id="p50-of-100"),
        pytest.param(HUNDRED[:99], 0.99, 99, id="p99-of-99-is-the-largest"),
        pytest.param(HUNDRED, 1, 100, id="all-of-them-is-the-largest"),
    ],
)
def test_percentile_is_the_nearest_rank(
    ordered: list[float], share: float, expected: float
) -> None:
    assert percentile(ordered, share) == expected


@pytest.mark.parametrize(
    ("ordered", "share"),
    [
        pytest.param([], 0.5, id="no-values"),
        pytest.param([1.0], 0, id="no-share"),
        pytest.param([1.0], 1.01, id="more-than-all"),
    ],
)
def test_percentile_of_nothing_is_refused(ordered: list[float], share: float) -> None:
    with pytest.raises(ValueError):
        percentile(ordered, share)


def test_milliseconds_need_no_order_and_no_values() -> None:
    assert milliseconds([0.003, 0.001, 0.002]) == {"ms_p50": 2.0, "ms_p99": 3.0, "ms_max": 3.0}
    assert milliseconds([]) == {}


def test_table_aligns_figures_and_marks_what_is_unknown() -> None:
    laid_out = table(["", "a/s", "ms"], [["one", 12345.678, 0.5], ["three", None, 7]])
    assert laid_out == "\n".join(
        [
            "          a/s   ms",
            "one    12,346  0.5",
            "three       -    7",
        ]
    )


def _result(**servers: dict[str, float]) -> Result:
    about = {"command": "c", "cpu": "x", "cores": 2, "kernel": "6", "python": "3"}
    facts = about | {"disk": {"filesystem": "ext4", "per_s": 1000.0, "ms_p50": 1.0}}
    return Result("append", {}, facts, {"appends_per_s": "appends/s"}, dict(servers))


def test_ratios_are_to_the_last_server() -> None:
    result = _result(a={"appends_per_s": 30.0}, b={"appends_per_s": 5.0}, c={"appends_per_s": 2.0})
    result.compare("appends_per_s")
    assert result.ratios == {"a / c": {"appends_per_s": 15.0}, "b / c": {"appends_per_s": 2.5}}


def test_no_ratio_to_a_server_that_did_nothing() -> None:
    result = _result(a={"appends_per_s": 30.0}, b={"appends_per_s": 0.0})
    result.compare("appends_per_s", "ms_p99")
    assert result.ratios == {"a / b": {}}


def test_a_problem_fails_the_run_and_is_shown() -> None:
    result = _result(a={"appends_per_s": 30.0})
    assert json.loads(result.json())["ok"]
    result.problems.append("a: lost 1")
    assert not json.loads(result.json())["ok"]
    assert "FAILED: a: lost 1" in result.text()


def test_disk_is_measured_where_the_data_goes(tmp_path: Path) -> None:
    facts = disk(tmp_path, seconds=0.0)
    assert facts["folder"] == str(tmp_path)
    assert facts["per_s"] > 0
    assert facts["filesystem"] not in ("", "unknown")
    assert list(tmp_path.iterdir()) == []


def test_report_names_the_command_and_the_settings_that_were_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_EDGES", "3")
    facts = machine(tmp_path, ["append", "--against", "a b"])
    assert facts["command"] == "python -m loadtests append --against 'a b'"
    assert facts["environment"]["HEADWATER_EDGES"] == "3"
    assert facts["cores"] >= 1
