"""One coroutine per method: reads are answered here, everything else is relayed."""

from dataclasses import dataclass

from aiohttp import web

from edge.lane import Lane
from edge.relay import Relay
from edge.source import EdgeSource
from shared.connection import GivenBack
from shared.plain import Plain
from shared.protocol import reply
from shared.protocol.errors import MethodNotAllowed
from shared.protocol.request import parse_path, parse_read
from shared.reading import Reading
from shared.web import Listener, respond


@dataclass(frozen=True, slots=True)
class Handlers:
    """The protocol over HTTP, at an edge."""

    reading: Reading
    source: EdgeSource
    relay: Relay
    prefix: str
    listener: Listener
    lane: Lane | None  # answers reads itself, and gives the rest to us

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/health":
            return respond(reply.alive())
        path = parse_path(request.rel_url.raw_path, self.prefix)
        match request.method:
            case "GET":
                asked = parse_read(request.rel_url.raw_query_string, request.headers)
                self._give_back(request, Plain(path, asked, keep_alive=True))
                return await self.reading.handle(request, path, asked)
            case "POST" | "PUT" | "HEAD":
                return await self.relay.handle(request)
            case "DELETE":
                response = await self.relay.handle(request)
                self.source.forget(path)
                return response
            case method:
                raise MethodNotAllowed(method, "GET, POST, PUT, DELETE, HEAD, OPTIONS")

    def _give_back(self, request: web.BaseRequest, plain: Plain) -> None:
        """Let the lane answer a read, if the connection can go there: it came here by a write
        before it, or a header that the lane does not know.

        Raises:
            GivenBack: it has gone.
        """
        if self.lane is None:
            return
        sock = self.listener.give_back(request)
        if sock is not None:
            self.lane.take_back(sock, plain)
            raise GivenBack
