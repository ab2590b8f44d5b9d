"""Lines and batches, however standard input arrives."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.client.batches import batched, lines_of


def lines(pieces: Sequence[bytes]) -> list[bytes]:
    return [line for line in lines_of(pieces) if line is not None]


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"a\nb", b"\n\n"])))
def test_lines_do_not_depend_on_how_they_arrive(pieces: list[bytes]) -> None:
    assert lines(pieces) == b"".join(pieces).splitlines(keepends=True) or b"\r" in b"".join(pieces)
    assert b"".join(lines(pieces)) == b"".join(pieces)


@given(st.lists(st.sampled_from([b"a", b"\n", b"a\nb", b"\n\n"])), st.integers(1, 4))
def test_batches_that_are_not_eager_do_not_depend_on_how_lines_arrive(
    pieces: list[bytes], count: int
) -> None:
    cut_by_arrival = list(batched(lines_of(pieces), count, eager=False))
    assert cut_by_arrival == list(batched(lines_of([b"".join(pieces)]), count, eager=False))
    assert all(len(batch) == count for batch in cut_by_arrival[:-1])


@given(st.lists(st.sampled_from([b"a", b"\n", b"a\nb", b"\n\n"])), st.integers(1, 4))
def test_eager_batches_have_every_line_that_has_arrived(pieces: list[bytes], count: int) -> None:
    seen: list[bytes] = []

    def arriving() -> Iterator[bytes]:
        for arrived in range(len(pieces)):
            assert b"".join(seen) == whole_lines(pieces[:arrived])
            yield pieces[arrived]

    for batch in batched(lines_of(arriving()), count, eager=True):
        seen += batch
        assert len(batch) <= count
    assert b"".join(seen) == b"".join(pieces)


def whole_lines(pieces: Sequence[bytes]) -> bytes:
    text = b"".join(pieces)
    return text[: text.rfind(b"\n") + 1]


def test_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.client.batches.BATCH_BYTES", 10)
    found = list(batched([b"x" * 4, b"x" * 4, b"x" * 4, b"y" * 99, b"z"], 100, eager=False))
    assert [[len(line) for line in batch] for batch in found] == [[4, 4], [4], [99], [1]]
