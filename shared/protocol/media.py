"""Content types: validate, compare, tell text from binary (PROTOCOL §9)."""

import re
from functools import lru_cache

from shared.protocol import names
from shared.protocol.errors import BadRequest

# RFC 9110 §8.3.1, without insisting on well-formed parameters: they come back exactly as given.
_MEDIA_TYPE = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(;[\t -~]*)?"
)


def parse_content_type(text: str) -> str:
    """Return text if it is a media type, unchanged.

    Raises:
        BadRequest: not `type/subtype`, too long, or not printable ASCII.
    """
    if len(text) > names.CONTENT_TYPE_CHARS_MAX or _MEDIA_TYPE.fullmatch(text) is None:
        raise BadRequest(f"invalid Content-Type {text[:64]!r}")
    return text


@lru_cache(maxsize=1024)  # a service uses a handful; the bound only stops a flood of odd ones
def essence(content_type: str) -> str:
    """Return the type without parameters, in lower case: what comparisons use."""
    return content_type.partition(";")[0].strip().lower()


def same_type(one: str, other: str) -> bool:
    """Tell whether two content types name the same type, parameters and case aside."""
    return essence(one) == essence(other)


def is_json(content_type: str) -> bool:
    """Tell whether a stream of this type is in JSON mode (PROTOCOL §9.1)."""
    return essence(content_type) == names.JSON


def is_text(content_type: str) -> bool:
    """Tell whether SSE carries this type as it is; all else goes in base64 (PROTOCOL §5.8)."""
    kind = essence(content_type)
    return kind.startswith("text/") or kind == names.JSON
