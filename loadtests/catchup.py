"""Many readers of one long stream that no edge has yet: what the origin notices, and how fast."""

from __future__ import annotations

import argparse
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from loadtests.catchers import CatchOrder, CatchReport, Connected, catch
from loadtests.client import STREAMS, Connection, Target
from loadtests.crew import Crew
from loadtests.launch import Options
from loadtests.layout import client_shares
from loadtests.proc import Elsewhere, Tree
from loadtests.report import Result, machine, milliseconds
from loadtests.servers import Server, descriptor_limit, running
from loadtests.waves import READS, reads_per_append

PATH: Final = STREAMS + "catchup"
CONTENT_TYPE: Final = "application/octet-stream"
COLUMNS: Final = {
    "bytes_per_s": "bytes/s",
    "ms_p50": "p50 ms",
    "ms_max": "last ms",
    "origin_reads_per_chunk": "origin reads/chunk",
    "edge_bytes_peak": "edge peak bytes",
    "warm_bytes_per_s": "again: bytes/s",
    "warm_ms_p50": "p50 ms",
    "warm_ms_max": "last ms",
    "warm_origin_reads_per_chunk": "origin reads/chunk",
    "warm_edge_bytes_peak": "edge peak bytes",
    "other_cores": "other cores",
    "wrong": "wrong",
    "errors_total": "errors",
}
AGAINST = ["headwater"]
_MIB: Final = 1 << 20
_CACHE_SPARE: Final = 16  # MiB
_CONNECT_S: Final = 120.0
_READ_S: Final = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--mib", type=int, default=200, help="length of the stream")
    parser.add_argument(
        "--cache-mib", type=int, help="an edge's cache of chunks; none: the whole stream fits"
    )
    parser.add_argument("--clients", type=int, default=1, help="processes that share the readers")
    parser.add_argument("--edges", type=int, default=1, help="edge processes of headwater")


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure one server after the other, each alone on the machine."""
    if args.cache_mib is None:
        args.cache_mib = args.mib + _CACHE_SPARE
    keys = ("readers", "mib", "cache_mib", "clients", "edges")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("catchup", parameters, machine(args.folder, argv), COLUMNS)
    settings = {"chunk-cache-bytes": str(args.cache_mib * _MIB)}
    for name in args.against:
        # The origin alone has no such cache, and no such setting.
        options = Options(edges=args.edges, settings=settings if name == "headwater" else {})
        with running(name, args.folder, options) as server:
            result.servers[name] = figures = _measure(server, args)
        if figures["wrong"] or figures["errors"]:
            what = f"{figures['wrong']} readers got another stream, errors {figures['errors']}"
            result.problems.append(f"{name}: {what}")
    return result


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    checksum = _fill(server, args.mib)
    cold = _wave(server, args, checksum)
    warm = _wave(server, args, checksum)
    errors = Counter(cold["errors"]) + Counter(warm["errors"])
    figures = {**cold, **{f"warm_{key}": value for key, value in warm.items()}}
    return figures | {
        "other_cores": max(cold["other_cores"], warm["other_cores"]),
        "wrong": cold["wrong"] + warm["wrong"],
        "errors": dict(errors),
        "errors_total": errors.total(),
        "versions": server.launch.facts,
    }


def _fill(server: Server, mib: int) -> int:
    """Append the stream, a MiB at a time, and close it; return its CRC-32."""
    dice = random.Random(mib)
    checksum = 0
    with Connection(Target.of(server.url)) as writer:
        writer.create(PATH, CONTENT_TYPE)
        for at in range(mib):
            body = dice.randbytes(_MIB)
            checksum = zlib.crc32(body, checksum)
            last = ["Stream-Closed: true"] if at == mib - 1 else []
            writer.ask("POST", PATH, f"Content-Type: {CONTENT_TYPE}", *last, body=body, expect=204)
    return checksum


def _wave(server: Server, args: argparse.Namespace, checksum: int) -> dict[str, Any]:
    shares = client_shares(args.readers, descriptor_limit(), args.clients)
    size = args.mib * _MIB
    orders = [CatchOrder(server.url, PATH, share, size, checksum) for share in shares]
    edges = server.edges()
    with Crew(catch, orders) as crew:
        crew.hear(Connected, _CONNECT_S)
        tree = Tree(server.pid)
        tree.settle()
        edges.reset_peak()
        before = edges.memory().pss
        reads, cpu_s, elsewhere = server.counter(READS), tree.cpu_s(), Elsewhere()
        crew.tell("begin")
        reports = crew.hear(CatchReport, _READ_S)
        cpu_s, other_cores = tree.cpu_s() - cpu_s, elsewhere.cores()
    done = sum(len(one.took_s) for one in reports)
    elapsed_s = max(one.ended for one in reports) - min(one.began for one in reports)
    chunks = sum(one.reads for one in reports) / done if done else 0
    errors: Counter[str] = Counter()
    for one in reports:
        errors.update(one.errors)
    return {
        "readers_done": done,
        "bytes_per_s": done * size / elapsed_s,
        **milliseconds([took for one in reports for took in one.took_s]),
        "chunks": chunks,
        "origin_reads_per_chunk": reads_per_append(reads, server.counter(READS), round(chunks)),
        "edge_bytes_before": before,
        "edge_bytes_peak": edges.peak_bytes(),
        "server_cpu_s": cpu_s,
        "client_busy": max(one.cpu_s for one in reports) / elapsed_s,
        "looked_at": sum(one.looked_at for one in reports),
        "wrong": sum(one.wrong for one in reports),
        "errors": dict(errors),
        "other_cores": other_cores,
    }
