"""Which stream a command means, and with which token."""

import os
import re
from urllib.parse import quote

from yarl import URL

from deploy.client.failures import Usage
from shared.protocol import names

BASE_URL = "http://127.0.0.1:4437/v1/stream/"


def base_url() -> str:
    """Return what paths are relative to."""
    return os.environ.get("HEADWATER_URL") or BASE_URL


def stream_url(text: str, base: str) -> URL:
    """Resolve what stands for a stream on the command line.

    Raises:
        Usage: it is no URL, or one that would silently name another stream.
    """
    if "://" not in text:
        root = stream_url(base, base) if "://" in base else URL()
        if not root.host or root.raw_query_string:
            raise Usage(f"$HEADWATER_URL is no http URL for {text} to go on: {redacted(base)}")
        path = quote(text, safe="/%?&=:@!$'()*+,;~")
        start = str(root.origin()) if text.startswith("/") else str(root).rstrip("/") + "/"
        if not text.strip("/"):
            raise Usage("an empty path names no stream")
        return stream_url(start + path, base)
    try:
        url = URL(text)
        host, _port = url.host, url.port
    except ValueError as error:
        raise Usage(f"{redacted(text)} is no URL") from error
    if url.scheme not in ("http", "https") or not host:
        raise Usage(f"{redacted(text)} is no http URL")
    if "#" in text:
        raise Usage(f"a stream's URL has no fragment; # in it is %23: {redacted(text)}")
    if {".", ".."} & set(text.partition("?")[0].split("/")):
        raise Usage(f"a stream's URL has no . or .. between slashes: {redacted(text)}")
    for name in names.KNOWN_QUERY & url.query.keys():
        raise Usage(f"give the URL of the stream alone, without {name}=")
    return url


def fork_path(text: str, target: URL) -> str:
    """Return the path of the stream to fork from, which is on the server of target.

    Raises:
        Usage: it is on another one.
    """
    origin = str(target.origin())
    source = stream_url(origin + text if text.startswith("/") else text, base_url())
    if source.origin() != target.origin():
        raise Usage(
            f"a fork begins on its own server: expected a stream of {origin}, received "
            f"{redacted(str(source))}; a path such as /v1/stream/foo is always of it"
        )
    return source.raw_path


def redacted(text: str) -> str:
    """Return a URL for messages, without what may be secret in it: user, password, query."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", text)[0])


def bearer(given: str | None, url: URL) -> str | None:
    """Return the token to send, if there is one; what is wrong with it is said without it.

    Raises:
        Usage: it can't be sent, or there are two credentials.
    """
    token = (given or os.environ.get("HEADWATER_TOKEN") or "").strip()
    if not token:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Usage("the token has characters that can't be sent")
    if url.user is not None:
        raise Usage("the URL has a user, and there is a token too: give one of them")
    return token
