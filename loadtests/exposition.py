"""What servers tell of themselves, in Prometheus' text format."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

# By process, then by the upper bound of a bucket: observations up to it.
Histograms = Mapping[str, Mapping[float, float]]


def counter_sum(exposition: str, name: str) -> float | None:
    """Sum the samples of one metric in Prometheus' text format; None if it is not defined there."""
    sample = re.compile(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)", re.MULTILINE)
    values = [float(value) for value in sample.findall(exposition)]
    return sum(values) if values or f"# TYPE {name} " in exposition else None


def histograms(exposition: str, name: str) -> Histograms:
    """Return the buckets of one histogram, by the label `process`; "" where there is none."""
    found: defaultdict[str, dict[float, float]] = defaultdict(dict)
    sample = re.compile(rf"^{re.escape(name)}_bucket\{{(.*)\}} (\S+)", re.MULTILINE)
    for labels, value in sample.findall(exposition):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[pairs.get("process", "")][float(pairs["le"])] = float(value)
    return found


def grown(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """Return the observations since; all of them, if the process has been started anew."""
    if any(before.get(bound, 0.0) > count for bound, count in after.items()):
        return dict(after)
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def bucket_percentile(buckets: Mapping[float, float], share: float) -> float | None:
    """Return the bound below which at least this share was observed; None if nothing was.

    The truth is below it, and above the bound before it.
    """
    total = max(buckets.values(), default=0.0)
    if not total:
        return None
    return min(bound for bound, count in buckets.items() if count >= share * total)
