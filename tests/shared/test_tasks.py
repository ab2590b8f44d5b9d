"""Background tasks end with the block beside which they run, however it ends."""

import asyncio

import pytest

from shared.tasks import background


async def test_tasks_end_with_the_block() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with background(work()):
        await asyncio.sleep(0)
        assert not ended.is_set()
    assert ended.is_set()


async def test_block_that_fails_at_once_leaves_nothing_that_was_never_awaited() -> None:
    """A warning here is a line on the terminal of whoever is told why a process does not start."""

    async def work() -> None:
        raise AssertionError("it never begins")

    with pytest.raises(ValueError, match="at once"):
        async with background(work()):
            raise ValueError("at once")


async def test_task_that_fails_is_logged_and_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise ValueError("of its own")

    going = asyncio.Event()

    async def goes_on() -> None:
        await asyncio.sleep(0.02)
        going.set()

    with pytest.raises(ValueError, match="of its own"):
        async with background(fails(), goes_on()):
            await going.wait()
    assert "background task failed" in caplog.text
