"""How many processes a crowd takes."""

import math

import pytest

from loadtests.layout import client_shares, edge_readers, edges_for, live_s

LIMIT = 20_000  # descriptors of a process


@pytest.mark.parametrize(
    ("readers", "edges"),
    [
        pytest.param(1, 1, id="one"),
        pytest.param(18_000, 1, id="one-process-holds-them"),
        pytest.param(edge_readers(LIMIT), 1, id="one-process-just-holds-them"),
        pytest.param(edge_readers(LIMIT) + 1, 2, id="one-too-many"),
        pytest.param(1_000_000, 55, id="a-million"),
    ],
)
def test_edges_are_as_few_as_can_hold_the_readers(readers: int, edges: int) -> None:
    assert edges_for(readers, LIMIT) == edges


@pytest.mark.parametrize("readers", [20_000, 100_000, 1_000_000])
def test_an_uneven_share_still_fits(readers: int) -> None:
    share = readers / edges_for(readers, LIMIT)
    assert share + 5 * math.sqrt(share) <= edge_readers(LIMIT)


def test_client_processes_share_evenly_and_none_runs_out_of_descriptors() -> None:
    assert client_shares(18_000, LIMIT) == [18_000]
    assert client_shares(20_000, LIMIT) == [10_000, 10_000]
    assert client_shares(5, LIMIT, at_least=2) == [3, 2]
    shares = client_shares(1_000_000, LIMIT)
    assert sum(shares) == 1_000_000
    assert max(shares) < LIMIT
    assert len(shares) == 51


@pytest.mark.parametrize(("readers", "at_least"), [(0, 1), (1, 2), (10_000_000, 1)])
def test_a_crowd_that_cannot_be_seated_is_refused(readers: int, at_least: int) -> None:
    with pytest.raises(ValueError, match=f"received {readers}"):
        client_shares(readers, LIMIT, at_least)


def test_a_large_crowd_may_wait_longer() -> None:
    assert live_s(1000) == 55
    assert live_s(30_000) == 65
    assert live_s(1_000_000) == 300
