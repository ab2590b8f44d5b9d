"""Seats: what is known of a descriptor is its own, whoever had its number before."""

from __future__ import annotations

import random

import pytest

from edge import seats as states
from edge.seats import NEVER, Party, Seats


def taken(*fds: int, due_s: float = NEVER) -> Seats:
    seats = Seats()
    for fd in fds:
        seats.take(fd, states.HEAD, due_s)
    return seats


def test_seat_is_found_for_any_descriptor_and_is_free_again_afterwards() -> None:
    seats = taken(7, 10_000, 3)
    assert [seats.state[fd] for fd in (3, 4, 7, 9_999, 10_000)] == [1, 0, 1, 0, 1]
    seats.free(7)
    assert seats.taken == 2
    seats.take(7, states.ASKED, 5.0)
    assert (seats.state[7], seats.due_s[7], seats.taken) == (states.ASKED, 5.0, 3)


@pytest.mark.parametrize("misuse", [lambda s: s.take(7, states.HEAD, NEVER), lambda s: s.free(8)])
def test_seat_that_is_taken_twice_or_freed_for_nothing_is_our_mistake(misuse: object) -> None:
    seats = taken(7, 8)
    seats.free(8)
    assert callable(misuse)
    with pytest.raises(AssertionError):
        misuse(seats)


def test_seat_in_a_party_is_not_free() -> None:
    seats, party = taken(7), Party()
    seats.join(7, party)
    with pytest.raises(AssertionError):
        seats.free(7)
    with pytest.raises(AssertionError):
        seats.join(7, Party())


def test_who_leaves_and_comes_back_to_a_party_is_there_once_and_last() -> None:
    seats, party = taken(1, 2, 3), Party()
    for fd in (1, 2, 3):
        seats.join(fd, party)
    assert seats.leave(1) is party
    assert seats.leave(1) is None
    seats.join(1, party)
    assert (seats.members(party), party.count) == ([2, 3, 1], 3)


def test_who_leaves_while_the_others_are_gone_through_is_skipped() -> None:
    seats, party, seen = taken(*range(10)), Party(), []
    for fd in range(10):
        seats.join(fd, party)
    for _, fd in seats.places(party):
        seen.append(fd)
        if fd == 4:
            seats.leave(6)
            seats.join(6, Party())
    assert seen == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_deadlines_are_found_once_they_are_over_and_not_before() -> None:
    seats = taken(1, 2, 3, due_s=10.0)
    seats.wait_until(2, 20.0)
    assert seats.due(9.9) == []
    assert seats.due(10.0) == [1, 3]
    seats.wait_until(1, NEVER)
    seats.wait_until(3, 15.0)
    assert seats.due(14.0) == []
    assert seats.due(25.0) == [2, 3]


def test_look_for_deadlines_costs_nothing_while_there_can_be_none() -> None:
    seats = Seats()
    for fd in range(100):
        seats.take(fd, states.PARKED, 50.0 + fd)
    assert seats.due(10.0) == []
    seats.due_s = None  # type: ignore[assignment]  # a look at it would fail
    for now_s in range(11, 50):
        assert seats.due(now_s) == []


@pytest.mark.parametrize("seed", range(10))
def test_parties_agree_with_plain_lists_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    seats = Seats()
    parties = [Party() for _ in range(4)]
    expected: list[list[int]] = [[] for _ in parties]
    for _ in range(3000):
        fd = chance.randrange(60)
        number = next((n for n, members in enumerate(expected) if fd in members), None)
        if fd >= len(seats.state) or seats.state[fd] == states.FREE:
            seats.take(fd, states.PARKED, NEVER)
        elif number is not None:
            assert seats.leave(fd) is parties[number]
            expected[number].remove(fd)
            seats.tidy(parties[number])
        elif chance.random() < 0.3:
            seats.free(fd)
        else:
            number = chance.randrange(len(parties))
            seats.join(fd, parties[number])
            expected[number].append(fd)
        assert [seats.members(party) for party in parties] == expected
        assert [party.count for party in parties] == [len(members) for members in expected]
    assert all(len(party.fds) < 2 * party.count + 40 for party in parties)
