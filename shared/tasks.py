"""Background tasks with an owner that ends them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

_log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.02


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside a block; they end with it. One that fails is logged, and so is its
    end."""
    tasks = [asyncio.create_task(_logged(coroutine)) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for coroutine in coroutines:
            coroutine.close()  # one that was cancelled before its first step was never awaited


async def wait_while(holds: Callable[[], bool], for_s: float) -> None:
    """Return once something holds no more, at most after for_s: what a server that stops waits for,
    which nobody needs to tell of as it happens."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + for_s
    while holds():
        if loop.time() >= end_s:
            break
        await asyncio.sleep(_LOOK_EVERY_S)


async def _logged(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        await coroutine
    except Exception:
        _log.exception(
            "background task failed: task=%s", getattr(coroutine, "__qualname__", coroutine)
        )
        raise
