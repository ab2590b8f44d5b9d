"""Reads start and end on append boundaries, and find every byte in between."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from origin.extents import Slice, boundary_at_or_after, boundary_at_or_before, cut, within
from origin.journal import Extent


def make(start: int, *sizes: int) -> Extent:
    return Extent(start, lsn=1, at=0, sizes=sizes, crc=0)


@st.composite
def stretches(draw: st.DrawFn) -> list[Extent]:
    """Return extents one after the other, as a stream has them."""
    position = draw(st.integers(0, 20))
    found = []
    for sizes in draw(
        st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=6)
    ):
        found.append(make(position, *sizes))
        position += sum(sizes)
    return found


def boundaries(extents: list[Extent]) -> list[int]:
    found = [extents[0].start]
    for extent in extents:
        for size in extent.sizes:
            found.append(found[-1] + size)
    return found


@settings(deadline=None)
@given(stretches(), st.data())
def test_within_finds_those_that_hold_any_of_the_positions(
    extents: list[Extent], data: st.DataObject
) -> None:
    low, high = extents[0].start, extents[-1].end
    start = data.draw(st.integers(low, high - 1))
    end = data.draw(st.integers(start + 1, high))
    found = list(within(extents, start, end))
    assert found == [e for e in extents if e.start < end and start < e.end]


@settings(deadline=None)
@given(stretches(), st.integers(0, 99), st.integers(1, 99))
def test_within_misses_none_where_extents_do_not_cover_all(
    extents: list[Extent], start: int, size: int
) -> None:
    found = list(within(extents, start, start + size))
    assert found == [e for e in extents if e in found]
    assert all(e in found for e in extents if e.start < start + size and start < e.end)


def test_within_nothing_is_nothing() -> None:
    assert list(within([], 0, 10)) == []


@settings(deadline=None)
@given(stretches(), st.data())
def test_boundary_is_the_first_at_or_after_the_position(
    extents: list[Extent], data: st.DataObject
) -> None:
    edges = boundaries(extents)
    position = data.draw(st.integers(edges[0], edges[-1]))
    until = data.draw(st.integers(position, edges[-1]))
    expected = min(min(edge for edge in edges if edge >= position), until)
    assert boundary_at_or_after(extents, position, until) == expected
    # The one extent around the position is enough, as the index gives it.
    around = within(extents, position, position + 1)
    assert boundary_at_or_after(around, position, until) == expected


@pytest.mark.parametrize(
    ("position", "until", "expected"),
    [
        pytest.param(10, 30, 10, id="at-the-start"),
        pytest.param(11, 30, 13, id="inside-the-first-append"),
        pytest.param(13, 30, 13, id="between-two-appends"),
        pytest.param(14, 30, 18, id="inside-the-last-append-of-an-extent"),
        pytest.param(18, 30, 18, id="between-two-extents"),
        pytest.param(19, 30, 20, id="inside-the-next-extent"),
        pytest.param(14, 16, 16, id="a-fork-point-inside-an-append-ends-it"),
        pytest.param(20, 20, 20, id="at-the-end"),
    ],
)
def test_boundary(position: int, until: int, expected: int) -> None:
    assert boundary_at_or_after([make(10, 3, 5), make(18, 2)], position, until) == expected


@settings(deadline=None)
@given(stretches(), st.data())
def test_beginning_is_the_last_boundary_at_or_before_the_position(
    extents: list[Extent], data: st.DataObject
) -> None:
    edges = boundaries(extents)
    position = data.draw(st.integers(edges[0], edges[-1] - 1))
    low = data.draw(st.integers(edges[0], position))
    expected = max(max(edge for edge in edges if edge <= position), low)
    assert boundary_at_or_before(extents, position, low) == expected
    # The one extent around the position is enough, as the index gives it.
    around = within(extents, position, position + 1)
    assert boundary_at_or_before(around, position, low) == expected


@pytest.mark.parametrize(
    ("position", "low", "expected"),
    [
        pytest.param(10, 0, 10, id="at-the-start"),
        pytest.param(11, 0, 10, id="one-past-an-offset-as-yjs-providers-ask"),
        pytest.param(13, 0, 13, id="between-two-appends"),
        pytest.param(17, 0, 13, id="at-the-end-of-the-last-append-of-an-extent"),
        pytest.param(18, 0, 18, id="between-two-extents"),
        pytest.param(16, 15, 15, id="a-fork-point-inside-an-append-begins-what-is-after-it"),
    ],
)
def test_beginning(position: int, low: int, expected: int) -> None:
    assert boundary_at_or_before([make(10, 3, 5), make(18, 2)], position, low) == expected


def test_boundary_where_nothing_is_stored_is_the_end_of_the_range() -> None:
    assert boundary_at_or_after([], 5, 9) == 9


@settings(deadline=None)
@given(stretches(), st.data())
def test_pieces_are_exactly_the_positions_asked_for(
    extents: list[Extent], data: st.DataObject
) -> None:
    low, high = extents[0].start, extents[-1].end
    start = data.draw(st.integers(low, high))
    end = data.draw(st.integers(start, high))
    pieces = cut(extents, start, end)
    assert all(piece.size > 0 for piece in pieces)
    positions = [
        piece.extent.start + piece.skip + at for piece in pieces for at in range(piece.size)
    ]
    assert positions == list(range(start, end))
    for piece in pieces:
        whole = start <= piece.extent.start and piece.extent.end <= end
        assert piece.whole is whole


def test_pieces_of_parts() -> None:
    first, second = make(10, 3, 5), make(18, 2)
    assert cut([first, second], 12, 19) == [Slice(first, 2, 6), Slice(second, 0, 1)]
    assert cut([first, second], 10, 20) == [Slice(first, 0, 8), Slice(second, 0, 2)]
    assert cut([first, second], 18, 18) == []


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(9, 12, id="before-the-first"),
        pytest.param(19, 21, id="past-the-last"),
        pytest.param(12, 25, id="across-a-gap"),
    ],
)
def test_bytes_that_are_not_there_are_never_left_out_in_silence(start: int, end: int) -> None:
    with pytest.raises(AssertionError):
        cut([make(10, 3, 5), make(18, 2), make(24, 1)], start, end)
