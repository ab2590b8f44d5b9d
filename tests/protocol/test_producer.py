"""Which batches of a producer are new, old, early or from a dead life (PROTOCOL §5.2.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.errors import EpochStart, ProtocolError, SequenceGap, StaleEpoch
from shared.protocol.producer import Duplicate, New, ProducerState, admit

KNOWN = ProducerState(epoch=3, last_seq=5)
MAX = 2**53 - 1


@pytest.mark.parametrize(
    ("state", "epoch", "seq", "expected"),
    [
        pytest.param(None, 0, 0, New(ProducerState(0, 0)), id="first-contact"),
        pytest.param(None, 7, 0, New(ProducerState(7, 0)), id="first-contact-at-any-epoch"),
        pytest.param(None, MAX, 0, New(ProducerState(MAX, 0)), id="largest-epoch"),
        pytest.param(KNOWN, 3, 6, New(ProducerState(3, 6)), id="next-batch"),
        pytest.param(KNOWN, 3, 5, Duplicate(KNOWN), id="last-batch-again"),
        pytest.param(KNOWN, 3, 0, Duplicate(KNOWN), id="first-batch-again"),
        pytest.param(KNOWN, 4, 0, New(ProducerState(4, 0)), id="next-epoch"),
        pytest.param(KNOWN, 9, 0, New(ProducerState(9, 0)), id="epochs-may-be-skipped"),
        pytest.param(
            ProducerState(0, MAX - 1), 0, MAX, New(ProducerState(0, MAX)), id="largest-seq"
        ),
    ],
)
def test_batch_is_new_or_a_duplicate(
    state: ProducerState | None, epoch: int, seq: int, expected: New | Duplicate
) -> None:
    assert admit(state, epoch, seq) == expected


@pytest.mark.parametrize(
    ("state", "epoch", "seq", "refusal", "headers"),
    [
        pytest.param(
            None,
            0,
            1,
            SequenceGap,
            {"Producer-Expected-Seq": "0", "Producer-Received-Seq": "1"},
            id="first-contact-late",
        ),
        pytest.param(
            KNOWN,
            3,
            7,
            SequenceGap,
            {"Producer-Expected-Seq": "6", "Producer-Received-Seq": "7"},
            id="gap-of-one",
        ),
        pytest.param(
            KNOWN,
            3,
            MAX,
            SequenceGap,
            {"Producer-Expected-Seq": "6", "Producer-Received-Seq": str(MAX)},
            id="huge-gap",
        ),
        pytest.param(KNOWN, 2, 0, StaleEpoch, {"Producer-Epoch": "3"}, id="stale-epoch"),
        pytest.param(KNOWN, 0, 6, StaleEpoch, {"Producer-Epoch": "3"}, id="stale-with-next-seq"),
        pytest.param(KNOWN, 2, MAX, StaleEpoch, {"Producer-Epoch": "3"}, id="stale-before-gap"),
        pytest.param(KNOWN, 4, 1, EpochStart, {}, id="new-epoch-late"),
        pytest.param(KNOWN, 4, 6, EpochStart, {}, id="new-epoch-goes-on-counting"),
    ],
)
def test_batch_is_refused(
    state: ProducerState | None,
    epoch: int,
    seq: int,
    refusal: type[ProtocolError],
    headers: dict[str, str],
) -> None:
    with pytest.raises(refusal) as refused:
        admit(state, epoch, seq)
    assert refused.value.headers() == headers


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=60))
def test_each_batch_of_the_newest_life_is_taken_once_and_in_order(
    requests: list[tuple[int, int]],
) -> None:
    state: ProducerState | None = None
    taken: list[tuple[int, int]] = []
    for epoch, seq in requests:
        try:
            verdict = admit(state, epoch, seq)
        except ProtocolError:
            continue
        if isinstance(verdict, Duplicate):
            assert (epoch, seq) in taken
            assert verdict.state == state
        else:
            taken.append((epoch, seq))
            assert verdict.state == ProducerState(epoch, seq)
        state = verdict.state
    assert taken == sorted(set(taken))
    for epoch in {epoch for epoch, _ in taken}:
        seqs = [seq for life, seq in taken if life == epoch]
        assert seqs == list(range(len(seqs)))
