"""Servers that the tests of a worker share; each test has streams of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.http.api import ANSWER_TIMEOUT_S, Server
from tests.service import Service
from tests.session import quiet_session

# Live replies that end soon, for tests of how they end.
BRISK = ["--long-poll-timeout-s", "0.3", "--sse-timeout-s", "0.8", "--sse-heartbeat-s", "0.2"]
# Live replies that do not end within a test: whatever comes, was sent for a reason.
PATIENT = ["--long-poll-timeout-s", "120", "--sse-timeout-s", "120", "--sse-heartbeat-s", "120"]
PORTS = ["--port", "0", "--admin-port", "0", "--drain-s", "0.1"]


@pytest.fixture(scope="session")
def origin_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An origin alone."""
    data = str(tmp_path_factory.mktemp("origin"))
    with Service.start(["origin", *PORTS, *BRISK, "--data-dir", data]) as running:
        yield running


@pytest.fixture(scope="session")
def up_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Origin and edge as one service."""
    data = str(tmp_path_factory.mktemp("up"))
    with Service.start(["up", *PORTS, *BRISK, "--data-dir", data]) as running:
        yield running


@pytest.fixture(scope="session")
def patient_origin_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An origin whose live replies last."""
    data = str(tmp_path_factory.mktemp("patient"))
    with Service.start(["origin", *PORTS, *PATIENT, "--data-dir", data]) as running:
        yield running


@pytest.fixture(scope="session")
def patient_edge_service(patient_origin_service: Service) -> Iterator[Service]:
    """An edge in front of it that has no bus: it follows by polling."""
    upstream = ["--upstream", patient_origin_service.url]
    with Service.start(["edge", *PORTS, *PATIENT, *upstream]) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that says nothing of its own accord, and connects as often as it likes."""
    async with quiet_session(
        aiohttp.ClientTimeout(total=None, sock_read=ANSWER_TIMEOUT_S)
    ) as client:
        yield client


@pytest.fixture(params=["origin", "edge"])
def server(request: pytest.FixtureRequest, session: aiohttp.ClientSession) -> Server:
    """Each test runs against the origin, and through an edge."""
    name = {"origin": "origin_service", "edge": "up_service"}[request.param]
    service: Service = request.getfixturevalue(name)
    return Server(service.url, session)


@pytest.fixture(params=["origin", "edge"])
def patient(request: pytest.FixtureRequest, session: aiohttp.ClientSession) -> Server:
    """The same, where live replies last longer than a test."""
    service: Service = request.getfixturevalue(f"patient_{request.param}_service")
    return Server(service.url, session)
