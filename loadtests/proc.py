"""What a process and its children cost: CPU time and memory, read from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
# A process's CPU clock in nanoseconds, as clock_getcpuclockid(3) builds its id. The ticks of
# /proc/PID/stat are 10 ms, longer than a whole delivery to a thousand readers takes.
_CPU_CLOCK: Final = 2
# Of one core; a server that idles stays below it, one that works does not. Each of its processes
# has timers besides, which come in bursts.
QUIET_SHARE: Final = 0.1
_TIMERS_SHARE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Memory:
    """User memory of all processes of a server, in bytes.

    `pss` divides pages shared with others by how many share them, `uss` counts unshared ones only.
    """

    pss: int
    uss: int


class Tree:
    """A process and its descendants, as they are when this is made."""

    def __init__(self, root: int) -> None:
        """Find the descendants of the process `root`."""
        children: defaultdict[int, list[int]] = defaultdict(list)
        for entry in PROC.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # The name, in parentheses, may hold spaces; the parent is second behind it.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # it ended meanwhile
                continue
            children[int(parent)].append(int(entry.name))
        self.pids = [root]
        for pid in self.pids:
            self.pids.extend(children[pid])

    @classmethod
    def of(cls, pids: Iterable[int]) -> Tree:
        """Return these processes, which need not be related."""
        tree = cls.__new__(cls)
        tree.pids = list(pids)
        return tree

    def without(self, other: Tree) -> Tree:
        """Return the processes that are not among others."""
        return Tree.of(pid for pid in self.pids if pid not in other.pids)

    def named(self, *starts: str) -> Tree:
        """Return those whose names, as `ps` shows them, start with one of these words."""
        return Tree.of(pid for pid in self.pids if process_name(pid).startswith(starts))

    def resident_bytes(self) -> int:
        """Return the sum of what each has resident, shared pages counted by each: at once."""
        pages = 0
        for pid in self.pids:
            with suppress(OSError):
                pages += int((PROC / str(pid) / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """Return the sum of the most that each of them ever had resident, since reset_peak."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.pids)

    def reset_peak(self) -> None:
        """Let peak_bytes count from now on."""
        for pid in self.pids:
            with suppress(OSError):
                (PROC / str(pid) / "clear_refs").write_text("5")  # proc(5): resets VmHWM

    def cpu_s(self) -> float:
        """Return the CPU time of all of them so far, user and system, in seconds."""
        return sum(_cpu_s(pid) for pid in self.pids)

    def cpu_s_each(self) -> dict[int, float]:
        """Return the same by process."""
        return {pid: _cpu_s(pid) for pid in self.pids}

    def memory(self) -> Memory:
        """Return the user memory of all of them; the kernel's sockets are not in it."""
        pss = uss = 0
        for pid in self.pids:
            try:
                lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            kib = {key: int(rest.split()[0]) for key, _, rest in map(_cut, lines[1:])}
            pss += kib["Pss"] * 1024
            uss += (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024
        return Memory(pss, uss)

    def settle(self, quiet_s: float = 0.25, limit_s: float = 120.0) -> float | None:
        """Wait until the processes have been idle for quiet_s, but for what they do now and then.

        Returns:
            When they began to rest, on the monotonic clock; None if they did not in limit_s.
        """
        # Over all of that time, not in each moment of it: what 100,000 waiting readers cost is
        # little, but it is a millisecond of work here and another there.
        share = QUIET_SHARE + _TIMERS_SHARE * len(self.pids)
        seen = deque([(time.monotonic(), self.cpu_s())])
        deadline = seen[0][0] + limit_s
        while seen[-1][0] < deadline:
            time.sleep(0.02)
            seen.append((time.monotonic(), self.cpu_s()))
            while len(seen) > 2 and seen[-1][0] - seen[1][0] >= quiet_s:
                seen.popleft()
            (began, before), (now, cpu) = seen[0], seen[-1]
            if now - began >= quiet_s and cpu - before <= share * (now - began):
                return began
        return None


def process_name(pid: int) -> str:
    """Return the name of a process, at most 15 bytes; none if it ended."""
    try:
        return (PROC / str(pid) / "comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Elsewhere:
    """What the machine does beside this run: its processes are this one and its descendants."""

    def __init__(self) -> None:
        """Measure from now on; whoever works for the run must have been started."""
        self._own = Tree(os.getpid())
        self._began = time.monotonic()
        self._busy_s = _machine_busy_s() - self._own.cpu_s()

    def cores(self) -> float:
        """Return how many cores others have used since; what a hypervisor took away is in it."""
        busy_s = _machine_busy_s() - self._own.cpu_s() - self._busy_s
        # The machine's clock ticks in 10 ms, so a moment without others may come out below 0.
        return max(0.0, busy_s / (time.monotonic() - self._began))


def _machine_busy_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cut(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    except OSError:  # it ended
        return 0.0


_LISTENING = "0A"  # as include/net/tcp_states.h numbers it


def accept_queue(port: int) -> int:
    """Return how many connections wait to be accepted on a port, in its longest queue.

    Listening sockets come first in /proc/net/tcp: reading stops behind them, however many readers
    are connected.
    """
    longest = 0
    with (PROC / "net" / "tcp").open() as file:
        next(file)  # the heading
        for line in file:
            words = line.split()
            if words[3] != _LISTENING:
                break
            if words[1].endswith(f":{port:04X}"):
                longest = max(longest, int(words[4].split(":")[1], 16))
    return longest
