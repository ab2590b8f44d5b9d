"""Relay: passes writes, and whatever is no read, to the upstream untouched."""

from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from edge.upstream import BrokeOff, Upstream, outcome_unknown
from shared import metrics
from shared.protocol.reply import COMMON_HEADERS
from shared.web import Bodies, base_url

# Headers of one hop (RFC 9110 §7.6.1); the body goes on with a length of its own.
_HOP: Final = frozenset(
    name.lower()
    for name in (
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Transfer-Encoding",
        "Upgrade",
        "TE",
        "Trailer",
        "Content-Length",
        "Expect",
    )
)
_OURS: Final = frozenset({"date", "server", *(name.lower() for name in COMMON_HEADERS)})


@dataclass(frozen=True, slots=True)
class Relay:
    """The way to the upstream for everything but GET."""

    upstream: Upstream
    bodies: Bodies

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, and its reply back."""
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in _HOP
        )
        # The upstream words Location by the URL that the client used.
        headers["Host"] = request.host
        headers["X-Forwarded-Proto"] = base_url(request, None).partition(":")[0]
        metrics.RELAYED.labels(request.method).inc()
        body = await self.bodies.read(request)
        try:
            return await self._pass_on(request, headers, body or None)
        finally:
            self.bodies.release(body)

    async def _pass_on(
        self, request: web.BaseRequest, headers: CIMultiDict[str], body: bytes | None
    ) -> web.StreamResponse:
        try:
            async with self.upstream.pass_on(
                request.method, request.rel_url.raw_path_qs, headers, body
            ) as reply:
                response = web.Response(status=reply.status, body=await reply.read() or None)
                for name, value in reply.headers.items():
                    if name.lower() not in _HOP and name.lower() not in _OURS:
                        response.headers.add(name, value)
        except (BrokeOff, aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise outcome_unknown(reason) from None
        response.headers.update(COMMON_HEADERS)
        return response
