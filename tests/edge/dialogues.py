"""Dialogues held on a connection: what is sent, and all that is heard until its end."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.edge.requests import Dialogue
from tests.edge.served import PREFIX, Ended, Line, Reply

SENTINEL: Final = f"GET {PREFIX}the-end-of-it HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def ask(line: Line, dialogue: Dialogue) -> list[Reply | None]:
    """Return all replies, up to that of a last request that everybody understands; None for the end
    of the connection."""
    replies: list[Reply | None] = []
    # What is not whole may take one request for its own end.
    end = SENTINEL if dialogue.whole else 2 * SENTINEL
    for number, turn in enumerate([*dialogue.writes(), [end]]):
        for write in turn:
            await line.send(write)
            for _ in range(3 * (len(turn) > 1)):
                await asyncio.sleep(0.001)  # read apart, mostly; either will do
        if not dialogue.pipelined and all(one.whole for one in dialogue.asked[number : number + 1]):
            replies.append(await hear(line, dialogue, number))
            if is_last(replies[-1]):
                return replies
    while not replies or not is_last(replies[-1]):
        replies.append(await hear(line, dialogue, len(replies)))
    return replies


async def hear(line: Line, dialogue: Dialogue, number: int) -> Reply | None:
    """Return the next reply, or None at the end of the connection."""
    asked = dialogue.asked
    method = asked[number].method if number < len(asked) else "GET"
    try:
        reply = await line.reply(method)
    except Ended:
        return None
    if reply.version == "HTTP/1.0":
        # No request was understood; what is said of it depends on how the bytes were cut.
        return Reply(reply.version, reply.status, ())
    return reply


def is_last(reply: Reply | None) -> bool:
    return reply is None or (reply.status == 404 and b"the-end-of-it" in reply.body)
