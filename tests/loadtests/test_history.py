"""The check that every reader sees every wave once."""

from array import array

import pytest

from loadtests.history import Arrivals, History

FIRST, SECOND = 5, 9  # readers are known by their descriptors


def test_a_wave_is_reported_when_the_last_reader_has_it() -> None:
    arrivals = Arrivals(readers=2)
    assert arrivals.note(1, at=10.0) is None
    assert arrivals.note(1, at=11.0) == array("d", [10.0, 11.0])


def test_waves_may_overlap() -> None:
    arrivals = Arrivals(readers=2)
    arrivals.note(1, at=1.0)
    assert arrivals.note(2, at=2.0) is None
    assert arrivals.note(1, at=3.0) == array("d", [1.0, 3.0])
    assert arrivals.note(2, at=4.0) == array("d", [2.0, 4.0])


@pytest.mark.parametrize(
    ("waves", "lost", "doubled"),
    [
        pytest.param([1, 2, 3], 0, 0, id="each-once"),
        pytest.param([1, 1, 2], 0, 1, id="doubled"),
        pytest.param([1, 3], 1, 0, id="left-out"),
        pytest.param([2, 1], 1, 1, id="late-is-both"),
        pytest.param([4], 3, 0, id="began-too-late"),
    ],
)
def test_faults_are_counted(waves: list[int], lost: int, doubled: int) -> None:
    history = History()
    for wave in waves:
        history.see(FIRST, wave)
    assert (history.lost, history.doubled) == (lost, doubled)


def test_only_news_is_news() -> None:
    history = History()
    assert [history.see(FIRST, wave) for wave in (1, 1, 3, 2)] == [True, False, True, False]


def test_readers_are_apart() -> None:
    history = History()
    assert history.see(FIRST, 1)
    assert history.see(SECOND, 1)
    assert [history.last_wave(reader) for reader in (FIRST, SECOND, 7, 100)] == [1, 1, 0, 0]


def test_a_reader_may_begin_behind_waves_that_others_saw() -> None:
    history = History(seen=7)
    assert history.see(3, 8)
    assert not history.see(2, 7)
    assert [history.last_wave(reader) for reader in (2, 3, 4)] == [7, 8, 7]
    assert (history.lost, history.doubled) == (0, 1)
