"""Messages that carry their own offset, for clients of the State protocol (an extension, off by
default).

State and StreamDB look for `headers.offset` in change and control messages. It is no part of
PROTOCOL.md, and whoever gets it no longer gets the bytes that were appended. The standard library's
codec is used, as it keeps integers of any size.
"""

import json
from collections.abc import Callable

from shared.protocol import jsonmode


def stamp(stored: bytes, start: int, token_at: Callable[[int], str]) -> bytes:
    """Return the stored form of messages with `headers.offset` in those that ask for it.

    An object whose `headers.operation` or `headers.control` is a string gets the offset of its end.

    Args:
        start: position of the first byte.
        token_at: offset token of a position.
    """
    parts = []
    begin = 0
    for end in jsonmode.message_ends(stored):
        message = json.loads(stored[begin : end - 1])
        headers = message.get("headers") if isinstance(message, dict) else None
        if isinstance(headers, dict) and (
            isinstance(headers.get("operation"), str) or isinstance(headers.get("control"), str)
        ):
            headers["offset"] = token_at(start + end)
            parts.append(
                json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b","
            )
        else:
            parts.append(stored[begin:end])
        begin = end
    return b"".join(parts)
