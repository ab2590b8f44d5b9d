"""Listing: pages of streams and of services' usage for operators, on the admin port.

A page is of this moment: what is durable but not yet in the index is merged in. It may hold less
than was asked for though more follows; whoever wants all goes on while there is a `next`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from origin.catalog import Catalog
from origin.journal import Journal
from origin.ledger import Ledger
from origin.stream import Stream
from origin.usage import Usage
from shared.protocol import caching
from shared.protocol.errors import BadRequest
from shared.protocol.reply import Reply
from shared.web import respond

# Looked up and written on the loop, at 10 µs an entry: a page holds up appends for 10 ms at most.
_LIMIT_MAX: Final = 1000
_LIMIT: Final = 100
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_KNOWN: Final = frozenset({"prefix", "after", "limit"})


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for: names that begin with a prefix and follow another one."""

    prefix: str
    after: str
    limit: int


def parse_page(query: str) -> Page:
    """Parse a query; unknown parameters are ignored.

    Raises:
        BadRequest: a known one is given twice, or limit is out of range.
    """
    known: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in known:
            raise BadRequest(f"query parameter {name!r} is given twice")
        if name in _KNOWN:
            known[name] = value
    limit = known.get("limit", str(_LIMIT))
    if _NUMBER.fullmatch(limit) is None or int(limit) > _LIMIT_MAX:
        raise BadRequest(f"invalid limit {limit[:64]!r}: 1 to {_LIMIT_MAX}")
    return Page(known.get("prefix", ""), known.get("after", ""), int(limit))


@dataclass(frozen=True, slots=True)
class Listing:
    """Answers `GET /v1/stream/` (or whatever the prefix is) and `GET /usage`."""

    catalog: Catalog
    ledger: Ledger
    journal: Journal
    prefix: str

    def answer(self, request: web.BaseRequest) -> web.Response | None:
        """Answer a request, if it is one of these.

        Raises:
            BadRequest: the query makes no sense.
        """
        query = request.rel_url.raw_query_string
        if request.method != "GET":
            return None
        if request.path == self.prefix:
            return _json(self.streams(parse_page(query)))
        if request.path == "/usage":
            return _json(self.usage(parse_page(query)))
        return None

    def streams(self, page: Page) -> dict[str, Any]:
        """Return streams in the order of their paths."""
        found, following = self.catalog.page(page.prefix, page.after, page.limit)
        return {"streams": [_entry(stream) for stream in found], "next": following}

    def usage(self, page: Page) -> dict[str, Any]:
        """Return what services have used, in the order of their names."""
        lsn, rows = self.journal.usage(page.after, page.limit)
        following = rows[-1][0] if len(rows) == page.limit else None
        counts = {service: replace(usage) for service, usage in rows}
        for service, usage in self.ledger.uncounted(lsn):
            if service > page.after and (following is None or service <= following):
                counts.setdefault(service, Usage()).add(usage)
        services = [
            {
                "service": service,
                "appends": usage.appends,
                "bytes": usage.bytes,
                "writeUnits": usage.units,
                "storedBytes": usage.stored,
                "streams": usage.streams,
            }
            for service, usage in sorted(counts.items())
            if service.startswith(page.prefix)
        ]
        return {"services": services, "next": following}


def _entry(stream: Stream) -> dict[str, Any]:
    state = stream.durable
    assert state is not None
    entry: dict[str, Any] = {
        "path": state.path,
        "contentType": state.content_type,
        "nextOffset": state.tail_offset().token(),
        "closed": state.closed,
        "createdAt": state.created_ms,
    }
    if state.expiry.ttl_s is not None:
        entry["ttl"] = state.expiry.ttl_s
    if state.expiry.expires_at is not None:
        entry["expiresAt"] = state.expiry.expires_at
    return entry


def _json(document: Mapping[str, Any]) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": caching.NO_STORE}
    return respond(Reply(200, headers, orjson.dumps(document)))
