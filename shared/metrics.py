"""Every metric, defined once. Base units, bounded labels, never a path."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, and no dashboard asks for them

_FAST = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
)

REQUESTS = Counter("headwater_requests_total", "Requests answered", ["method", "status"])
_COUNTED = ("GET", "POST", "PUT", "HEAD", "DELETE")


@lru_cache(maxsize=1024)  # looking a label up costs as much as counting
def _requests(method: str, status: int) -> Counter:
    return REQUESTS.labels(method if method in _COUNTED else "other", str(status))


def count_requests(method: str, status: int, count: int = 1) -> None:
    """Count requests that were answered; clients may send any method, labels are bounded."""
    _requests(method, status).inc(count)


CONNECTIONS = Gauge("headwater_edge_connections", "Connections that are open")
CONNECTIONS_MAX = Gauge("headwater_edge_connections_max", "Connections that may be open")
FANOUT_SECONDS = Histogram(
    "headwater_edge_fanout_seconds", "From news to the last reader of a group", buckets=_FAST
)
LIVE_READERS = Gauge("headwater_live_readers", "Readers that wait now", ["mode"])
LOOP_DELAY = Histogram(
    "headwater_loop_delay_seconds", "How late the event loop runs its timers", buckets=_FAST
)

COMMIT_SECONDS = Histogram(
    "headwater_origin_commit_seconds", "Write and fsync of one frame", buckets=_FAST
)
COMMIT_RECORDS = Histogram(
    "headwater_origin_commit_records",
    "Records in one frame",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)
COMMITTED = Counter("headwater_origin_committed_records_total", "Records made durable")
COMMITTED_BYTES = Counter("headwater_origin_committed_bytes_total", "Bytes of frames made durable")
UNCHANGED = Counter(
    "headwater_origin_unchanged_total", "Appends that had their effect before: retries, closes"
)
ORIGIN_READS = Counter("headwater_origin_reads_total", "Reads that the origin answered", ["mode"])
STREAMS = Gauge("headwater_origin_streams", "Streams that exist")
LOADED = Counter("headwater_origin_loaded_total", "Streams taken into memory from the index")
EXPIRED = Counter("headwater_origin_expired_total", "Streams that expired")
TRIMMED_BYTES = Counter("headwater_origin_trimmed_bytes_total", "Bytes that retention let go")
PURGES = Counter(
    "headwater_origin_purges_total", "Streams that a CDN was asked to forget", ["outcome"]
)
INDEX_LAG = Gauge("headwater_origin_index_lag_frames", "Durable frames not yet in the index")

WAKES_PUBLISHED = Counter("headwater_wakes_published_total", "Wakes given to the bus")
WAKES_DROPPED = Counter(
    "headwater_wakes_dropped_total", "Wakes that the bus could not take", ["reason"]
)
WAKES_RECEIVED = Counter("headwater_wakes_received_total", "Wakes, by what they told", ["outcome"])
BUS_UP = Gauge("headwater_bus_up", "Whether wakes arrive")

UPSTREAM_READS = Counter(
    "headwater_edge_upstream_reads_total", "Reads of the upstream", ["mode", "outcome"]
)
COALESCED = Counter(
    "headwater_edge_coalesced_reads_total", "Reads that shared another one's upstream read"
)
CHUNK_HITS = Counter("headwater_edge_chunk_hits_total", "Reads answered from the chunk cache")
CHUNK_BYTES = Gauge("headwater_edge_chunk_bytes", "Bytes in the chunk cache")
SLOW_READERS_CLOSED = Counter(
    "headwater_slow_readers_closed_total", "Connections closed as nobody took the reply", ["reason"]
)
TAILS = Gauge("headwater_edge_tails", "Streams whose tail is followed")
RELAYED = Counter("headwater_edge_relayed_total", "Requests passed to the upstream", ["method"])
