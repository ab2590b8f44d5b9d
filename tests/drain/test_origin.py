"""The origin is started again under load: writers ask again, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

from tests.faults.ledger import Follower, Producer, session
from tests.faults.lives import Origin
from tests.http.api import TEXT, Answer, Server
from tests.service import Service

RESTARTS = 3
WRITERS = 6
READERS = 20  # of each edge


class Asking(Producer):
    """Notes what it is answered before it asks again."""

    refusals: Counter[int]

    async def send(self, number: int) -> Answer:
        answer = await super().send(number)
        if answer.status not in (200, 204):
            self.refusals[answer.status] += 1
            # Nothing was stored, and it says when to ask again: a stop leaves nobody in doubt.
            assert answer.status == 503, answer
            assert "Retry-After" in answer.headers, answer
        return answer


async def test_origin_is_started_again_under_load_and_nobody_loses_anything(
    tmp_path: Path,
) -> None:
    brisk = ["--drain-s", "0.3", "--long-poll-timeout-s", "2", "--log-level", "warning"]
    random_, stop = random.Random(7), asyncio.Event()
    async with Origin(tmp_path, *brisk) as origin, session() as client:
        edge = ["edge", "--port", "0", "--admin-port", "0", *brisk, "--upstream", origin.url]
        edge += ["--bus-socket", str(origin.bus)]
        async with (
            await asyncio.to_thread(Service.start, edge) as one,
            await asyncio.to_thread(Service.start, edge) as other,
        ):
            edges = [Server(service.url, client) for service in (one, other)]
            assert (await edges[0].stream("all").put(b"", TEXT)).status == 201
            writers = [
                Asking(f"p{n}", edges[n % 2].stream("all"), stop, random_) for n in range(WRITERS)
            ]
            refusals: Counter[int] = Counter()
            for writer in writers:
                writer.refusals = refusals
            readers = [Follower(edge.stream("all"), stop) for edge in edges * READERS]
            everybody: list[Asking | Follower] = [*writers, *readers]
            running = [asyncio.create_task(one.run()) for one in everybody]
            for _ in range(RESTARTS):
                before = sum(writer.acknowledged for writer in writers)
                while sum(writer.acknowledged for writer in writers) < before + 100:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert await origin.stop() == 0
                await asyncio.sleep(0.3)  # some ask while nobody is there
                await origin.start()
            before = sum(writer.acknowledged for writer in writers)
            while sum(writer.acknowledged for writer in writers) < before + 100:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*running)
            content = await edges[0].stream("all").whole()
            for one_of_them in writers:
                one_of_them.check(content)
            for reader in readers:
                reader.check(content)
            print(
                f"{RESTARTS} restarts: {sum(w.acknowledged for w in writers)} batches, refused "
                f"{dict(refusals)}, {sum(w.duplicates for w in writers)} answered as duplicates"
            )
            assert refusals[503] > 0
