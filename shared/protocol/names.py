"""Header and query names of the protocol, its sentinels, and the limits that bound a request."""

from typing import Final

# Headers (PROTOCOL §13.2), in the spelling in which we send them.
STREAM_TTL: Final = "Stream-TTL"
STREAM_EXPIRES_AT: Final = "Stream-Expires-At"
STREAM_SEQ: Final = "Stream-Seq"
STREAM_CURSOR: Final = "Stream-Cursor"
STREAM_NEXT_OFFSET: Final = "Stream-Next-Offset"
STREAM_UP_TO_DATE: Final = "Stream-Up-To-Date"
STREAM_CLOSED: Final = "Stream-Closed"
STREAM_FORKED_FROM: Final = "Stream-Forked-From"
STREAM_FORK_OFFSET: Final = "Stream-Fork-Offset"
STREAM_FORK_SUB_OFFSET: Final = "Stream-Fork-Sub-Offset"
STREAM_RETENTION_AGE: Final = "Stream-Retention-Age"  # this and the next two are ours
STREAM_RETENTION_BYTES: Final = "Stream-Retention-Bytes"
STREAM_EARLIEST_OFFSET: Final = "Stream-Earliest-Offset"
SSE_DATA_ENCODING: Final = "Stream-SSE-Data-Encoding"
PRODUCER_ID: Final = "Producer-Id"
PRODUCER_EPOCH: Final = "Producer-Epoch"
PRODUCER_SEQ: Final = "Producer-Seq"
PRODUCER_EXPECTED_SEQ: Final = "Producer-Expected-Seq"
PRODUCER_RECEIVED_SEQ: Final = "Producer-Received-Seq"

# Query parameters. Unknown ones never change an answer (§11.1: clients add their own).
OFFSET: Final = "offset"
LIVE: Final = "live"
CURSOR: Final = "cursor"
KNOWN_QUERY: Final = frozenset({OFFSET, LIVE, CURSOR})

# Sentinels (§8).
BEGINNING: Final = "-1"
NOW: Final = "now"

DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
JSON: Final = "application/json"

# First path segments that are not application streams (§6; the registry is an upstream convention).
RESERVED_SEGMENT: Final = "__ds"
REGISTRY: Final = "__registry__"

# Limits. §8 asks for offsets under 256 characters; the others are ours, with a reason each.
TOKEN_CHARS_MAX: Final = 256
PATH_BYTES_MAX: Final = 1024  # an object-store key has the same bound, and cold chunks go there
CONTENT_TYPE_CHARS_MAX: Final = 256
PRODUCER_ID_CHARS_MAX: Final = 256
STREAM_SEQ_CHARS_MAX: Final = 256
FORK_DEPTH_MAX: Final = 128  # every read of a fork walks its chain
INTEGER_MAX: Final = 2**53 - 1  # §5.2.1: what JavaScript counts exactly
TTL_S_MAX: Final = 100 * 365 * 86_400  # a century; far from where dates overflow
