"""What a crowd saw and cost, added up."""

from array import array
from collections import Counter

from loadtests.crowd import add_up, broken, held, seen
from loadtests.kernel import KernelMemory
from loadtests.orders import Totals
from loadtests.proc import Memory


def totals(**values: object) -> Totals:
    one = Totals()
    for name, value in values.items():
        setattr(one, name, value)
    return one


def test_totals_add_up_and_readers_keep_their_order() -> None:
    first = totals(last=array("I", [3, 2]), lost=1, parked=2, parked_at=5.0, cpu_s=1.0)
    second = totals(last=array("I", [1]), lost=2, parked=1, parked_at=4.0, errors=Counter({"5": 1}))
    both = add_up([first, second])
    assert list(both.last) == [3, 2, 1]
    assert (both.lost, both.parked, both.parked_at, both.cpu_s) == (3, 3, 5.0, 1.0)
    assert both.errors == {"5": 1}


def test_readers_that_are_behind_miss_what_came_after() -> None:
    figures = seen(totals(last=array("I", [3, 1, 0]), doubled=4), [3, 3, 3])
    assert (figures["missing"], figures["doubled"]) == (5, 4)
    assert broken(figures) == ["missing 5", "doubled 4"]


def test_each_reader_has_its_own_stream_to_keep_up_with() -> None:
    figures = seen(totals(last=array("I", [3, 0])), array("I", [3, 0]))
    assert broken(figures) == []


def test_a_reader_costs_the_server_one_end_of_what_the_kernel_holds() -> None:
    before, after = Memory(pss=1000, uss=500), Memory(pss=3000, uss=600)
    figures = held(
        100, after, before, KernelMemory("slabinfo", {"TCP": 900_000}), KernelMemory("slabinfo", {})
    )
    assert figures["user_bytes_per_reader"] == 20
    assert figures["user_bytes_per_reader_unshared"] == 1
    assert figures["kernel_bytes_both_ends"] == 900_000
    assert figures["kernel_bytes_per_reader"] == 4_500
    assert figures["kernel_bytes_by_cache"] == {"TCP": 9_000}
