"""Nchan: pub/sub within nginx, in C. Not of our protocol, so it has a speech of its own here.

It keeps messages in memory only and names them by a second and a count within it; a reader gives
both back as If-Modified-Since and If-None-Match, or, with events, as Last-Event-ID.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from string import Template
from typing import Final

from loadtests.client import (
    BadReply,
    Connection,
    Target,
    parse_head,
    parse_reply,
    required,
)
from loadtests.dialect import CONTENT_TYPE, Dialects, Place, Step, refusal, stamps_in, waves_in
from loadtests.speech import Speech

TEMPLATE: Final = Path(__file__).parent / "nginx" / "nchan.conf"
_MODULE: Final = "ngx_nchan_module.so"
_EVENT_ID: Final = re.compile(rb"^id: (\S+)$", re.MULTILINE)
_TIMED_OUT: Final = 408


class NchanMissing(Exception):
    """nginx or its module is not here; the message says what to install."""


class _LongPoll:
    def __init__(self, target: Target) -> None:
        self._target = target

    def request(self, path: str, place: Place) -> bytes:
        fields = ["Accept: */*", "User-Agent: headwater-loadtests"]
        if place.offset:
            fields += [f"If-Modified-Since: {place.offset}", f"If-None-Match: {place.cursor}"]
        return self._target.request("GET", path, *fields)

    def step(self, data: bytes) -> Step | None:
        reply = parse_reply(data)
        if reply is None:
            return None
        head = reply.head
        if head.status == _TIMED_OUT:
            return Step(204, ended=True)
        if head.status != 200:
            return refusal(head)
        place = Place(required(head, "Last-Modified"), required(head, "Etag"))
        return Step(200, waves_in(reply.body), stamps_in(reply.body), place, ended=True)


class _Events:
    def __init__(self, target: Target) -> None:
        self._target = target

    def request(self, path: str, place: Place) -> bytes:
        fields = ["Accept: text/event-stream", "User-Agent: headwater-loadtests"]
        if place.offset:
            fields.append(f"Last-Event-ID: {place.offset}")
        return self._target.request("GET", path, *fields)

    def step(self, data: bytes) -> Step | None:
        events = data
        if data.startswith(b"HTTP/1.1 "[: len(data)]):
            head = parse_head(data)
            if head is None:
                return None
            if head.status != 200:
                return refusal(head) if parse_reply(data) else None
            if head.chunked:
                raise BadReply("Nchan's events come without chunks")
            events = data[head.size :]
        # Its greeting is a comment, which a reader is parked only after.
        if not events.endswith(b"\n\n"):
            return None
        ids = _EVENT_ID.findall(events)
        place = Place(ids[-1].decode()) if ids else None
        return Step(200, waves_in(events), stamps_in(events), place)


_DIALECTS: Final[Dialects] = {"lp": _LongPoll, "sse": _Events}


class Nchan:
    """Channels that exist from their first use on."""

    dialects = _DIALECTS
    beginning = Place("")  # of a channel that has no message yet: wait for the next one

    def path(self, name: str) -> str:
        """Return where subscribers wait."""
        return f"/sub/{name}"

    def create(self, connection: Connection, name: str) -> Place:
        """Make nothing: a channel without messages is one that nobody has named yet."""
        return self.beginning

    def create_request(self, target: Target, name: str) -> None:
        """Return nothing, for the same reason."""

    def append_request(self, target: Target, name: str, body: bytes) -> bytes:
        """Return a POST to the publisher's place."""
        field = f"Content-Type: {CONTENT_TYPE}"
        return target.request("POST", f"/pub/{name}", field, body=body)


NCHAN: Final[Speech] = Nchan()


def find_nginx() -> tuple[str, Path]:
    """Return nginx's executable and Nchan's module.

    Raises:
        NchanMissing: one of them is not installed.
    """
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx is not None:
        built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
        modules = re.search(r"--modules-path=(\S+)", built)
        if modules is not None and (module := Path(modules[1]) / _MODULE).exists():
            return nginx, module
    raise NchanMissing(
        "nchan is nginx with a module: Debian has both as nginx-light and libnginx-mod-nchan "
        f"(`apt-get install`); found nginx: {nginx}, {_MODULE}: no"
    )


def configure(folder: Path, module: Path, port: int, workers: int, live_s: int) -> list[str]:
    """Write nginx's configuration into a folder, and return the arguments that start it there.

    Args:
        workers: processes, which share the port as Headwater's edges do.
        live_s: how long a subscriber waits.
    """
    limit = os.sysconf("SC_OPEN_MAX")
    text = Template(TEMPLATE.read_text()).substitute(
        module=module,
        user="user root;" if os.geteuid() == 0 else "",
        workers=workers,
        descriptors=limit,
        port=port,
        live_s=live_s,
    )
    (folder / "nginx.conf").write_text(text)
    return ["-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def version(nginx: str) -> dict[str, str]:
    """Return the versions that a report names; Nchan's own is not to be had from the module."""
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return {"nginx": said.strip().rpartition("/")[2]}
