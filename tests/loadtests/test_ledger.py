"""The check that every acknowledged append is stored once and in order."""

import pytest

from loadtests.ledger import Audit, Sent, audit

A, B = 1, 2


@pytest.mark.parametrize(
    ("sent", "stored", "found"),
    [
        pytest.param(
            {A: Sent(2), B: Sent(1)},
            [(A, 0), (B, 0), (A, 1)],
            Audit(acknowledged=3, stored=3, lost=0, doubled=0, reordered=0, foreign=0),
            id="all-once-in-order",
        ),
        pytest.param({A: Sent(3)}, [(A, 0), (A, 2)], Audit(3, 2, 1, 0, 0, 0), id="lost-between"),
        pytest.param({A: Sent(3)}, [(A, 0), (A, 1)], Audit(3, 2, 1, 0, 0, 0), id="lost-at-the-end"),
        pytest.param({A: Sent(2)}, [], Audit(2, 0, 2, 0, 0, 0), id="lost-all"),
        pytest.param(
            {A: Sent(2)}, [(A, 0), (A, 1), (A, 0)], Audit(2, 3, 0, 1, 0, 0), id="doubled-later"
        ),
        pytest.param(
            {A: Sent(2)}, [(A, 0), (A, 0), (A, 1)], Audit(2, 3, 0, 1, 0, 0), id="doubled-at-once"
        ),
        pytest.param({A: Sent(2)}, [(A, 1), (A, 0)], Audit(2, 2, 0, 0, 1, 0), id="reordered"),
        pytest.param(
            {A: Sent(2)}, [(A, 1), (A, 0), (A, 0)], Audit(2, 3, 0, 1, 1, 0), id="both-of-these"
        ),
        pytest.param({A: Sent(1)}, [(A, 0), (A, 1)], Audit(1, 2, 0, 0, 0, 1), id="never-sent"),
        pytest.param({A: Sent(1)}, [(A, 0), (B, 0)], Audit(1, 2, 0, 0, 0, 1), id="unknown-sender"),
        pytest.param(
            {A: Sent(3, unknown={1})},
            [(A, 0), (A, 2)],
            Audit(2, 2, 0, 0, 0, 0),
            id="unanswered-gone",
        ),
        pytest.param(
            {A: Sent(3, unknown={1, 2})},
            [(A, 0), (A, 1)],
            Audit(1, 2, 0, 0, 0, 0),
            id="unanswered-stored-or-not",
        ),
        pytest.param(
            {A: Sent(2, unknown={1})},
            [(A, 0), (A, 1), (A, 1)],
            Audit(1, 3, 0, 1, 0, 0),
            id="unanswered-doubled",
        ),
    ],
)
def test_audit_counts(sent: dict[int, Sent], stored: list[tuple[int, int]], found: Audit) -> None:
    assert audit(sent, stored) == found


@pytest.mark.parametrize(
    "found",
    [
        Audit(2, 1, 1, 0, 0, 0),
        Audit(2, 3, 0, 1, 0, 0),
        Audit(2, 2, 0, 0, 1, 0),
        Audit(2, 3, 0, 0, 0, 1),
    ],
)
def test_any_fault_is_not_clean(found: Audit) -> None:
    assert not found.clean
    assert Audit(2, 2, 0, 0, 0, 0).clean


def test_audits_of_streams_add_up() -> None:
    assert Audit(1, 2, 3, 4, 5, 6) + Audit(10, 20, 30, 40, 50, 60) == Audit(11, 22, 33, 44, 55, 66)
