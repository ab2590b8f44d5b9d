"""The published suite, through each cache."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import pytest

from tests.cdn.caches import Cache, nginx, port_of, varnish
from tests.conformance.suite import run_suite
from tests.conformance.test_suite import SKIPPED_GROUP, TESTS
from tests.deploy.up import start

# A test that reads what it has just written wants reads at the tail that no cache keeps. With the
# defaults, where they are kept for a second, eight of them see it late: deploy/cdn/README.md.
READ_YOUR_WRITES = ("--cache-tail", "no-store", "--cache-live-empty", "no-store")
SUITE_POLLS_S = ("--long-poll-timeout-s", "0.5")
# nginx answers If-None-Match by itself, and only for what it keeps: here it sends all of it.
UNKEPT_IN_FULL = "Caching and ETag should return 304 Not Modified for matching If-None-Match"

# As advised where reads at the tail are not kept: they would wait for each other in vain.
without_lock = partial(nginx, settings={"proxy_cache_lock on;": "proxy_cache_lock off;"})


@pytest.mark.timeout(600)  # an install, if none was made yet, and a run; each has its own bound
@pytest.mark.parametrize(
    ("cache", "failing"),
    [
        pytest.param(without_lock, {UNKEPT_IN_FULL}, id="nginx"),
        pytest.param(varnish, set(), id="varnish"),
    ],
)
def test_published_suite_through_a_cache(cache: Cache, failing: set[str], folder: Path) -> None:
    name = uuid.uuid4().hex
    data = folder / f"{name}-data"
    with (
        start(data, "--edges", "2", *SUITE_POLLS_S, *READ_YOUR_WRITES) as service,
        cache(folder / name, port_of(service.url)) as url,
    ):
        result = run_suite(url)
    failures = {failure.name: str(failure) for failure in result.failed}
    assert failures.keys() == failing, "\n\n".join(failures.values())
    assert result.passed == TESTS - len(failing)
    assert all(name.startswith(SKIPPED_GROUP) for name in result.skipped)
