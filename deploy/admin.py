"""Admin: health and metrics of all processes of one service, and what its origin lists, on one
port."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from yarl import URL

from deploy.merge import merge
from shared.config import ORIGIN

_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)


@dataclass(slots=True)
class Admin:
    """Asks every process over its own socket."""

    sockets: Mapping[str, Path]  # by role
    prefix: str  # where streams are listed
    draining: bool = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer /healthz, /readyz, /metrics, and the origin's pages."""
        match request.path:
            case "/healthz" | "/health":
                return _text(200, "ok\n")
            case "/readyz":
                return await self._readiness()
            case "/metrics":
                return await self._metrics()
            case "/usage" | self.prefix if request.method == "GET":
                status, text = await self._ask(self.sockets[ORIGIN], request.rel_url.raw_path_qs)
                response = _text(status, text)
                response.content_type = "application/json"
                return response
            case _:
                return _text(404, "only /healthz, /readyz, /metrics, /usage and the streams\n")

    async def _readiness(self) -> web.Response:
        if self.draining:
            return _text(503, "draining\n")
        answers = await self._ask_all("/readyz")
        missing = [role for role, (status, _) in answers.items() if status != 200]
        if missing:
            return _text(503, f"not ready: {', '.join(missing)}\n")
        return _text(200, "ready\n")

    async def _metrics(self) -> web.Response:
        answers = await self._ask_all("/metrics")
        page = merge({role: text for role, (status, text) in answers.items() if status == 200})
        response = web.Response(text=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
        # Where the scraper takes it: the pages of many processes are much alike.
        response.enable_compression()
        return response

    async def _ask_all(self, path: str) -> dict[str, tuple[int, str]]:
        answers = await asyncio.gather(*(self._ask(sock, path) for sock in self.sockets.values()))
        return dict(zip(self.sockets, answers, strict=True))

    async def _ask(self, sock: Path, path: str) -> tuple[int, str]:
        connector = aiohttp.UnixConnector(str(sock))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
                session.get(URL(f"http://admin{path}", encoded=True)) as reply,
            ):
                return reply.status, await reply.text()
        except (aiohttp.ClientError, TimeoutError):
            return 503, ""


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers={"Cache-Control": "no-store"})
