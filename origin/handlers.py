"""One coroutine per method: parse, do, respond."""

from dataclasses import dataclass

from aiohttp import web

from origin.reads import Reads
from origin.streams import Streams
from shared import metrics
from shared.protocol import reply
from shared.protocol.errors import MethodNotAllowed
from shared.protocol.request import (
    parse_append,
    parse_create,
    parse_path,
    parse_read,
)
from shared.reading import Reading
from shared.web import Bodies, base_url, respond


@dataclass(frozen=True, slots=True)
class Handlers:
    """The protocol over HTTP, at the origin."""

    streams: Streams
    reads: Reads
    reading: Reading
    prefix: str
    public_url: str | None
    bodies: Bodies

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/health":
            return respond(reply.alive())
        path = parse_path(request.rel_url.raw_path, self.prefix)
        match request.method:
            case "GET":
                return await self._read(request, path)
            case "POST":
                return await self._append(request, path)
            case "HEAD":
                return respond(reply.head(await self.reads.head(path)))
            case "PUT":
                return await self._create(request, path)
            case "DELETE":
                await self.streams.delete(path)
                return respond(reply.deleted())
            case method:
                raise MethodNotAllowed(method, "GET, POST, PUT, DELETE, HEAD, OPTIONS")

    async def _read(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        asked = parse_read(request.rel_url.raw_query_string, request.headers)
        metrics.ORIGIN_READS.labels(asked.live.value if asked.live else "catch-up").inc()
        return await self.reading.handle(request, path, asked)

    async def _append(self, request: web.BaseRequest, path: str) -> web.Response:
        self.streams.check_room()  # before the body takes any
        body = await self.bodies.read(request)
        try:
            asked = parse_append(request.headers, body)
            outcome = await self.streams.append(path, asked)
        finally:
            self.bodies.release(body)
        return respond(reply.appended(asked, outcome))

    async def _create(self, request: web.BaseRequest, path: str) -> web.Response:
        self.streams.check_room()
        body = await self.bodies.read(request)
        try:
            asked = parse_create(request.headers, body, self.prefix)
            state, fresh = await self.streams.create(path, asked)
        finally:
            self.bodies.release(body)
        location = base_url(request, self.public_url) + request.rel_url.raw_path
        return respond(reply.created(state, fresh=fresh, location=location))
