"""Runner: one coroutine after another, and a Ctrl-C that is neither lost nor raised inside one."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")


class Runner:
    """Runs coroutines in one event loop; in the main thread, SIGINT is its own meanwhile.

    asyncio's runner forgets a Ctrl-C that comes just as a coroutine ends, or raises it wherever the
    loop is: in a callback that swallows it, or where it leaves the loop half stopped. Here it
    cancels the coroutine that runs, and is raised once that has ended, or at once between two.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._busy = False
        self._interrupted = False
        self._task: asyncio.Task[Any] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._runner.__enter__()
        if threading.current_thread() is threading.main_thread():  # no other hears of signals
            self._before = signal.signal(signal.SIGINT, self._on_sigint)
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.close()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end, and return what it does.

        Raises:
            KeyboardInterrupt: once for each Ctrl-C: it was cancelled, or had just ended.
        """
        self._busy = True
        try:
            result = self._runner.run(self._watched(coroutine))
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
        finally:
            self._busy = False
            interrupted, self._interrupted = self._interrupted, False
        if interrupted:
            raise KeyboardInterrupt
        return result

    async def _watched(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        self._task = asyncio.current_task()
        self._cancel()  # if it came before this had begun
        try:
            return await coroutine
        finally:
            self._task = None

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if not self._busy:
            raise KeyboardInterrupt
        self._interrupted = True
        self._runner.get_loop().call_soon_threadsafe(self._cancel)  # which wakes the loop as well

    def _cancel(self) -> None:
        if self._interrupted and self._task is not None:
            self._task.cancel()
