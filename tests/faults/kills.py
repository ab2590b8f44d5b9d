"""SIGKILL at any moment: what was acknowledged is there once, in order, and nobody saw more."""

import asyncio
import os
import random
from pathlib import Path

import orjson

from origin.large import FOLDER
from tests.faults.ledger import Follower, Keeper, Pipelined, Plain, Producer, insist, session
from tests.faults.lives import Origin
from tests.http.api import JSON, TEXT, Server
from tests.service import Service

EDGE = ("edge", "--port", "0", "--admin-port", "0", "--drain-s", "0.1")
BRISK = ("--long-poll-timeout-s", "2", "--log-level", "warning")


async def kill_at_any_moment(folder: Path, kills: int) -> str:
    """Kill an origin again and again, while writers and live readers are at it; say how it went.

    Raises:
        AssertionError: an acknowledged write is lost, doubled or out of order, or a reader saw
            what is not there.
    """
    random_ = random.Random(20_261_123)
    stop = asyncio.Event()
    async with (
        Origin(folder, *BRISK) as origin,
        await asyncio.to_thread(
            Service.start,
            [*EDGE, *BRISK, "--upstream", origin.url, "--bus-socket", str(origin.bus)],
        ) as edge,
        session() as client,
    ):
        direct, through = Server(origin.url, client), Server(edge.url, client)
        names = ["shared", "batches", "json"]
        for name in names:
            kind = JSON if name == "json" else TEXT
            assert (await direct.stream(name).put(b"", kind)).status == 201
        plain = [Plain(f"w{n}", (direct, through)[n % 2].stream("shared"), stop) for n in range(4)]
        producers = [
            (Pipelined if n % 3 == 2 else Producer)(
                f"p{n}",
                (direct, through)[n % 2].stream("json" if n > 3 else "batches"),
                stop,
                random_,
                json=n > 3,
            )
            for n in range(6)
        ]
        keepers = [Keeper("k0", direct, stop, random_), Keeper("k1", through, stop, random_)]
        readers = [
            Follower(server.stream(name), stop, json=name == "json")
            for server in (direct, through, through)
            for name in names
        ]
        workers: list[Plain | Producer | Keeper | Follower] = [
            *plain,
            *producers,
            *keepers,
            *readers,
        ]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        killing = asyncio.create_task(_kill(origin, random_, kills))
        await asyncio.wait([killing, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        if killing.done() and killing.exception() is None:
            await asyncio.wait(tasks)  # each ends with the answer that it waits for
        for task in (killing, *tasks):
            task.cancel()
        for error in await asyncio.gather(*tasks, killing, return_exceptions=True):
            if isinstance(error, Exception):
                raise error
        assert origin.kills >= kills

        # Once more without a word, so that what is looked at is what is on disk.
        await origin.kill()
        await origin.start()
        content = {name: await direct.stream(name).whole() for name in ("shared", "batches")}
        content["json"] = await _array(direct, "json")
        for name in names:
            assert await _seen_by_edge(through, name) == content[name]
        for writer in plain:
            writer.check(content["shared"])
        for producer in producers:
            producer.check(content["json" if producer.json else "batches"])
        for keeper in keepers:
            await keeper.check()
        for reader in readers:
            reader.check(content[reader.stream.path])
        # It has seen what it is about.
        written = sum(len(writer.acknowledged) for writer in plain)
        produced = sum(producer.acknowledged for producer in producers)
        duplicates = sum(producer.duplicates for producer in producers)
        assert written > 10 * kills
        assert produced > 10 * kills
        assert duplicates > 0
        assert os.listdir(origin.data / FOLDER), "no frame was large enough for a file"
        assert await origin.stop() == 0
        return (
            f"{origin.kills} kills: {written} appends, {produced} by producers, {duplicates}"
            f" retries answered as duplicates, {sum(len(r.pieces) for r in readers)} live reads;"
            " none lost, none doubled"
        )


async def _kill(origin: Origin, random_: random.Random, kills: int) -> None:
    while origin.kills < kills:
        await origin.prepare()
        # Most lives end before the index has learned anything of them; some go on past its second.
        long = origin.kills % 7 == 3
        await asyncio.sleep(random_.uniform(1.0, 1.3) if long else random_.uniform(0.02, 0.3))
        await origin.kill()
        if origin.kills % 10 == 5:
            await origin.kill_while_it_starts(random_.uniform(0.0, 0.3))
            if origin.kills % 20 == 6:
                for file in origin.data.glob("index.db*"):
                    file.unlink()
        await origin.start()


async def _array(server: Server, name: str) -> bytes:
    items: list[object] = []
    offset = "-1"
    while True:
        answer = await server.stream(name).at(offset)
        assert answer.status == 200
        items += orjson.loads(answer.body)
        if answer.up_to_date:
            return orjson.dumps(items)
        offset = answer.next


async def _seen_by_edge(server: Server, name: str) -> bytes:
    await insist(server.stream(name).head)
    return await (_array(server, name) if name == "json" else server.stream(name).whole())
