"""One service for the tests of a worker, with each of the caches before it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest

from tests.cdn.behind import EDGES, Behind
from tests.cdn.caches import CACHES, port_of
from tests.deploy.up import admin_url, start
from tests.http.api import ANSWER_TIMEOUT_S
from tests.service import Service
from tests.session import quiet_session

LONG_POLL_S = "3"  # time for 500 readers to ask, and not long to wait for a 204


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that the workers of a cache, who are nobody, can reach; pytest's own they can't."""
    with TemporaryDirectory(prefix="headwater-cdn-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Service]:
    with start(
        folder / "data", "--edges", str(EDGES), "--long-poll-timeout-s", LONG_POLL_S
    ) as running:
        yield running


@pytest.fixture(scope="session")
def nginx_url(folder: Path, service: Service) -> Iterator[str]:
    with CACHES["nginx"](folder / "nginx", port_of(service.url)) as url:
        yield url


@pytest.fixture(scope="session")
def varnish_url(folder: Path, service: Service) -> Iterator[str]:
    with CACHES["varnish"](folder / "varnish", port_of(service.url)) as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that connects as often as it likes, and says nothing of its own accord."""
    async with quiet_session(
        aiohttp.ClientTimeout(total=None, sock_read=2 * ANSWER_TIMEOUT_S)
    ) as client:
        yield client


@pytest.fixture(params=sorted(CACHES))
def behind(
    request: pytest.FixtureRequest, service: Service, session: aiohttp.ClientSession
) -> Behind:
    """The service, by way of each cache."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return Behind(request.param, url, service.url, admin_url(service), session)
