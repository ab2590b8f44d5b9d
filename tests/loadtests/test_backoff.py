"""When a lost reader comes again."""

import pytest

from loadtests.backoff import MOST_S, delay_s


def test_the_whole_wait_is_diced() -> None:
    assert delay_s(0, 0.0) == 0.0
    assert delay_s(0, 0.5, first_s=8.0) == 4.0


def test_each_try_waits_up_to_twice_as_long_but_not_for_ever() -> None:
    assert [delay_s(tries, 1.0, first_s=1.0) for tries in range(6)] == [1, 2, 4, 8, MOST_S, MOST_S]
    assert delay_s(255, 1.0) == MOST_S


def test_a_spread_beyond_the_bound_is_kept() -> None:
    assert delay_s(3, 1.0, first_s=30.0) == 30.0


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_what_the_server_asked_for_comes_first(dice: float) -> None:
    assert delay_s(0, dice, first_s=1.0, retry_after_s=5.0) == 5.0 + dice
