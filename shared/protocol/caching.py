"""What a cache may keep, and for how long: Cache-Control, ETag, If-None-Match (PROTOCOL §10)."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from shared.protocol.expiry import Expiry
from shared.protocol.offset import TOKEN

NO_STORE = "no-store"
# A tag may hold a comma, so a list is no matter of splitting at commas.
_ENTITY_TAG = re.compile(r'(?:^|,)[ \t]*(?:W/)?("[^"]*")(?=[ \t]*(?:,|$))')

_OURS = re.compile(rf'"({TOKEN}):{TOKEN}(?::[ct])?"', re.ASCII)


class Kind(Enum):
    """What a reply is to a cache."""

    FULL = auto()  # a full chunk at an offset that this life of the stream minted
    FULL_AT_TAIL = auto()  # a full chunk with nothing behind it yet: as short-lived as the tail
    TAIL = auto()  # what reached the tail, and grows; or began at a name that may soon mean another
    LIVE_DATA = auto()  # a long-poll that got data; the cursor is in the key
    LIVE_EMPTY = auto()  # a long-poll that waited in vain, or learned of the end
    FROM_NOW = auto()  # another place each time
    SSE = auto()


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """The lifetimes that an operator may set; the rest is fixed by what the replies mean."""

    tail: str = "public, max-age=1"
    # no-store would make nginx and Varnish serve those who wait one by one.
    live_empty: str = "public, max-age=1"
    surrogate_keys: bool = True  # reads name their stream, for CDNs that can be told to forget it

    def control(self, kind: Kind, expiry: Expiry, now_ms: int) -> str:
        """Return Cache-Control for a reply.

        A chunk of a stream that expires is never immutable: nobody who holds it could know the end.
        """
        if kind is Kind.FULL and expiry.ttl_s is not None:
            return f"public, max-age={min(60, expiry.ttl_s)}"
        if kind is Kind.FULL and expiry.expires_at_ms is not None:
            left_s = max(0, (expiry.expires_at_ms - now_ms) // 1000)
            return f"public, max-age={min(60, left_s)}"
        match kind:
            case Kind.FULL:
                return IMMUTABLE
            case Kind.TAIL | Kind.FULL_AT_TAIL:
                return self.tail
            case Kind.LIVE_DATA:
                # Collapsing needs a second: nginx lets those who wait look every 500 ms, and many
                # of them take their time.
                return "public, max-age=5"
            case Kind.LIVE_EMPTY:
                return self.live_empty
            case Kind.SSE:
                return "no-cache"
            case Kind.FROM_NOW:
                return NO_STORE


IMMUTABLE = "public, max-age=31536000, immutable"


def etag(start: str, end: str, *, closed: bool, last: bool = False) -> str:
    """Return the quoted entity tag of the bytes between two offsets (PROTOCOL §10.1).

    A token names incarnation and position, so the tag follows from the two wherever a chunk is put
    together. Closing a stream changes it, or a 304 would hide the end.

    Args:
        last: a full chunk that ends at the tail. What follows will not change its bytes, but a 304
            would let a cache keep the reply that says that nothing follows.
    """
    return f'"{start}:{end}{":c" if closed else ":t" if last else ""}"'


def start_of(tag: str | None) -> str | None:
    """Return the offset at which the bytes of an entity tag of ours begin; None: it is another
    server's."""
    match = _OURS.fullmatch(tag) if tag is not None else None
    return match[1] if match is not None else None


def matches(if_none_match: str | None, tag: str | None) -> bool:
    """Tell whether If-None-Match names the tag, compared weakly (RFC 9110 §13.1.2)."""
    if if_none_match is None or tag is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in _ENTITY_TAG.findall(if_none_match)
