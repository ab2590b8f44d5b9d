"""A running `headwater up`, and the processes that it is made of."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import aiohttp

from tests.service import Service

DEADLINE_S = 20.0


def start(folder: Path, *flags: str, env: dict[str, str] | None = None) -> Service:
    always = ["up", "--port", "0", "--admin-port", "0", "--data-dir", str(folder)]
    return Service.start([*always, *flags], env=env)


def admin_url(service: Service) -> str:
    found = re.search(r"admin: (http://\S+)/readyz", service.stderr())
    assert found is not None
    return found[1]


def processes(service: Service) -> dict[int, str]:
    """Return the names of all its processes that run, by id; one of a role is called `hw-ROLE`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            head, _, tail = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue  # ended meanwhile
        state, _, group = tail.split()[:3]
        if int(group) == service.pid and state not in "ZX":
            found[int(entry.name)] = head.partition("(")[2]
    return found


def roles(service: Service) -> dict[str, int]:
    """Return the ids of the processes that have a role."""
    found = processes(service).items()
    return {name.removeprefix("hw-"): pid for pid, name in found if name.startswith("hw-")}


def fork_server(service: Service) -> int:
    """Return the id of the process that the others are forked from."""
    for pid in processes(service):
        words = Path(f"/proc/{pid}/cmdline").read_text()
        if "forkserver" in words and pid not in roles(service).values():
            return pid
    raise AssertionError("there is no fork server")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110  # what happens in another process sets no event here
            await asyncio.sleep(0.02)


async def answered(client: aiohttp.ClientSession, method: str, url: str, status: int) -> None:
    """Ask until the answer is the one that is waited for."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with client.request(method, url) as reply:
                if reply.status == status:
                    return
            await asyncio.sleep(0.05)
