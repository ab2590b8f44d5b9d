"""Purge: asks a CDN to forget the streams that are durably gone."""

import asyncio
import logging
import random
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from shared import metrics
from shared.config import BadSetting, Settings
from shared.protocol.surrogate import surrogate_key
from shared.tasks import background

_log = logging.getLogger(__name__)

# Streams that wait to be forgotten, 200 bytes each. CDNs take some hundreds of purges a second at
# most, so that more would wait for longer than what they keep is worth.
_QUEUE_MAX: Final = 100_000
_AT_ONCE: Final = 4
_TRY_TIMEOUT_S: Final = 10.0
# A CDN that is away for longer has worse to tell; its operator can purge everything.
_TRIES: Final = 8
_FIRST_S: Final = 0.5
_MOST_S: Final = 30.0
_RETRY_AFTER_S_MAX: Final = 60.0
# An edge may give out what it has of a stream for a second after that is gone, and a CDN keep it
# anew: once that is over, each is asked a second time.
_AGAIN_S: Final = 5.0
_GRACE_S: Final = 3.0  # at the end, for what waits
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~][ -~]*)")


@dataclass(frozen=True, slots=True)
class Hook:
    """How a CDN is asked: `{key}` stands for the surrogate key of a stream, `{path}` for its path,
    escaped."""

    url: str
    method: str
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # a secret among them


def load_hook(settings: Settings) -> Hook | None:
    """Return what the settings say, with the headers out of their file.

    Raises:
        BadSetting: the file cannot be read, or has a line that is no header.
    """
    if settings.purge_url is None:
        return None
    headers: dict[str, str] = {}
    if settings.purge_headers_file is not None:
        headers = _read_headers(settings.purge_headers_file)
    return Hook(settings.purge_url, settings.purge_method, settings.purge_body, headers)


def _read_headers(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"--purge-headers-file: {path}: {error}") from None
    headers = {}
    for number, line in enumerate(lines, 1):
        found = _HEADER.fullmatch(line.strip())
        if found is not None:
            headers[found[1]] = found[2]
        elif line.strip():  # which is not shown: it may be a secret
            raise BadSetting(f"--purge-headers-file: {path}: line {number} is no `Name: value`")
    return headers


class Purger:
    """Streams that are to be forgotten, in the order in which they went."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._queue: dict[str, bool] = {}  # paths in order, and whether it is the first time
        self._later: dict[str, asyncio.TimerHandle] = {}  # those that are asked for again
        self._news = asyncio.Event()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._dropping = False

    def forget(self, path: str) -> None:
        """Let a stream be forgotten, soon, and again a little later; never waits."""
        self._put(path, first=True)

    def _put(self, path: str, *, first: bool) -> None:
        self._later.pop(path, None)
        if len(self._queue) >= _QUEUE_MAX:
            metrics.PURGES.labels("dropped").inc()
            if not self._dropping:
                self._dropping = True
                _log.error("purges are dropped, %d wait: key=%s", _QUEUE_MAX, surrogate_key(path))
            return
        self._queue[path] = first or self._queue.get(path, False)
        self._idle.clear()
        self._news.set()

    async def keep(self) -> None:
        """Ask, for ever; once cancelled, what waits has some seconds left."""
        timeout = aiohttp.ClientTimeout(total=_TRY_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            background(*(self._work(session) for _ in range(_AT_ONCE))),
        ):
            try:
                await asyncio.Event().wait()
            finally:
                await self._finish()

    async def _finish(self) -> None:
        for path, handle in list(self._later.items()):  # too early is better than never
            handle.cancel()
            self._put(path, first=False)
        if self._queue or self._under_way:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._idle.wait()
        left = len(self._queue) + self._under_way
        if left:
            metrics.PURGES.labels("dropped").inc(left)
            _log.error("stopping with purges that were not made: left=%d", left)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            while not self._queue:
                self._news.clear()
                await self._news.wait()
            path = next(iter(self._queue))
            first = self._queue.pop(path)
            self._dropping = False
            self._under_way += 1
            try:
                if await self._purge(session, path) and first:
                    loop = asyncio.get_running_loop()
                    again = partial(self._put, path, first=False)
                    self._later[path] = loop.call_later(_AGAIN_S, again)
            finally:
                self._under_way -= 1
                if not (self._queue or self._under_way):
                    self._idle.set()

    async def _purge(self, session: aiohttp.ClientSession, path: str) -> bool:
        """Ask until it is done, or hopeless; return whether it is done."""
        key = surrogate_key(path)
        why = ""
        for tries in range(_TRIES):
            wait_s = random.uniform(0, min(_MOST_S, _FIRST_S * 2**tries))
            try:
                status, retry_after_s = await self._ask(session, key, path)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
            else:
                if 200 <= status < 300 or status == 404:
                    metrics.PURGES.labels("done").inc()
                    return True
                why = f"status {status}"
                if status < 500 and status not in (408, 429):
                    metrics.PURGES.labels("refused").inc()
                    _log.error("purge refused: key=%s %s", key, why)
                    return False
                wait_s = max(wait_s, retry_after_s)
            if tries < _TRIES - 1:
                metrics.PURGES.labels("retried").inc()
                await asyncio.sleep(wait_s)
        metrics.PURGES.labels("given up").inc()
        _log.error("purge given up: key=%s tries=%d %s", key, _TRIES, why)
        return False

    async def _ask(self, session: aiohttp.ClientSession, key: str, path: str) -> tuple[int, float]:
        """Ask once; return the status, and how long the CDN wants to be left alone."""
        hook = self._hook
        url = hook.url.replace("{key}", key).replace("{path}", quote(path, safe=""))
        headers = {"Surrogate-Key": key, **hook.headers}
        data = None
        if hook.body is not None:
            data = hook.body.replace("{key}", key).encode()
            headers.setdefault("Content-Type", "application/json")
        async with session.request(
            hook.method, URL(url, encoded=True), data=data, headers=headers, allow_redirects=False
        ) as reply:
            after = reply.headers.get("Retry-After", "")
            wait_s = min(float(after), _RETRY_AFTER_S_MAX) if after.isdecimal() else 0.0
            return reply.status, wait_s
