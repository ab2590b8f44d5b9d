"""Deliveries that are counted together stand in the statistics as if counted one by one."""

import subprocess
import sys

from loadtests.launch import ROOT

# In a process of its own: whoever imports locust has its sockets patched.
SCRIPT = """
from random import Random
from locust.stats import RequestStats
from loadtests.locusts.tally import DELIVERY, tally

dice = Random(7)
together, single = RequestStats(), RequestStats()
for batch in (1, 0, 500, 3):
    times = [dice.expovariate(1 / 300) for _ in range(batch)]
    tally(together, "x", times)
    for time in times:
        single.log_request(DELIVERY, "x", time, 0)
for found, expected in [(together.total, single.total), (together.get("x", DELIVERY),
                                                         single.get("x", DELIVERY))]:
    for name in ("num_requests", "response_times", "min_response_time", "max_response_time",
                 "num_failures", "num_none_requests"):
        assert getattr(found, name) == getattr(expected, name), name
    assert abs(found.total_response_time - expected.total_response_time) < 1e-6
    assert sum(found.num_reqs_per_sec.values()) == expected.num_requests == 504
    assert found.get_response_time_percentile(0.99) == expected.get_response_time_percentile(0.99)
"""


def test_counting_together_is_counting_one_by_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
