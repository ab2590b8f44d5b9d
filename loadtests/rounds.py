"""One round of appends: new streams, a crew that appends for a while, every stream read back."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from loadtests.client import Connection, Target, required
from loadtests.crew import Crew
from loadtests.ledger import NOTHING, Audit, Sent, audit
from loadtests.message import Damaged, Shape, names
from loadtests.proc import Elsewhere, Tree
from loadtests.report import milliseconds
from loadtests.servers import Server
from loadtests.writers import GO, Ready, WriteOrder, WriteReport, write

_LOOK_EVERY_S: Final = 1.0  # at the server's memory; a minute of it is 60 numbers in the report


@dataclass(frozen=True, slots=True)
class Load:
    """Who appends what, and how often."""

    shape: Shape
    connections: int
    streams: int = 1
    clients: int = 1
    per_s: float = 0.0  # appends, over all connections; 0: each sends when it is answered


def run_round(
    server: Server, load: Load, name: str, seconds: float
) -> tuple[dict[str, Any], array[float]]:
    """Append to new streams; return figures, and how long each append took in seconds."""
    shape = load.shape
    paths = tuple(f"/v1/stream/append/{name}/{at}" for at in range(load.streams))
    with Connection(Target.of(server.url)) as connection:
        for path in paths:
            connection.create(path, shape.content_type)
    orders = [
        WriteOrder(
            server.url,
            paths,
            tuple(range(client, load.connections, load.clients)),
            load.connections,
            shape,
            seconds,
            load.per_s / load.clients,
        )
        for client in range(load.clients)
    ]
    tree = Tree(server.pid)
    with Crew(write, orders) as crew:
        crew.hear(Ready, timeout_s=60)
        elsewhere = Elsewhere()
        cpu_s = tree.cpu_s()
        with _watching(tree) as resident:
            crew.tell(GO)
            reports = crew.hear(WriteReport, timeout_s=seconds + 60)
        cpu_s = tree.cpu_s() - cpu_s
        other_cores = elsewhere.cores()
    took = array("d")
    errors: Counter[str] = Counter()
    for report in reports:
        took.extend(report.latencies_s)
        errors.update(report.errors)
    elapsed_s = max(report.ended for report in reports) - min(report.began for report in reports)
    rate = len(took) / elapsed_s if took else 0.0
    half = len(resident) // 2
    figures: dict[str, Any] = {
        "appends": len(took),
        "appends_per_s": rate,
        "messages_per_s": rate * shape.messages,
        "bytes_per_s": rate * shape.messages * shape.size,
        **milliseconds(took),
        "server_cpu_us": cpu_s * 1e6 / len(took) if took else None,  # of one append
        "client_busy": max(report.cpu_s for report in reports) / elapsed_s if took else None,
        "other_cores": other_cores,
        "errors": dict(errors),
        "resident_bytes": resident,
        "resident_bytes_early": max(resident[: half + 1]),
        "resident_bytes_late": max(resident[half:]),
    }
    try:
        checked = _verify(server, paths, shape, reports)
    except Damaged as damage:
        return figures | {"damaged": str(damage)}, took
    return figures | {
        "acknowledged": checked.acknowledged,
        "stored": checked.stored,
        "lost": checked.lost,
        "doubled": checked.doubled,
        "reordered": checked.reordered,
        "foreign": checked.foreign,
    }, took


def broken_promises(figures: dict[str, Any]) -> str:
    """Say what no round may show. Errors alone may be refusals, which are figures."""
    if "damaged" in figures:
        return str(figures["damaged"])
    wrong = [
        f"{key} {figures[key]}"
        for key in ("lost", "doubled", "reordered", "foreign")
        if figures.get(key)
    ]
    if wrong:
        return f"{', '.join(wrong)} of {figures['acknowledged']} acknowledged"
    return "" if figures["appends"] else "no append was acknowledged"


@contextmanager
def _watching(tree: Tree) -> Iterator[list[int]]:
    """Note the resident memory of a server's processes while the block runs, and at its end."""
    seen = [tree.resident_bytes()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_EVERY_S):
            seen.append(tree.resident_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()
        seen.append(tree.resident_bytes())


def _verify(
    server: Server, paths: Sequence[str], shape: Shape, reports: Sequence[WriteReport]
) -> Audit:
    """Read every stream back, and compare it with what was acknowledged."""
    total = NOTHING
    with Connection(Target.of(server.url)) as connection:
        for at, path in enumerate(paths):
            sent: dict[int, Sent] = {}
            for report in reports:
                sent |= report.sent.get(at, {})
            total += audit(sent, names(shape, map(shape.decode, _read(connection, path))))
    return total


def _read(connection: Connection, path: str) -> Iterator[bytes]:
    """Yield the bodies of the reads that make up a stream, from its beginning to its tail."""
    offset = "-1"
    while True:
        reply = connection.ask("GET", f"{path}?offset={offset}")
        yield reply.body
        if reply.head.field("Stream-Up-To-Date") == "true":
            return
        offset = required(reply.head, "Stream-Next-Offset")
