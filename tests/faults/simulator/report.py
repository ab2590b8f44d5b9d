"""Reports: which seeds failed, the least that fails, and how to see it again."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from tests.faults.simulator.runner import Broken, Outcome, run

_TRIES_MAX: Final = 150  # for a shorter run that fails, some 0.1 s each
_LINES: Final = 60  # of the trace


def run_seeds(seeds: Iterable[int]) -> Iterator[tuple[int, Counter[str], bool]]:
    """Run seeds on every core; yield each with its events, and whether it failed."""
    with ProcessPoolExecutor() as pool:
        yield from pool.map(_one, seeds, chunksize=4)


def _one(seed: int) -> tuple[int, Counter[str], bool]:
    outcome = run(seed)
    return seed, outcome.events, outcome.error is not None


def shrink(outcome: Outcome, broken: Callable[[], Broken] = Broken) -> tuple[list[int], Outcome]:
    """Leave out steps as long as it fails without them; return those that remain."""
    steps = [step.number for life in outcome.plan.lives for step in life.steps]
    size, tries = (len(steps) + 1) // 2, 0
    while size and tries < _TRIES_MAX:
        at = 0
        while at < len(steps) and tries < _TRIES_MAX:
            fewer = [*steps[:at], *steps[at + size :]]
            shorter = run(outcome.seed, fewer, broken())
            tries += 1
            if shorter.error is not None:
                steps, outcome = fewer, shorter
            else:
                at += size
        size //= 2
    return steps, outcome


def describe(seed: int) -> str:
    """Return what somebody needs who looks for the cause."""
    outcome = run(seed)
    if outcome.error is None:
        return f"seed {seed}: nothing is wrong"
    steps, outcome = shrink(outcome)
    assert outcome.error is not None
    numbers = ",".join(map(str, steps)) or "none"
    return "\n".join(
        [
            f"seed {seed}: {outcome.error!r}",
            *(f"  {line}" for line in outcome.trace[-_LINES:]),
            "".join(traceback.format_exception(outcome.error)).rstrip(),
            f"again: python -m tests.faults --seeds 1 --from {seed}",
            f"the least of it: python -m tests.faults --seeds 1 --from {seed} --steps {numbers}",
        ]
    )
