"""The cache of full chunks stays within its bytes, and lets the least used go first."""

import pytest
from prometheus_client import REGISTRY

from edge.chunks import _OVERHEAD_BYTES, Chunks, Kept
from shared.protocol.chunk import Chunk


def chunk(size: int) -> Chunk:
    return Chunk(
        content_type="text/plain",
        next="x",
        body=bytes(size),
        empty=False,
        at_tail=False,
        closed=False,
        etag=None,
        cache_control="immutable",
    )


def room(chunks: int, size: int = 1000) -> int:
    return chunks * (size + _OVERHEAD_BYTES)


def kept(chunks: Chunks, *names: str) -> list[str]:
    """Return which of names, path and offset in one letter each, are there; uses none of them."""
    return [name for name in names if (name[0], name[1]) in chunks._kept]


def test_chunk_is_there_at_its_path_and_offset_only() -> None:
    chunks = Chunks(room(3))
    one = chunk(1000)
    chunks.put("a", "1", one, 5.0)
    assert chunks.get("a", "1") == Kept(one, 5.0)
    assert chunks.get("a", "2") is None
    assert chunks.get("b", "1") is None


def test_least_recently_used_leaves_first() -> None:
    chunks = Chunks(room(3))
    for name in ("a1", "a2", "b1"):
        chunks.put(name[0], name[1], chunk(1000), 0.0)
    chunks.get("a", "1")
    chunks.put("c", "1", chunk(1000), 0.0)
    assert kept(chunks, "a1", "a2", "b1", "c1") == ["a1", "b1", "c1"]


def test_large_chunk_makes_as_many_leave_as_it_needs() -> None:
    chunks = Chunks(room(4))
    for name in ("a1", "a2", "a3", "a4"):
        chunks.put(name[0], name[1], chunk(1000), 0.0)
    chunks.put("b", "1", chunk(3000), 0.0)
    assert kept(chunks, "a1", "a2", "a3", "a4", "b1") == ["a3", "a4", "b1"]


@pytest.mark.parametrize("size", [0, 1, 1000, 5000])
def test_bytes_stay_within_the_bound_whatever_is_put(size: int) -> None:
    bound = room(3)
    chunks = Chunks(bound)
    for number in range(100):
        chunks.put("a", str(number), chunk(size + number), 0.0)
        assert chunks._bytes <= bound
        assert chunks._bytes == sum(
            len(held.chunk.body) + _OVERHEAD_BYTES for held in chunks._kept.values()
        )
    assert REGISTRY.get_sample_value("headwater_edge_chunk_bytes") == chunks._bytes


def test_tiny_chunks_are_not_free() -> None:
    chunks = Chunks(10 * _OVERHEAD_BYTES)
    for number in range(100):
        chunks.put("a", str(number), chunk(0), 0.0)
    assert len(chunks._kept) == 10


@pytest.mark.parametrize("bound", [0, 1, room(1) - 1])
def test_chunk_over_the_whole_bound_is_not_kept_and_costs_nobody_a_place(bound: int) -> None:
    chunks = Chunks(bound)
    chunks.put("a", "1", chunk(1000), 0.0)
    assert chunks.get("a", "1") is None
    assert chunks._bytes == 0


def test_chunk_of_the_bound_itself_is_kept() -> None:
    chunks = Chunks(room(1))
    chunks.put("a", "1", chunk(1000), 0.0)
    chunks.put("a", "2", chunk(1000), 0.0)
    assert kept(chunks, "a1", "a2") == ["a2"]


def test_chunk_put_twice_counts_once() -> None:
    chunks = Chunks(room(2))
    first = chunk(1000)
    for _ in range(5):
        chunks.put("a", "1", first, 0.0)
    chunks.put("a", "2", chunk(1000), 0.0)
    assert kept(chunks, "a1", "a2") == ["a1", "a2"]


def test_chunk_put_again_takes_the_place_of_what_was_there() -> None:
    chunks = Chunks(room(2))
    chunks.put("a", "1", chunk(1000), 1.0)
    chunks.put("a", "1", chunk(500), 2.0)
    assert chunks.get("a", "1") == Kept(chunk(500), 2.0)
    assert chunks._bytes == room(1, 500)


def test_drop_forgets_one_path() -> None:
    chunks = Chunks(room(4))
    for name in ("a1", "a2", "b1"):
        chunks.put(name[0], name[1], chunk(1000), 0.0)
    chunks.drop("a")
    chunks.drop("not there")
    assert kept(chunks, "a1", "a2", "b1") == ["b1"]
    assert chunks._bytes == room(1)


def test_path_is_forgotten_with_its_last_chunk() -> None:
    chunks = Chunks(room(1))
    for number in range(1000):
        chunks.put(f"path-{number}", "1", chunk(1000), 0.0)
    assert list(chunks._streams) == ["path-999"]
