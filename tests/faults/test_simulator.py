"""Crashes, torn writes and bad disks by the seed: what was acknowledged is there, once, in order.

By hand: `python -m tests.faults --seeds 1000`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.simulator.mutants import MUTANTS
from tests.faults.simulator.report import describe, shrink
from tests.faults.simulator.runner import run

SEEDS = 50
# A simulator that never gets there can't fail: each of these has to have happened.
EVENTS = {
    *("acknowledged: create", "acknowledged: fork", "acknowledged: append", "acknowledged: delete"),
    *("acknowledged: duplicate", "refused: no room", "unknown outcome", "producer asked again"),
    *("settled: there", "settled: not there", "read", "wake", "audit", "sync"),
    *("start", "stop", "start refused", "stopped itself", "stop failed"),
    *("crash: kill", "crash: power", "lost write", "torn write", "lost name", "disk full"),
    *("input/output error: read", "input/output error: write", "input/output error: sync"),
    *("input/output error: truncate", "flipped bit", "flipped bit reported"),
    *("large frame", "large frame: read", "large frame: written over"),
    *("large frame: a file without a row", "flipped bit: large frame"),
    "flipped bit reported: large frame",
}


def test_no_seed_breaks_a_promise() -> None:
    events: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = run(seed)
        events += outcome.events
        if outcome.error is not None:
            pytest.fail(describe(seed), pytrace=False)
    assert set(events) >= EVENTS
    assert events["crash: kill"] + events["crash: power"] > 2 * SEEDS
    assert events["acknowledged: append"] > 10 * SEEDS


@pytest.mark.parametrize("seed", [3, 8])
def test_same_seed_is_the_same_run(seed: int) -> None:
    one, other = run(seed), run(seed)
    assert one.trace == other.trace
    assert one.events == other.events
    assert len(one.trace) > 20


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_on_purpose_is_found(name: str) -> None:
    for seed in range(SEEDS):
        if run(seed, broken=MUTANTS[name]()).error is not None:
            return
    pytest.fail(f"{SEEDS} seeds, and none saw that {name}")


def test_failure_is_shrunk_to_what_it_takes() -> None:
    broken = MUTANTS["an append is acknowledged before it is durable"]
    whole = next(o for o in (run(seed, broken=broken()) for seed in range(SEEDS)) if o.error)
    steps, least = shrink(whole, broken)
    assert least.error is not None
    assert len(steps) < sum(len(life.steps) for life in whole.plan.lives) / 4
    again = run(whole.seed, steps, broken())
    assert again.trace == least.trace
