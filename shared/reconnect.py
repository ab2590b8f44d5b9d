"""Reconnecting: one life of a connection after another, with a pause that grows and varies."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

_log = logging.getLogger(__name__)

_PAUSE_S_MIN: Final = 0.05
_PAUSE_S_MAX: Final = 0.8  # with the time to connect, back within a second of the server
# A connection that lived as long as this was in order; one that did not is no reason to hurry.
_STEADY_S: Final = 1.0

Losses = tuple[type[Exception], ...]
BROKEN: Final[Losses] = (OSError,)  # what a broken connection raises, time-outs included


def pause_s(failures: int, jitter: float) -> float:
    """Return how long to wait before the next attempt.

    Args:
        failures: how many attempts in a row came to nothing, at least 1.
        jitter: from 0 to 1; differs between edges, so that they do not come back all at once.
    """
    pause: float = min(_PAUSE_S_MAX, _PAUSE_S_MIN * 2 ** min(failures - 1, 16))
    return pause * (0.5 + jitter / 2)


async def keep_connected(
    name: str, live: Callable[[], Awaitable[None]], losses: Losses = BROKEN
) -> None:
    """Run lives until one returns, which means that it was told to end.

    Args:
        name: of the server, for the log; without credentials.
        live: connects, works, and raises when the connection is lost.
        losses: what it raises then; anything else is a fault of ours.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began_s = loop.time()
        try:
            return await live()
        except Exception as error:
            if loop.time() - began_s > _STEADY_S:
                failures = 0
            failures += 1
            _tell(name, error, failures, losses)
        await asyncio.sleep(pause_s(failures, random.random()))


def _tell(name: str, error: Exception, failures: int, losses: Losses) -> None:
    if not _is_loss(error, losses):
        # A new connection begins with doubt, which repairs what it left undone.
        _log.error("bus failed: server=%s", name, exc_info=error)
    elif failures == 1:
        _log.warning("bus lost: server=%s error=%s", name, _reason(error))
    else:
        _log.debug("bus still lost: server=%s error=%s", name, _reason(error))


def _is_loss(error: Exception, losses: Losses) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_loss(one, losses) for one in error.exceptions)
    return isinstance(error, losses)


def _reason(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
