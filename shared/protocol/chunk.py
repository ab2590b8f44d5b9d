"""Chunk: what one read returns, whoever made it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole messages of a stream, from one offset to another (PROTOCOL §5.6).

    Tokens are opaque here: an edge takes chunks from any server of the protocol.
    """

    content_type: str
    next: str  # token after the body
    body: bytes  # as a read returns it: an array in JSON mode
    empty: bool  # holds no message (an empty JSON array is two bytes)
    at_tail: bool  # nothing lay beyond it when it was made
    closed: bool  # at the tail, and nothing ever will
    etag: str | None  # quoted
    cache_control: str
    ttl_s: int | None = None  # sliding window of the stream: whoever serves readers renews it
    expires_at: str | None = None  # RFC 3339


def chunk_limit(position: int, chunk_bytes: int) -> int:
    """Return the position at which a chunk is full: the next multiple of chunk_bytes.

    A chunk ends at the first append boundary at or after it, so that readers who start anywhere end
    up on the same chunks after one.
    """
    return (position // chunk_bytes + 1) * chunk_bytes
