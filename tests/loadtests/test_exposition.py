"""What servers tell of themselves."""

import math

import pytest

from loadtests.exposition import bucket_percentile, counter_sum, grown, histograms

EXPOSITION = """\
# HELP headwater_origin_reads_total Reads that the origin answered
# TYPE headwater_origin_reads_total counter
headwater_origin_reads_total{mode="catch-up"} 3.0
headwater_origin_reads_total{mode="long-poll"} 4.0
headwater_origin_reads_total_created 9.0
# TYPE headwater_expired_total counter
# TYPE delay_seconds histogram
delay_seconds_bucket{le="0.1",process="edge-0"} 90.0
delay_seconds_bucket{le="1.0",process="edge-0"} 99.0
delay_seconds_bucket{le="+Inf",process="edge-0"} 100.0
delay_seconds_bucket{le="0.1",process="origin"} 5.0
delay_seconds_sum{process="edge-0"} 12.0
up 1
"""
EDGE = {0.1: 90.0, 1.0: 99.0, math.inf: 100.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("headwater_origin_reads_total", 7.0, id="over-its-labels"),
        pytest.param("up", 1.0, id="without-labels"),
        pytest.param("headwater_expired_total", 0.0, id="defined-but-never-counted"),
        pytest.param("headwater_origin_reads", None, id="not-defined"),
    ],
)
def test_counter_is_summed(name: str, expected: float | None) -> None:
    assert counter_sum(EXPOSITION, name) == expected


def test_histograms_are_apart_by_process() -> None:
    assert histograms(EXPOSITION, "delay_seconds") == {"edge-0": EDGE, "origin": {0.1: 5.0}}
    assert histograms(EXPOSITION, "delay") == {}


def test_growth_is_what_was_observed_since() -> None:
    assert grown({0.1: 80.0, 1.0: 80.0}, EDGE) == {0.1: 10.0, 1.0: 19.0, math.inf: 100.0}


def test_a_process_that_was_started_anew_counts_from_nothing() -> None:
    assert grown({0.1: 91.0}, EDGE) == EDGE


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        pytest.param(0.5, 0.1, id="in-the-first-bucket"),
        pytest.param(0.9, 0.1, id="all-of-it"),
        pytest.param(0.99, 1.0, id="in-the-next"),
        pytest.param(1.0, math.inf, id="beyond-all-bounds"),
    ],
)
def test_percentile_is_the_bound_of_its_bucket(share: float, expected: float) -> None:
    assert bucket_percentile(EDGE, share) == expected


def test_nothing_observed_has_no_percentile() -> None:
    assert bucket_percentile({}, 0.99) is None
    assert bucket_percentile({0.1: 0.0, math.inf: 0.0}, 0.99) is None
