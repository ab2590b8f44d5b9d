"""Listening sockets, and what every connection inherits from the one that it came by."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

BACKLOG: Final = 4096  # aiohttp's 128 overflows when a crowd comes back at once
# A peer that is gone without a word is found out after three minutes, not after the kernel's two
# hours. Longer than a live reply is silent, so a crowd that waits is not probed at all; and with
# as many tries in the user timeout, which else ends a connection at the first probe that is lost:
# probes of a crowd are lost together, as they are due together.
_KEEPALIVE_IDLE_S: Final = 120
_KEEPALIVE_PROBES: Final = 3
_KEEPALIVE_EVERY_S: Final = 20
_UNACKNOWLEDGED_MS: Final = 1000 * (_KEEPALIVE_IDLE_S + _KEEPALIVE_PROBES * _KEEPALIVE_EVERY_S)
# What a connection may have received and nobody has read yet. Requests are small, and the kernel's
# own choice grows to 6 MB; half of it is a window that still takes 1 MB/s over 60 ms.
_RECEIVE_BYTES: Final = 128 * 1024
# What may wait in the kernel that was not sent yet, so that a reader who stopped reading holds this
# much and not the 4 MB that its buffer may grow to. A fixed SO_SNDBUF would hold that too, but
# with it what is on its way, and so the rate over long lines.
_UNSENT_BYTES: Final = 128 * 1024


def listen_tcp(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that listens.

    Args:
        port: 0 picks a free one.
        reuse_port: whether other processes may listen there too; the kernel spreads connections.

    Raises:
        OSError: the address cannot be had.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES // 2)  # it is doubled
        tcp = socket.IPPROTO_TCP
        sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
        sock.setsockopt(tcp, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(tcp, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.setsockopt(tcp, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_S)
        sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        sock.setsockopt(tcp, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens, in place of one that a predecessor left behind.

    Raises:
        OSError: the path cannot be had.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
