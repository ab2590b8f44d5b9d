"""The published Python client writes a stream and follows it through the edge."""

from __future__ import annotations

import asyncio
from typing import Literal

import httpx
import pytest
from durable_streams import AsyncDurableStream, SeqConflictError

from tests.service import Service

ARRIVAL_TIMEOUT_S = 10.0


class StreamEnded(Exception):
    """A live reply said that nothing will follow."""


async def raise_at_the_end(response: httpx.Response) -> None:
    """Notice the close, which version 0.1.0 of the client knows nothing of and polls on after."""
    live_reply = response.request.method == "GET" and response.status_code == 204
    if live_reply and response.headers.get("Stream-Closed") == "true":
        raise StreamEnded


async def follow(
    stream: AsyncDurableStream,
    live: Literal["auto", "long-poll", "sse"],
    arrived: asyncio.Queue[object],
) -> None:
    """Put every message into arrived, until the stream ends."""
    try:
        async with stream.stream(offset="-1", live=live) as response:
            async for message in response.iter_json():
                arrived.put_nowait(message)
    except StreamEnded:
        assert live != "sse"  # there the end is the end of the reply
    else:
        assert live == "sse"


@pytest.mark.parametrize("live", ["auto", "long-poll", "sse"])
async def test_python_client_sees_each_message_once_in_order_and_the_close(
    service: Service, live: Literal["auto", "long-poll", "sse"]
) -> None:
    url = f"{service.url}/v1/stream/clients/python/{live}"
    arrived = asyncio.Queue[object]()
    hooks = {"response": [raise_at_the_end]}
    async with (
        httpx.AsyncClient(timeout=30, event_hooks=hooks) as http,
        await AsyncDurableStream.create(
            url, content_type="application/json", body={"n": 0}, client=http
        ) as stream,
        asyncio.TaskGroup() as tasks,
    ):
        reader = tasks.create_task(follow(stream, live, arrived))

        # One at a time: the next is written when this one has arrived, so each arrives live.
        for n in range(10):
            assert await asyncio.wait_for(arrived.get(), ARRIVAL_TIMEOUT_S) == {"n": n}
            await stream.append({"n": n + 1}, seq=f"{n:04}")

        # Many at a time: the client makes batches of them.
        await asyncio.gather(*(stream.append({"n": n}) for n in range(11, 61)))

        closed = await http.post(url, headers={"Stream-Closed": "true"})
        assert closed.status_code == 204
        await asyncio.wait_for(reader, ARRIVAL_TIMEOUT_S)

        rest = [arrived.get_nowait() for _ in range(arrived.qsize())]
        assert rest == [{"n": n} for n in range(10, 61)]
        with pytest.raises(SeqConflictError):  # its name for every 409; here: the stream is closed
            await stream.append({"n": 61})
