"""The real nginx and the real Varnish, with the configurations of deploy/cdn, before edges."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.service import ROOT, _free_port
from tests.tools.debian import installed
from tests.tools.proxies import nginx_binary, running

NGINX_CONF = ROOT / "deploy/cdn/nginx/nginx.conf"
DEFAULT_VCL = ROOT / "deploy/cdn/varnish/default.vcl"
PURGE_SECRET = "as-secret-as-a-test-can-be"

Cache = Callable[[Path, int], AbstractContextManager[str]]


@contextmanager
def nginx(
    folder: Path, edge_port: int, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Run nginx before an edge, with some lines of its configuration changed, and yield its URL."""
    folder.mkdir()
    port = _free_port()
    text = _changed(
        NGINX_CONF.read_text(),
        {
            "server 127.0.0.1:4437;": f"server 127.0.0.1:{edge_port};",
            "listen 80 ": f"listen 127.0.0.1:{port} ",
            "/var/cache/nginx/headwater ": f"{folder}/cache ",
            "worker_processes auto;": "worker_processes 2;\ndaemon off;\npid nginx.pid;\n"
            + ("user root;" if os.geteuid() == 0 else ""),
            "worker_rlimit_nofile 65536;": "",  # what there is must do
            "worker_connections 32768;": "worker_connections 4096;",
            # Where a distribution's nginx would write as root alone.
            "http {": "http {\n"
            + "".join(
                f"{kind}_temp_path {folder}/{kind};\n"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
            **settings,
        },
    )
    (folder / "nginx.conf").write_text(text)
    binary = nginx_binary("nothing was tested behind nginx")
    command = [binary, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with running(command, folder, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def varnish(folder: Path, edge_port: int) -> Iterator[str]:
    """Run Varnish before an edge, and yield its URL."""
    folder.mkdir()
    os.chmod(folder, 0o755)  # its workers have a user of their own
    port = _free_port()
    text = _changed(
        DEFAULT_VCL.read_text(),
        {
            '.host = "edge-1";': '.host = "127.0.0.1";',
            '.host = "edge-2";': '.host = "127.0.0.1";',
            '.port = "4437";': f'.port = "{edge_port}";',
            ".interval = 2s;": ".interval = 1h;",  # what a test counts is not to be a probe
        },
    )
    (folder / "default.vcl").write_text(text)
    command = [_varnishd_binary(), "-F", "-n", str(folder / "n"), "-f", str(folder / "default.vcl")]
    options = ["-a", f"127.0.0.1:{port}", "-s", "malloc,512M", "-T", "none"]
    # Not to share a machine that is busy with all that a big one could do.
    small = ["-p", "thread_pools=1", "-p", "thread_pool_min=20", "-p", "vsl_space=8M"]
    secret = {"HEADWATER_PURGE_SECRET": PURGE_SECRET}
    with running([*command, *options, *small], folder, port, secret):
        yield f"http://127.0.0.1:{port}"


CACHES: Mapping[str, Cache] = {"nginx": nginx, "varnish": varnish}


def _varnishd_binary() -> str:
    found = installed("varnishd", "varnish")
    if found is None:
        pytest.skip(
            "nothing was tested behind Varnish: varnishd is not on PATH, and Debian's package "
            "can't be installed here"
        )
    return found


def _changed(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r} any more"
        text = text.replace(old, new)
    return text


def port_of(url: str) -> int:
    """Return the port of a URL without a path."""
    found = re.fullmatch(r"http://[^:]+:(\d+)", url)
    assert found is not None, url
    return int(found[1])
