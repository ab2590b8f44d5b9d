"""The collector's steps: short, and nothing is left for ever."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from shared.collector import collect_for_ever, next_pause_s
from shared.tasks import background


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("pause_s", "took_s", "expected_s"),
    [
        pytest.param(0.25, 0.000_010, 0.25, id="an idle process is left alone"),
        pytest.param(0.25, 0.0, 0.25, id="a clock that stands still"),
        pytest.param(0.1, 0.002, 0.1, id="as long as it is to be"),
        pytest.param(0.1, 0.004, 0.05, id="twice as long, twice as often"),
        pytest.param(0.1, 0.001, 0.2, id="half as long, half as often"),
        pytest.param(0.02, 0.1, 0.02, id="but not all the time"),
    ],
)
def test_a_pause_makes_the_next_step_as_long_as_it_is_to_be(
    pause_s: float, took_s: float, expected_s: float
) -> None:
    assert next_pause_s(pause_s, took_s) == pytest.approx(expected_s)


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_a_cycle_is_gone_after_a_step() -> None:
    async with background(collect_for_ever()):
        await asyncio.sleep(0)
        gone = asyncio.Event()
        weakref.finalize(Knot(), gone.set)
        await gone.wait()


async def test_old_objects_are_not_searched_by_the_way() -> None:
    gc.collect()
    async with background(collect_for_ever()):
        await asyncio.sleep(0)
        whole = gc.get_stats()[2]["collections"]
        kept = [[number] for number in range(200_000)]
        await asyncio.sleep(0.3)
        assert gc.get_stats()[2]["collections"] == whole
        assert len(kept) == 200_000
