"""A server that answers as a test has written down, and time that passes on demand."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from deploy.client.retry import Timing

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Asked:
    """One request that the server received."""

    method: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    connection: object


@dataclass
class Script:
    """Answers requests with its steps, one after another; a request too many fails the test."""

    steps: list[Step]
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.method, dict(request.query), headers, body, request.transport)
        self.asked.append(asked)
        assert self.steps, f"a request that the script does not have: {self.asked[-1]}"
        return await self.steps.pop(0)(request)

    @property
    def methods(self) -> list[str]:
        return [asked.method for asked in self.asked]

    @property
    def queries(self) -> list[dict[str, str]]:
        return [asked.query for asked in self.asked]


Serve = Callable[..., Awaitable[Script]]


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Step:
    """A whole answer; the keyword Stream_Cursor is the header Stream-Cursor."""
    return answer(status, body, headers)


def answer(status: int, body: bytes, headers: dict[str, str]) -> Step:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def step(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=named)

    return step


def part_of(body: bytes, next_offset: str, content_type: str = "text/plain") -> Step:
    """A read's answer after which there is more to read."""
    return reply(body=body, Stream_Next_Offset=next_offset, Content_Type=content_type)


def tail_of(body: bytes, next_offset: str, content_type: str = "text/plain", **more: str) -> Step:
    """A read's answer that reaches the tail."""
    named = {"Stream-Next-Offset": next_offset, "Content-Type": content_type}
    return answer(200, body, {**named, "Stream-Up-To-Date": "true", **more})


def nothing_at(tail: str, **more: str) -> Step:
    """A live read's answer when its time is over."""
    return answer(204, b"", {"Stream-Next-Offset": tail, "Stream-Up-To-Date": "true", **more})


def refusal(status: int, message: str = "no") -> Step:
    body = json.dumps({"error": {"code": "x", "message": message}}).encode()
    return reply(status, body, Content_Type="application/json")


def cut(body: bytes, next_offset: str = "9", content_type: str = "text/plain") -> Step:
    """An answer whose connection is lost in the middle of the body."""

    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Length": str(len(body) + 100),
                "Content-Type": content_type,
                "Stream-Next-Offset": next_offset,
                "Stream-Up-To-Date": "true",
            }
        )
        await response.prepare(request)
        await response.write(body)
        assert request.transport is not None
        request.transport.close()
        return response

    return step


async def lost(request: web.Request) -> web.StreamResponse:
    """No answer: the connection is lost after the request was read."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def events(*parts: str, **headers: str) -> Step:
    """An event stream that ends after parts."""

    async def step(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **named})
        await response.prepare(request)
        for part in parts:
            await response.write(part.encode())
        return response

    return step


def data_event(text: str) -> str:
    return "event: data\n" + "".join(f"data: {line}\n" for line in text.split("\n")) + "\n"


def control(next_offset: str, **more: object) -> str:
    return f"event: control\ndata: {json.dumps({'streamNextOffset': next_offset, **more})}\n\n"


@dataclass
class FakeTime:
    """Time that passes only while the client pauses."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def timing(self, chance: float = 0.5) -> Timing:
        return Timing(clock=lambda: self.now, pause=self.pause, chance=lambda: chance)

    async def pause(self, delay_s: float) -> None:
        self.pauses.append(delay_s)
        self.now += delay_s
