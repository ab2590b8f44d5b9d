"""The kernel's books of sockets."""

import os
import socket
from pathlib import Path

from loadtests.kernel import KernelMemory, kernel_memory, listen_losses, slab_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")
SLABINFO = """\
slabinfo - version: 2.1
# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <b> <s>
TCP 26 39 2368 13 8 : tunables 0 0 0 : slabdata 3 3 0
sock_inode_cache 30 38 832 19 4 : tunables 0 0 0 : slabdata 2 2 0
dentry 5000 5040 192 20 1 : tunables 0 0 0 : slabdata 240 240 0
filp 42 42 192 21 1 : tunables 0 0 0 : slabdata 2 2 0
kmalloc-64 64 64 64 64 1 : tunables 0 0 0 : slabdata 1 1 0
ext4_inode_cache 1000 1000 1000 10 4 : tunables 0 0 0 : slabdata 100 100 0
"""
HELD = {
    "TCP": 2 * 8 * PAGE,
    "sock_inode_cache": 30 * 4 * PAGE // 19,
    "dentry": 30 * PAGE // 20,  # as many as there are sockets: the others are files'
    "filp": 2 * PAGE,
    "kmalloc-64": PAGE,
}


def test_slabs_of_sockets_are_counted_by_their_objects_and_those_of_files_are_not() -> None:
    assert slab_bytes(SLABINFO) == HELD


def test_the_best_book_that_can_be_read_is_used(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    assert kernel_memory(proc, cgroup) == KernelMemory("none", {})
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9 kB\nSlab:      5 kB\n")
    assert kernel_memory(proc, cgroup) == KernelMemory("meminfo", {"Slab": 5 * 1024})
    (proc / "self" / "cgroup").write_text("4:memory:/old\n0::/a/b\n")
    (cgroup / "a" / "b").mkdir(parents=True)
    (cgroup / "a" / "b" / "memory.stat").write_text("anon 7\nsock 20\nslab 300\n")
    assert kernel_memory(proc, cgroup) == KernelMemory("cgroup", {"slab": 300, "sock": 20})
    (proc / "slabinfo").write_text(SLABINFO)
    assert kernel_memory(proc, cgroup) == KernelMemory("slabinfo", HELD)


def test_growth_is_by_cache_the_largest_first() -> None:
    before = KernelMemory("slabinfo", {"a": 5, "b": 5})
    after = KernelMemory("slabinfo", {"a": 6, "b": 9, "c": 2})
    assert list(after.growth(before).items()) == [("b", 4), ("c", 2), ("a", 1)]
    assert after.held == 17


def test_connections_are_held_by_this_kernel() -> None:
    before = kernel_memory()
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [socket.create_connection(server.getsockname()) for _ in range(100)]
        after = kernel_memory()
        for one in pairs:
            one.close()
    assert after.source == before.source != "none"


def test_listen_losses_are_told_apart() -> None:
    text = "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: B\nIpExt: 4\n"
    losses = listen_losses(text)
    assert (losses.overflows, losses.drops) == (2, 3)
    since = losses - listen_losses(text.replace(" 2 3", " 1 1"))
    assert (since.overflows, since.drops) == (1, 2)


def test_this_machine_counts_them() -> None:
    assert listen_losses().drops >= listen_losses().overflows >= 0
