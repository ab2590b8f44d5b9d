"""What the kernel holds for sockets, which stands in no process's memory: slabs, and listen counts.

A connection over loopback has both of its ends on this machine: two sockets, two descriptors, two
places in an epoll. The kernel's books do not tell a server's from a client's: they count both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.proc import PROC

CGROUP: Final = Path("/sys/fs/cgroup")
ENDS: Final = 2  # of a loopback connection, and near enough alike: a client's port is some 50 bytes
# A socket has one of each, and so they are counted. There are more: a monitor that lists the open
# descriptors of all processes was seen to leave another 400 bytes for each connection.
_ONE_EACH: Final = ("dentry", "lsm_inode_cache")
_INODE: Final = "sock_inode_cache"
_SLABS: Final = frozenset(
    {
        "TCP",
        "TCPv6",
        "ep_head",
        "eventpoll_epi",
        "eventpoll_pwq",
        "filp",
        "lsm_file_cache",
        "request_sock_TCP",
        _INODE,
        "tcp_bind2_bucket",
        "tcp_bind_bucket",
        "tw_sock_TCP",
    }
)
_MIXED: Final = ("kmalloc-", "skbuff_")  # of which sockets take some


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """Bytes that the kernel holds, for sockets above all, and which of its books says so."""

    source: str
    caches: Mapping[str, int]

    @property
    def held(self) -> int:
        """Return the sum."""
        return sum(self.caches.values())

    def growth(self, before: KernelMemory) -> dict[str, int]:
        """Return by how much each cache has grown, the largest first."""
        grown = {name: held - before.caches.get(name, 0) for name, held in self.caches.items()}
        return dict(sorted(grown.items(), key=lambda one: -one[1]))


def kernel_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> KernelMemory:
    """Return what sockets hold now; only growth means something.

    In order of trust: /proc/slabinfo (root reads it) by the caches that sockets live in; `slab` and
    `sock` of this process's cgroup, version 2, which must be the servers', too; Slab of
    /proc/meminfo, in which are files, too.
    """
    slabinfo = _read(proc / "slabinfo")
    if slabinfo:
        return KernelMemory("slabinfo", slab_bytes(slabinfo))
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, _, group = line.split(":", 2)
        if number == "0":
            stat = dict(
                map(str.split, _read(cgroup / group.lstrip("/") / "memory.stat").splitlines())
            )
            if "slab" in stat and "sock" in stat:
                return KernelMemory("cgroup", {key: int(stat[key]) for key in ("slab", "sock")})
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "Slab":
            return KernelMemory("meminfo", {name: int(rest.split()[0]) * 1024})
    return KernelMemory("none", {})


def slab_bytes(slabinfo: str) -> dict[str, int]:
    """Return what objects in the caches that sockets live in take, by /proc/slabinfo.

    An object takes its share of the pages of its slab, with what is left over there. Slabs that an
    earlier crowd has left empty are not counted: they would hide the next one.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    caches = {}
    for line in slabinfo.splitlines()[2:]:
        name, *figures = line.split()
        caches[name] = list(map(int, figures[:5]))
    sockets = caches[_INODE][0] if _INODE in caches else 0
    held = {}
    for name, (objects, _, _, objects_per_slab, pages_per_slab) in caches.items():
        if name in _ONE_EACH:
            objects = sockets
        elif name not in _SLABS and not name.startswith(_MIXED):
            continue
        held[name] = objects * pages_per_slab * page // objects_per_slab
    return held


@dataclass(frozen=True, slots=True)
class ListenLosses:
    """Connections that the kernel turned away as nobody accepted, on the whole machine."""

    overflows: int  # the accept queue was full when the handshake ended
    drops: int  # those, and other reasons not to take a SYN

    def __sub__(self, before: ListenLosses) -> ListenLosses:
        """Return how many there were since."""
        return ListenLosses(self.overflows - before.overflows, self.drops - before.drops)


def listen_losses(netstat: str | None = None) -> ListenLosses:
    """Return the counts since the machine started, from the text of /proc/net/netstat."""
    text = (PROC / "net" / "netstat").read_text() if netstat is None else netstat
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    counts = dict(zip(names, values, strict=True))
    return ListenLosses(int(counts["ListenOverflows"]), int(counts["ListenDrops"]))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
