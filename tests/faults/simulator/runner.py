"""Runs: one seed from the first life to the last, and what to print when a promise is broken."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.faults.simulator.books import Books
from tests.faults.simulator.clients import Clients
from tests.faults.simulator.disk import Files
from tests.faults.simulator.flips import flip
from tests.faults.simulator.life import World, live
from tests.faults.simulator.plan import End, Life, Plan, Step, draw, only


@dataclass(slots=True)
class Broken:
    """What the product itself is made to do wrong, for the simulator to find."""

    forgets_syncs_of: str | None = None  # a pattern of names: their fsync does nothing
    product: AbstractContextManager[object] = field(default_factory=nullcontext)


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    plan: Plan
    events: Counter[str]
    trace: list[str]
    error: BaseException | None = None


_LAST: Final = Life((), End("stop", None), None, None)
_WAIT: Final = Step(-1, client=0, pause_s=60, kind="wait", path=0, dice=(0,))
_RESTED: Final = replace(_LAST, steps=(_WAIT,), rests=True)
_FLIPS: Final = 4  # at the end of each seed


def _flip(world: World, files: Files, books: Books) -> None:
    """Let one bit of what lies still be another, and see what a start makes of it."""
    flipped = flip(files, world.random_)
    if flipped is None:
        return
    kept, (world.files, name, at) = (world.files, world.clients.books), flipped
    world.clients.books = books.copy()
    world.trace(f"flipped a bit of {name}: byte {at}")
    world.events["flipped bit: large frame" if "/" in name else "flipped bit"] += 1
    live(world, _LAST, audited=True, damaged=name)
    world.files, world.clients.books = kept


def run(seed: int, steps: Collection[int] | None = None, broken: Broken | None = None) -> Outcome:
    """Run one seed.

    Args:
        steps: those that are carried out; None: all of them.
        broken: what is wrong on purpose.
    """
    plan = draw(seed) if steps is None else only(draw(seed), steps)
    broken = broken or Broken()
    events: Counter[str] = Counter()
    lines: list[str] = []
    books = Books(now_ms=lambda: 0, events=events)
    folder = Path(tempfile.mkdtemp(prefix="headwater-"))
    world: World

    def trace(line: str) -> None:
        ms = clients.books.now_ms() % 10_000_000
        lines.append(f"life {world.lives} {ms:>8} ms  {line.replace(f'{folder}/', '')}")

    clients = Clients(books, trace)
    world = World(plan, random.Random(f"run {seed}"), folder, clients, events, trace, Files())
    world.forgets_syncs_of = broken.forgets_syncs_of
    outcome = Outcome(seed, plan, events, lines)
    try:
        with broken.product:
            for life in plan.lives:
                live(world, life)
            left = (world.files.copy(), books.copy())
            for last in (_RESTED, _LAST):
                live(world, last, audited=True)
            for _ in range(_FLIPS):
                _flip(world, *(left if world.random_.random() < 0.5 else (world.files, books)))
    except Exception as error:
        outcome.error = error
    finally:
        shutil.rmtree(folder)
    return outcome
