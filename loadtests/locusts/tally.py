"""Deliveries of a whole crowd in locust's statistics, at the cost of one request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from locust.env import Environment
from locust.stats import RequestStats, bucket_response_time

DELIVERY: Final = "DELIVERY"  # what locust calls the method, in its tables and files


def count(
    environment: Environment,
    method: str,
    name: str,
    late_s: float,
    error: Exception | None = None,
    *,
    size: int = 0,
) -> None:
    """Count one request, or whatever else is to stand in the tables; with an error, as failed."""
    environment.events.request.fire(  # type: ignore[no-untyped-call]
        request_type=method,
        name=name,
        response_time=late_s * 1000,
        response_length=size,
        exception=error,
        context={},
    )


def tally(stats: RequestStats, name: str, times_ms: Sequence[float]) -> None:
    """Count a delivery for each time, as `RequestStats.log_request` would one by one.

    One by one, 20,000 readers take a quarter of a second of the core that also reads for them.
    """
    if not times_ms:
        return
    first, *more = times_ms
    buckets = Counter(map(bucket_response_time, more))
    for entry in (stats.total, stats.get(name, DELIVERY)):
        entry.log(first, 0)  # type: ignore[arg-type]  # the moment of all of them, too
        assert entry.last_request_timestamp is not None
        assert entry.min_response_time is not None
        entry.num_requests += len(more)
        entry.num_reqs_per_sec[int(entry.last_request_timestamp)] += len(more)
        entry.total_response_time += sum(more)  # type: ignore[assignment]
        entry.min_response_time = min(entry.min_response_time, *times_ms)  # type: ignore[assignment]
        entry.max_response_time = max(entry.max_response_time, *times_ms)  # type: ignore[assignment]
        for bucket, count in buckets.items():
            entry.response_times[bucket] += count
