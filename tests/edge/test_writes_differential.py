"""Appends through the lane and through aiohttp alone: the same replies, and the same streams."""

from __future__ import annotations

import pytest

from edge.writes import Writes
from shared.plain import Passable
from tests.appends import Appends, Tally, say_to_both
from tests.edge.requests import Dialogue
from tests.edge.served import Served, run, served

SEEDS, DIALOGUES = 2, 150


async def contents(here: Served, paths: list[str]) -> list[tuple[int, bytes]]:
    """Return what each stream holds."""
    found = []
    for path in paths:
        line = await here.connect(here.aiohttp_port)
        await line.ask(f"{path}?offset=-1", "Connection: close")
        reply = await line.reply()
        found.append((reply.status, reply.body))
        line.close()
    return found


def answered(dialogue: Dialogue) -> int:
    """Return how many requests of a plain dialogue are answered: none after a last one."""
    ends = (number for number, one in enumerate(dialogue.asked, 1) if not one.stays)
    return next(ends, len(dialogue.asked))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_replies_the_same_fate_of_the_connection_and_the_same_streams(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_on, tally = 0, Tally()
    pass_on = Writes._pass_on

    def spy(writes: Writes, fd: int, append: Passable, body: bytes) -> object:
        nonlocal passed_on
        passed_on += 1
        return pass_on(writes, fd, append, body)

    monkeypatch.setattr(Writes, "_pass_on", spy)

    async def compare(lane: Served, alone: Served, appends: Appends) -> None:
        before = passed_on

        def check(dialogue: Dialogue) -> None:
            if dialogue.plain:
                assert passed_on - before == answered(dialogue)

        ours, theirs = await lane.connect(), await alone.connect(alone.aiohttp_port)
        await say_to_both(ours, theirs, appends, tally, check)

    async def story() -> None:
        async with served(same_day=True) as lane, served(same_day=True) as alone:
            appends = Appends(seed)
            for path in appends.paths:
                for here in (lane, alone):
                    await here.create(path, Content_Type=appends.content_type(path))
            for _ in range(DIALOGUES):
                await compare(lane, alone, appends)
            assert await contents(lane, appends.paths) == await contents(alone, appends.paths)
        tally.check(DIALOGUES)

    run(story)
