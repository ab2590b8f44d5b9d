"""The real nginx before two edges, and all four processes of such a service."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from tests.service import _free_port
from tests.tools.proxies import nginx_binary, running

_CONFIGURATION = Path(__file__).parent / "nginx.conf"


@contextmanager
def nginx(folder: Path, one: int, other: int) -> Iterator[str]:
    """Run nginx before edges at two ports, and yield its URL."""
    folder.mkdir()
    port = _free_port()
    text = Template(_CONFIGURATION.read_text()).substitute(
        user="user root;" if os.geteuid() == 0 else "",
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        one=one,
        other=other,
        readers=8192,
        port=port,
    )
    (folder / "nginx.conf").write_text(text)
    command = [nginx_binary("not drained behind a proxy"), "-p", str(folder), "-c", "nginx.conf"]
    with running([*command, "-e", "stderr"], folder, port):
        yield f"http://127.0.0.1:{port}"
