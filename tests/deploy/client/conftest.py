"""A server that follows a script, and none of our own settings."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.deploy.client.script import Script, Serve, Step


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_URL", raising=False)
    monkeypatch.delenv("HEADWATER_TOKEN", raising=False)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts a server with the given steps."""
    async with contextlib.AsyncExitStack() as servers:

        async def start(*steps: Step, port: int | None = None) -> Script:
            script = Script(list(steps))
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", script.answer)
            server = await servers.enter_async_context(TestServer(app, port=port))
            script.url = str(server.make_url("/v1/stream/s"))
            return script

        yield start
