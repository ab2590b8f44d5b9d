"""Collector: searches what is new for cycles in short steps, and everything seldom.

The interpreter's own trigger counts what was made less what was let go. A server that holds 100,000
streams lets one object go for each that it makes: for seconds nothing seems to come, and then
20,000 are looked at together. That was 30 ms in which nobody was served, in each process.
"""

import asyncio
import gc
import random
import time
from typing import Final

_STOP_S: Final = 0.002  # that a step is to last
_PAUSE_S_MIN: Final = 0.02  # so it is a tenth of the time, unless more comes even in that
_PAUSE_S_MAX: Final = 0.25  # a process that idles wakes up for little else
# Made at once, between two steps: a microsecond each.
_NEW_MAX: Final = 10_000
# A cycle that lives longer than a step, and is let go later, stays until all objects are looked at:
# 0.1 us each, 0.2 s where there are 100,000 streams. Connections leave none that we know of.
_ALL_EVERY_S: Final = 600.0


def next_pause_s(pause_s: float, took_s: float) -> float:
    """Return how long to wait for the next step, when one after a pause took so long."""
    wanted_s = pause_s * _STOP_S / took_s if took_s > 0 else _PAUSE_S_MAX
    return min(max(wanted_s, _PAUSE_S_MIN), _PAUSE_S_MAX)


async def collect_for_ever() -> None:
    """Search what is new, step by step, and everything now and then."""
    gc.set_threshold(_NEW_MAX, 1, 1_000_000_000)
    pause_s = _PAUSE_S_MAX
    # The processes of a node begin together, and are not to stop together.
    all_s = time.monotonic() + random.uniform(0.5, 1.0) * _ALL_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        if time.monotonic() >= all_s:
            gc.collect()
            all_s = time.monotonic() + _ALL_EVERY_S
            continue
        began_s = time.thread_time()
        gc.collect(1)
        pause_s = next_pause_s(pause_s, time.thread_time() - began_s)
