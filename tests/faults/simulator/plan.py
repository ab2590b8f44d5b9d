"""Plans: what clients do and what befalls the process, drawn from a seed before anything runs.

A step says what is tried; its dice choose among what is there when its turn comes. So any step can
be left out, and the others remain what they were.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from origin.frame import LARGE_BYTES
from tests.faults.simulator.disk import Call, Fault, How

CLIENTS: Final = 4
PATHS: Final = 8
LIVES: Final = 6

Kind = Literal[
    "create",
    "fork",
    "append",
    "produce",
    "again",
    "stale",
    "close",
    "delete",
    "read",
    "follow",
    "wait",
    "disk full",
    "room again",
]
_WEIGHTS: Final[dict[Kind, int]] = {
    "create": 14,
    "fork": 10,
    "append": 22,
    "produce": 24,
    "again": 5,
    "stale": 3,
    "close": 4,
    "delete": 5,
    "read": 14,
    "follow": 5,
    "wait": 4,
    "disk full": 2,
    "room again": 3,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that one client tries."""

    number: int  # within the seed
    client: int
    pause_s: float  # before it
    kind: Kind
    path: int
    dice: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """How a life ends: at some call of the disk, or once its steps are done."""

    how: How | Literal["stop"]
    calls: int | None  # None: once the steps are done
    at: Literal["any", "sync"] = "any"  # which calls are counted
    while_stopping: bool = False  # from the moment on at which it is told to stop
    down_s: float = 0  # until the next life


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the process."""

    steps: tuple[Step, ...]
    end: End
    fault: Fault | None
    room_bytes: int | None  # when it starts
    rests: bool = False  # so long that all is done that there is to do beside requests


@dataclass(frozen=True, slots=True)
class Plan:
    """All lives of a seed, and what the product is set to."""

    lives: tuple[Life, ...]
    registry: bool
    chunk_bytes: int
    wal_bytes_max: int
    frame_bytes_max: int
    recent_bytes_max: int
    compacts: bool  # whatever there is, as soon as there is anything
    hot_streams: int
    large_bytes: int  # from which size on a frame has a file of its own


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    random_ = random.Random(seed)
    steps = _steps(random_)
    return Plan(
        lives=tuple(_life(random_, steps) for _ in range(LIVES)),
        registry=random_.random() < 0.4,
        chunk_bytes=random_.choice([512, 4096, 65_536]),
        # Small ones bring about every day what is rare: logs that start anew, frames that fill up,
        # reads that go to the disk.
        wal_bytes_max=random_.choice([20_000, 100_000, 64 * 1024 * 1024]),
        frame_bytes_max=random_.choice([3000, 4 * 1024 * 1024]),
        recent_bytes_max=random_.choice([1000, 64 * 1024 * 1024]),
        compacts=random_.random() < 0.5,
        hot_streams=random_.choice([1, 1000]),
        large_bytes=int(100 * 20 ** random_.random()) if random_.random() < 0.5 else LARGE_BYTES,
    )


def only(plan: Plan, numbers: Collection[int]) -> Plan:
    """Return a plan without the other steps."""
    lives = tuple(
        replace(life, steps=tuple(step for step in life.steps if step.number in numbers))
        for life in plan.lives
    )
    return replace(plan, lives=lives)


def _steps(random_: random.Random) -> Iterator[Step]:
    number = 0
    while True:
        (kind,) = random_.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        client, path = random_.randrange(CLIENTS), random_.randrange(PATHS)
        if kind in ("create", "fork", "delete"):
            # Each path has one client that lets it come and go.
            path -= (path - client) % CLIENTS
            path %= PATHS
        pause_s = random_.choice([0, 0, 0, 0.001, 0.02, 0.3])
        dice = tuple(random_.randrange(1 << 30) for _ in range(8))
        yield Step(number, client, pause_s, kind, path, dice)
        number += 1


def _life(random_: random.Random, steps: Iterator[Step]) -> Life:
    count = random_.choice([0, 5, 30, 60])
    how: How = random_.choice(["kill", "power", "power"])
    calls = int(random_.choice([30, 200, 1000]) * random_.random()) + 1
    down_s = random_.choice([0, 0, 1, 30])
    end = random_.choice(
        [
            End(how, calls, down_s=down_s),
            # What is written and not synced: the very moment for which all of this is.
            End(how, calls // 6 + 1, "sync", down_s=down_s),
            End(how, calls // 6 + 1, "sync", down_s=down_s),
            End(how, None, down_s=down_s),
            End(how, calls % 40 + 1, while_stopping=True, down_s=down_s),
            End("stop", None, down_s=down_s),
        ]
    )
    fault = None
    if random_.random() < 0.25:
        call: Call = random_.choice(["write", "sync", "sync", "read", "truncate"])
        most = {"write": 200, "sync": 40, "read": 100, "truncate": 4}[call]
        fault = Fault(call, random_.randint(1, most))
    room_bytes = random_.randrange(40_000) if random_.random() < 0.05 else None
    return Life(
        tuple(next(steps) for _ in range(count)),
        end,
        fault,
        room_bytes,
    )
