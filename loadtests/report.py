"""Percentiles, the facts of the machine, and a scenario's result for people and for programs."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

_PACKAGES: Final = ("aiohttp", "uvloop", "apsw", "orjson", "redis")
_DISK_BLOCK_BYTES: Final = 4096
LARGE_BLOCK_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Result:
    """What a scenario found. `columns` name what of each server's figures the table shows."""

    scenario: str
    parameters: dict[str, Any]
    machine: dict[str, Any]
    columns: Mapping[str, str]  # figure to heading
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what makes the run a failure

    def json(self) -> bytes:
        """Return everything, for programs."""
        value = {
            "scenario": self.scenario,
            "ok": not self.problems,
            "problems": self.problems,
            "machine": self.machine,
            "parameters": self.parameters,
            "servers": self.servers,
            "ratios": self.ratios,
        }
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def text(self) -> str:
        """Return what a person wants to see first."""
        disk = self.machine["disk"]
        lines = [
            self.machine["command"],
            f"{self.machine['cpu']}, {self.machine['cores']} cores; "
            f"Linux {self.machine['kernel']}; Python {self.machine['python']}; "
            f"{disk['filesystem']}, 4 KB append + fdatasync "
            f"{disk['per_s']:,.0f}/s (p50 {disk['ms_p50']:.2f} ms)",
            *_large_writes(self.machine),
            "",
            table(
                ["", *self.columns.values()],
                [
                    [name, *(figures.get(key) for key in self.columns)]
                    for name, figures in self.servers.items()
                ],
            ),
        ]
        for pair, figures in self.ratios.items():
            shown = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
            lines.append(f"{pair}: {shown}")
        lines += [f"FAILED: {problem}" for problem in self.problems]
        return "\n".join(lines) + "\n"

    def compare(self, *figures: str) -> None:
        """Set the ratios of each server to the last one, the reference, in these figures."""
        *others, reference = self.servers
        for name in others:
            self.ratios[f"{name} / {reference}"] = {
                figure: self.servers[name][figure] / self.servers[reference][figure]
                for figure in figures
                if self.servers[name].get(figure) and self.servers[reference].get(figure)
            }


def _large_writes(machine: Mapping[str, Any]) -> list[str]:
    if "disk_large" not in machine:
        return []
    rates = " and ".join(f"{one['bytes_per_s'] / 1e6:,.0f}" for one in machine["disk_large"])
    return [f"1 MB writes + fdatasync, before and after: {rates} MB/s"]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed (nearest rank).

    Args:
        ordered: at least one value, in ascending order.
        share: above 0, and at most 1.
    """
    if not ordered:
        raise ValueError("no values, so no percentile")
    if not 0 < share <= 1:
        raise ValueError(f"expected a share above 0 and at most 1, received {share}")
    # Rounded, for 0.99 * 100 is 99.00000000000001 to a float on some shares.
    return ordered[math.ceil(round(share * len(ordered), 9)) - 1]


def milliseconds(seconds: array[float] | Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and the largest of these times, in ms; empty if there are none."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        "ms_p50": percentile(ordered, 0.5) * 1e3,
        "ms_p99": percentile(ordered, 0.99) * 1e3,
        "ms_max": ordered[-1] * 1e3,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows in columns: names to the left, figures to the right, a dash for None."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine(folder: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Return what figures depend on; measures the disk under `folder` for a second."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "loadtests", *argv]),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("HEADWATER_")},
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1m": os.getloadavg()[0],  # above 0 at the start, something else was running, too
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "disk": disk(folder),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def disk(
    folder: Path, seconds: float = 1.0, block_bytes: int = _DISK_BLOCK_BYTES
) -> dict[str, Any]:
    """Append a block and fdatasync, over and over: what one durable write at a time can reach."""
    times, block = array("d"), os.urandom(block_bytes)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        handle = file.fileno()
        deadline = time.monotonic() + seconds
        while not times or time.monotonic() < deadline:
            began = time.monotonic()
            os.write(handle, block)
            os.fdatasync(handle)
            times.append(time.monotonic() - began)
    return {
        "folder": str(folder),
        "filesystem": filesystem(folder),
        "per_s": len(times) / sum(times),
        "bytes_per_s": block_bytes * len(times) / sum(times),
        **milliseconds(times),
    }


def filesystem(folder: Path) -> str:
    """Return the type of the file system that holds a folder; on tmpfs nothing is durable."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, name, *_ = line.split()
        if len(mounted) >= len(best) and folder.resolve().is_relative_to(mounted):
            best, kind = mounted, name
    return kind


def show(result: Result, json_file: Path | None) -> None:
    """Print the table to stderr, and the JSON to json_file, or else to stdout."""
    sys.stderr.write(result.text())
    sys.stderr.flush()
    if json_file is None:
        sys.stdout.buffer.write(result.json())
        sys.stdout.flush()
    else:
        json_file.write_bytes(result.json())
