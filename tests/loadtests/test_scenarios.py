"""Short real runs of each scenario: what they count must be exact, whatever the times are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.launch import ROOT


def loadtests(*arguments: object) -> dict[str, Any]:
    """Run `python -m loadtests` and return its report."""
    command = [sys.executable, "-m", "loadtests", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"]
    return report


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="one-stream"),
        pytest.param(["--streams", 20, "--connections", 8, "--clients", 2], id="many-streams"),
        pytest.param(["--batch", 50, "--streams", 2, "--connections", 4], id="json-in-batches"),
        pytest.param(["--size", 300_000, "--connections", 4], id="more-than-a-socket-takes"),
    ],
)
def test_every_acknowledged_append_is_read_back_once(
    arguments: list[object], tmp_path: Path
) -> None:
    report = loadtests(
        "append", "--against", "headwater", "--folder", tmp_path, *arguments,
        "--seconds", 0.4, "--rounds", 2, "--warm-up", 0,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert figures["acknowledged"] == figures["stored"] == figures["appends"] > 0
    assert figures["errors"] == {}
    assert len(figures["rounds"]) == 2


@pytest.mark.parametrize("mode", ["lp", "sse"])
def test_every_reader_sees_every_append_once(mode: str, tmp_path: Path) -> None:
    report = loadtests(
        "fanout", "--against", "headwater", "--folder", tmp_path, "--mode", mode,
        "--readers", 2000, "--appends", 3, "--warm-up", 1,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert (figures["missing"], figures["doubled"]) == (0, 0)
    assert figures["errors"] == {}
    assert len(figures["waves"]) == 3
    assert figures["origin_reads_per_append"] <= 2


def test_readers_that_poll_again_at_once_see_every_append_once(tmp_path: Path) -> None:
    report = loadtests(
        "fanout", "--against", "headwater", "--folder", tmp_path, "--poll-at-once",
        "--readers", 200, "--appends", 5, "--warm-up", 0,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})


def test_the_reference_server_runs_beside_it_and_gives_ratios(tmp_path: Path) -> None:
    arguments = ["--against", "headwater-origin,node", "--folder", tmp_path]
    appended = loadtests("append", *arguments, "--seconds", 0.4, "--rounds", 1, "--warm-up", 0)
    assert appended["ratios"]["headwater-origin / node"]["appends_per_s"] > 0
    assert appended["servers"]["node"]["versions"]["@durable-streams/server"] == "0.3.7"
    waited = loadtests("fanout", *arguments, "--readers", 50, "--appends", 2, "--warm-up", 0)
    assert waited["servers"]["node"]["missing"] == 0
    assert waited["servers"]["node"]["origin_reads_per_append"] is None


def test_unknown_server_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests", "append", "--against", "headwater,nginx"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nginx" in done.stderr
