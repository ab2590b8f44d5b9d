"""The check that every reader sees every wave once."""

from array import array

import pytest

from loadtests.history import History

FIRST, SECOND = 5, 9  # readers are known by their descriptors


def test_a_wave_is_reported_when_the_last_reader_has_it() -> None:
    history = History(readers=2)
    assert history.see(FIRST, 1, at=10.0) is None
    assert history.see(SECOND, 1, at=11.0) == array("d", [10.0, 11.0])
    assert (history.lost, history.doubled) == (0, 0)


def test_waves_may_overlap() -> None:
    history = History(readers=2)
    history.see(FIRST, 1, at=1.0)
    assert history.see(FIRST, 2, at=2.0) is None
    assert history.see(SECOND, 1, at=3.0) == array("d", [1.0, 3.0])
    assert history.see(SECOND, 2, at=4.0) == array("d", [2.0, 4.0])


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
    history = History(readers=1)
    for wave in waves:
        history.see(FIRST, wave, at=0.0)
    assert (history.lost, history.doubled) == (lost, doubled)


def test_a_doubled_wave_does_not_stand_for_another_reader() -> None:
    history = History(readers=2)
    history.see(FIRST, 1, at=1.0)
    assert history.see(FIRST, 1, at=2.0) is None


def test_readers_that_saw_nothing_count_as_behind() -> None:
    history = History(readers=3)
    history.see(FIRST, 1, at=1.0)
    history.see(FIRST, 2, at=1.0)
    assert history.last_waves([FIRST, 3, SECOND]) == {2: 1, 0: 2}
