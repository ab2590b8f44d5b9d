"""An upstream of a cache that says, byte for byte, what a test wants it to say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Said:
    """A reply, and what comes before its rest; then the connection is kept, or not."""

    data: bytes
    pause_s: float = 0.0
    rest: bytes = b""
    ends: bool = False


def said(
    status: str, body: bytes = b"", headers: Sequence[str] = (), *, length: int | None = None
) -> bytes:
    """Return a reply that announces its body, or so many bytes."""
    size = [] if status.startswith("204") else [f"Content-Length: {length or len(body)}"]
    return "\r\n".join([f"HTTP/1.1 {status}", *size, *headers, "", ""]).encode() + body


@dataclass
class Peer:
    """Answers each path by its script, whose last line it repeats."""

    scripts: dict[str, list[Said]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].partition(b"?")[0].decode()
                answer = self._next(path)
                writer.write(answer.data)
                await writer.drain()
                if answer.pause_s:
                    await asyncio.sleep(answer.pause_s)
                writer.write(answer.rest)
                await writer.drain()
                if answer.ends:
                    break
        writer.close()

    def _next(self, path: str) -> Said:
        if path not in self.scripts:
            return Said(said("200 OK", b"ok"))  # a probe
        script = self.scripts[path]
        answer = script[min(self.asked[path], len(script) - 1)]
        self.asked[path] += 1
        return answer


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    """Run a peer on loopback."""
    running = Peer()
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    async with server:
        running.port = server.sockets[0].getsockname()[1]
        yield running
        server.close()
