"""Short real runs of each scenario: what they count must be exact, whatever the times are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.launch import ROOT
from loadtests.nchan import NchanMissing, find_nginx


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
        pytest.param(
            ["--streams", 20, "--connections", 8, "--clients", 2, "--rate", 500], id="at-a-rate"
        ),
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


def test_streams_that_go_are_gone_and_appends_go_on(tmp_path: Path) -> None:
    report = loadtests(
        "forget", "--streams", 60, "--rate", 300, "--seconds", 0.3, "--folder", tmp_path
    )
    figures = report["servers"]["headwater-origin"]
    assert figures["errors_total"] == 0
    assert figures["deleting_ratio"] > 0
    assert figures["expiring_ratio"] > 0


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


@pytest.mark.parametrize("mode", ["lp", "sse"])
def test_nchan_is_measured_in_the_same_way(mode: str, tmp_path: Path) -> None:
    try:
        find_nginx()
    except NchanMissing as missing:
        pytest.skip(f"not measured beside Nchan: {missing}")
    report = loadtests(
        "fanout", "--against", "headwater,nchan", "--folder", tmp_path, "--mode", mode,
        "--readers", 300, "--appends", 3, "--warm-up", 1,
    )  # fmt: skip
    figures = report["servers"]["nchan"]
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})
    assert figures["origin_reads_per_append"] is None
    assert len(figures["waves"]) == 3


@pytest.mark.parametrize("mode", ["lp", "sse"])
def test_appends_at_a_rate_reach_every_reader_once(mode: str, tmp_path: Path) -> None:
    report = loadtests(
        "fanout", "--against", "headwater", "--folder", tmp_path, "--mode", mode,
        "--readers", 200, "--appends", 20, "--rate", 20, "--warm-up", 0,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})
    assert figures["ms_last"] > 0


def test_a_crowd_over_several_edges_is_held_by_several_clients(tmp_path: Path) -> None:
    report = loadtests(
        "storm", "--against", "headwater", "--folder", tmp_path, "--readers", 2100, "--edges", 2,
        "--spread", 1,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert figures["client_processes"] == len(os.sched_getaffinity(0))
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})
    assert figures["reconnects"] >= 2100
    assert figures["refused"] == 0


def test_readers_outlive_the_edges(tmp_path: Path) -> None:
    report = loadtests(
        "storm", "--against", "headwater", "--folder", tmp_path, "--readers", 200, "--mode", "sse",
        "--spread", 0.5, "--by", "edges",
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})
    assert figures["reconnects"] >= 200


@pytest.mark.parametrize("mode", ["lp", "sse"])
def test_every_stream_has_its_own_reader(mode: str, tmp_path: Path) -> None:
    report = loadtests(
        "streams", "--against", "headwater", "--folder", tmp_path, "--mode", mode,
        "--streams", 300, "--rate", 300, "--seconds", 1,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert figures["appends"] == figures["acknowledged"] == 300
    assert (figures["missing"], figures["doubled"], figures["errors"]) == (0, 0, {})
    assert figures["origin_reads_per_append"] <= 0.1


def test_small_reads_bring_what_was_appended(tmp_path: Path) -> None:
    report = loadtests(
        "reads", "--against", "headwater,headwater-origin,node", "--folder", tmp_path,
        "--connections", 8, "--clients", 2, "--seconds", 0.2, "--rounds", 1,
    )  # fmt: skip
    for figures in report["servers"].values():
        assert figures["errors"] == {}
        assert figures["reads_per_s"] > 0
        assert figures["start_reads_per_s"] > 0


def test_a_cold_crowd_reads_the_whole_stream_and_the_origin_hardly_notices(tmp_path: Path) -> None:
    report = loadtests(
        "catchup", "--against", "headwater", "--folder", tmp_path, "--readers", 60, "--mib", 8,
    )  # fmt: skip
    figures = report["servers"]["headwater"]
    assert (figures["wrong"], figures["errors"]) == (0, {})
    assert figures["readers_done"] == figures["warm_readers_done"] == 60
    assert figures["looked_at"] == 2
    assert figures["origin_reads_per_chunk"] < 6  # of 60 readers


def test_every_wake_reaches_every_edge(tmp_path: Path) -> None:
    report = loadtests(
        "wakes", "--folder", tmp_path, "--edges", 3, "--rate", 500, "--seconds", 1
    )  # fmt: skip
    figures = report["servers"]["redis"]
    assert figures["lost"] == 0
    assert 100 < figures["redis_bytes"] < 100 + 250  # the payload, and what names and frames it


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["append", "--against", "headwater,nginx"], "nginx", id="unknown-server"),
        pytest.param(["reads", "--against", "headwater,nchan"], "nchan", id="foreign-protocol"),
        pytest.param(["fanout", "--readers", 0], "received 0", id="nobody"),
        pytest.param(
            ["fanout", "--against", "node", "--readers", 2_000_000], "node with 1", id="no-room"
        ),
        pytest.param(["reads", "--folder", "/nowhere"], "'/nowhere' is not a folder", id="folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[object], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
