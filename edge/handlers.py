"""One coroutine per method: reads are answered here, everything else is relayed."""

from dataclasses import dataclass

from aiohttp import web

from edge.relay import Relay
from edge.source import EdgeSource
from shared.protocol import reply
from shared.protocol.errors import MethodNotAllowed
from shared.protocol.request import parse_path, parse_read
from shared.reading import Reading
from shared.web import respond


@dataclass(frozen=True, slots=True)
class Handlers:
    """The protocol over HTTP, at an edge."""

    reading: Reading
    source: EdgeSource
    relay: Relay
    prefix: str

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/health":
            return respond(reply.alive())
        path = parse_path(request.rel_url.raw_path, self.prefix)
        match request.method:
            case "GET":
                asked = parse_read(request.rel_url.raw_query_string, request.headers)
                return await self.reading.handle(request, path, asked)
            case "POST" | "PUT" | "HEAD":
                return await self.relay.handle(request)
            case "DELETE":
                response = await self.relay.handle(request)
                self.source.forget(path)
                return response
            case method:
                raise MethodNotAllowed(method, "GET, POST, PUT, DELETE, HEAD, OPTIONS")
