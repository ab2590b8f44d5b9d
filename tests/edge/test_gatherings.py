"""Gatherings: reads of the upstream that readers share, and how many are under way at once."""

from __future__ import annotations

import asyncio

import pytest

from edge import gatherings
from edge.source import EdgeSource
from shared.protocol.chunk import Chunk
from tests.edge.served import Line, run, served, until


def test_reads_that_wait_for_their_turn_are_not_begun_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    async def read(source: EdgeSource, path: str, offset: str) -> Chunk:
        begun.append(path)
        await asyncio.sleep(300)
        raise AssertionError

    monkeypatch.setattr(EdgeSource, "read", read)

    async def story() -> None:
        lines: list[Line] = []
        async with served() as here:
            for number in range(2 * gatherings._READS_AT_ONCE):
                lines.append(await here.connect())
                await lines[-1].ask(f"s-{number}")
            await until(lambda: len(here.lane._gatherings) == gatherings._READS_AT_ONCE)
        await asyncio.sleep(0)
        assert len(begun) == gatherings._READS_AT_ONCE
        assert not here.lane._tasks
        for line in lines:
            line.close()

    run(story)
