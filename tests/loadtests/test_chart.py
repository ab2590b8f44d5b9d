"""The chart of a run of locust shows its deliveries, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.launch import ROOT
from loadtests.locusts.chart import lines, main, svg

HISTORY = """Timestamp,User Count,Type,Name,50%,99%
100,3,,Aggregated,1,2
101,3,DELIVERY,chat <sse>,4,40
102,3,DELIVERY,chat <sse>,5,N/A
102,3,POST,chat,1,9
"""


def test_deliveries_are_drawn_by_name_and_percentile(tmp_path: Path) -> None:
    history, out = tmp_path / "run_stats_history.csv", tmp_path / "run.svg"
    history.write_text(HISTORY)
    main(str(out), str(history))
    drawn = out.read_text()
    assert drawn.count("<polyline") == 2
    assert "chat &lt;sse&gt;" in drawn
    assert "POST" not in drawn


def test_lines_begin_with_the_run() -> None:
    rows = [
        {"Timestamp": "100", "Type": "", "Name": "Aggregated", "50%": "1", "99%": "2"},
        {"Timestamp": "103", "Type": "DELIVERY", "Name": "x", "50%": "4", "99%": "N/A"},
    ]
    assert lines(rows) == {("x", "50%"): [(3.0, 4.0)]}
    with pytest.raises(ValueError, match="found none"):
        svg({}, "nothing")


def test_a_png_needs_an_extra_and_says_so(tmp_path: Path) -> None:
    history, out = tmp_path / "run_stats_history.csv", tmp_path / "run.png"
    history.write_text(HISTORY)
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.locusts.chart", str(out), str(history)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        assert "headwater[charts]" in done.stderr
