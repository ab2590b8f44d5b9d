"""When a stream expires: Stream-TTL, Stream-Expires-At, and what a fork inherits (PROTOCOL §5.1,
§4.2)."""

import re
from dataclasses import dataclass
from datetime import datetime

from shared.protocol import names
from shared.protocol.errors import BadRequest

_TTL = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:)(\d\d)(\.\d{1,64})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Expiry:
    """At most one of a sliding window and a deadline."""

    ttl_s: int | None = None
    expires_at: str | None = None  # RFC 3339, as the client wrote it
    expires_at_ms: int | None = None

    def same(self, other: "Expiry") -> bool:
        """Tell whether both expire alike; the spelling of an instant does not matter."""
        return self.ttl_s == other.ttl_s and self.expires_at_ms == other.expires_at_ms

    def deadline_ms(self, touched_ms: int) -> int | None:
        """Return when the stream ends, in Unix milliseconds, if it does.

        Args:
            touched_ms: when it was last read or written; HEAD does not count.
        """
        if self.ttl_s is not None:
            return touched_ms + self.ttl_s * 1000
        return self.expires_at_ms


NEVER = Expiry()


def parse_expiry(ttl: str | None, expires_at: str | None) -> Expiry:
    """Parse the two headers of a create.

    Raises:
        BadRequest: both are given, or one is malformed or out of range.
    """
    if ttl is not None and expires_at is not None:
        raise BadRequest("give Stream-TTL or Stream-Expires-At, not both")
    if ttl is not None:
        # The length is checked first: int() of a huge numeral is work that a stranger could order.
        if len(ttl) > 10 or _TTL.fullmatch(ttl) is None or int(ttl) > names.TTL_S_MAX:
            raise BadRequest(
                f"invalid Stream-TTL {ttl[:64]!r}: whole seconds from 0 to {names.TTL_S_MAX}"
            )
        return Expiry(ttl_s=int(ttl))
    if expires_at is not None:
        return Expiry(expires_at=expires_at, expires_at_ms=_parse_rfc3339_ms(expires_at))
    return NEVER


def inherit_expiry(source: Expiry, requested: Expiry) -> Expiry:
    """Return what a fork gets: what it asks for, else what its source has (PROTOCOL §4.2)."""
    return source if requested == NEVER else requested


def _parse_rfc3339_ms(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise BadRequest(f"invalid Stream-Expires-At {text[:64]!r}: an RFC 3339 timestamp")
    day, minute, second, fraction, zone = match.groups()
    # RFC 3339 has leap seconds, Python's datetime does not: the second before is near enough.
    whole = f"{day}T{minute}{min(int(second), 59) if second == '60' else second}"
    zone = "+00:00" if zone in "Zz" else zone
    try:
        moment = datetime.fromisoformat(whole + zone)
        seconds = moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"invalid Stream-Expires-At {text[:64]!r}: {error}") from None
    return int(seconds) * 1000 + int((fraction or "")[1:4].ljust(3, "0"))
