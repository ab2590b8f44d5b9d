"""`python -m tests.faults --seeds 1000` runs the crash simulator; `kill --times 200` kills the real
process."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.kills import kill_at_any_moment
from tests.faults.simulator.report import describe, run_seeds
from tests.faults.simulator.runner import run


def _simulate(first: int, count: int, steps: str | None) -> int:
    if steps is not None:
        kept = [] if steps == "none" else [int(number) for number in steps.split(",")]
        outcome = run(first, kept)
        print(*outcome.trace, sep="\n")
        print(f"seed {first}: {outcome.error!r}")
        return int(outcome.error is not None)
    events: Counter[str] = Counter()
    failed: list[int] = []
    for done, (seed, happened, is_wrong) in enumerate(run_seeds(range(first, first + count)), 1):
        events += happened
        if is_wrong:
            failed.append(seed)
            print(describe(seed), flush=True)
        if done % 100 == 0:
            print(f"{done} seeds, {len(failed)} failed", file=sys.stderr, flush=True)
    for name, number in sorted(events.items()):
        print(f"{number:>9,}  {name}")
    print(f"{count} seeds from {first}: {len(failed)} failed {failed or ''}")
    return int(bool(failed))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["simulate", "kill"], default="simulate")
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds to run")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--steps", help="of one seed, carry out these alone; prints its trace")
    parser.add_argument("--times", type=int, default=200, help="how often to kill")
    asked = parser.parse_args()
    if asked.what == "kill":
        with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
            print(asyncio.run(kill_at_any_moment(Path(folder), asked.times)))
        return 0
    return _simulate(asked.first, asked.seeds, asked.steps)


if __name__ == "__main__":
    sys.exit(main())
