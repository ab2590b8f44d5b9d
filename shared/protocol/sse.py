"""Server-Sent Events: data and control events as bytes (PROTOCOL §5.8)."""

import re
from base64 import b64encode

import orjson

from shared.protocol import media
from shared.protocol.chunk import Chunk

HEARTBEAT = b":\n\n"  # a comment: keeps idle proxies from hanging up, no client sees it
_LINE_END = re.compile(rb"\r\n|\r|\n")


def encode_events(chunk: Chunk, cursor: str) -> bytes:
    """Return one step of an event stream: the data event, if there is data, and its control event.

    They leave in one write, so that no reader holds data without the offset that follows it.
    """
    control = orjson.dumps(_control(chunk, cursor))
    head = b"" if chunk.empty else _data(chunk)
    return head + b"event: control\ndata:" + control + b"\n\n"


def _data(chunk: Chunk) -> bytes:
    body = chunk.body if media.is_text(chunk.content_type) else b64encode(chunk.body)
    # Each line gets its own prefix, so no line end in the data can end the event. A client takes
    # one space off after the colon: a line that begins with one gets another.
    lines = (b" " + line if line[:1] == b" " else line for line in _LINE_END.split(body))
    return b"event: data\ndata:" + b"\ndata:".join(lines) + b"\n\n"


def _control(chunk: Chunk, cursor: str) -> dict[str, str | bool]:
    fields: dict[str, str | bool] = {"streamNextOffset": chunk.next}
    if chunk.closed:
        return fields | {"upToDate": True, "streamClosed": True}
    fields["streamCursor"] = cursor
    if chunk.at_tail:
        fields["upToDate"] = True
    return fields
