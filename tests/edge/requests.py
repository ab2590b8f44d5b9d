"""Generated requests, well- and ill-formed: what a client, a proxy or an attacker may send."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Final

from shared.plain import HEAD_BYTES_MAX
from tests.edge.served import PREFIX

PATHS: Final = (
    *("nobody", "a//b", "./a", "../x", "a%2fb", "%zz", "%00", "%c3%28", "a%20b", "a/", ""),
    *("__ds/x", "__registry__/x", "..%2e", "%2e%2e", "a;b=c", "a+b", "~!$'()*,:@", "%7e"),
    *("q" * 1100, "%41" * 400),
)
LIVES: Final = (*4 * ("long-poll",), *2 * ("sse",), "", "SSE", "true", "long-poll ")
PARAMETERS: Final = (
    *("x=1", "x=1&x=2", "offset2=", "=", "", "%6Fffset=-1", "token=a%3Db", "LIVE=sse", "offset"),
    *("a=b=c", "?", "live%00=sse"),
)
OFFSETS: Final = (
    *("", "0", "-2", "NOW", "now%20", "0000000000000000_0000000000000000", "0,1", "a/b", "%30"),
    *("9999999999999999_9999999999999999", "0000000000000001_0000000000000001", "%2D1", "1_2"),
    *("%00", "%0a", "%ff", "0_0" * 90),
)
PLAIN_FIELDS: Final = (
    *(b"Accept: */*", b"User-Agent: a (b; c) d/1.0", b"Cookie: a=b; c=d", b"Range: bytes=0-1"),
    *(b"Accept-Encoding: gzip, br", b"Origin: http://a", b"X:", b"X: ", b"X-y: y"),
    *(b"X: \xff\xfe", b"X: a\tb", b"If-Match: *", b"If-Modified-Since: x", b"Last-Event-ID: 7"),
    *(b"Authorization: Bearer x", b"Forwarded: for=a", b"!#$%&'*+-.^_`|~9: x", b"Via: 1.1 a"),
    *(b"X-Forwarded-Proto: https", b"Stream-Closed: true", b"Content-Type: text/plain"),
    *(b"Pragma: no-cache", b"X-Request-Id: 1"),
)
ELSEWHERE: Final = (
    *(b"/health", b"/", b"/v1/stream", b"/v1/streamx/a", b"/x?offset=-1", b"//v1/stream/a", b"*"),
    *(b"/V1/stream/a", b"x"),
)
CHUNKED: Final = (
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"1;a=b\r\n\r\r\n0\r\nT: x\r\n\r\n",
)
CONNECTIONS: Final = (
    *(b"keep-alive, x", b"te, close", b"close, keep-alive", b"", b"x", b"Close "),
    b"close\r\nConnection: close",
)
WANTS: Final = (
    *(b"Upgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue", b"TE: trailers"),
    *(b"Keep-Alive: 5", b"Content-Encoding: gzip", b"Trailer: x", b"Expect: x"),
)
TWICE: Final = (
    *(b"User-Agent: a\r\nUser-Agent: a", b"Content-Type: a/b\r\nContent-Type: a/b"),
    *(b"X-Two: a\r\nX-two: b", b"ETag: a\r\nEtag: b", b"Cookie: a\r\nCookie: b"),
)
TAILS: Final = (*(b"#", b"#x", b"\xc3\xa4", b"\xff", b"|", b"<>", b'"', b"{}", b"^", b"`", b"\\x"),)
FIELDS: Final = (
    *(b"X : y", b" X: y", b"X: y\r\n folded", b"X: y\r\n\tfolded", b"no colon", b": y"),
    *(b"X\x00: y", b"\xc3\xa4: y", b"X(: y"),
)
METHODS: Final = (b"get", b"G@T", b"G T", b"", b" GET", b"GETGETGET")
VERSIONS: Final = (
    *(b"", b" http/1.1", b" HTTP/1.1 ", b"  HTTP/1.1", b" FTP/1.1", b"\tHTTP/1.1"),
    *(b" HTTP/1.1 x", b" HTTP/x.y", b" HTTP/1.1\r"),
)
HOSTS: Final = (
    *(b"", b"Host: x\r\n" * 2, b"Host: a b\r\n", b"Host: a,b\r\n", b"Host:\r\n"),
    *(b"Host: a/b\r\n", b"Host: \xff\r\n", b"Host: a@b\r\n", b"Host: [::1\r\n"),
    b"Host: a\r\nHOST: a\r\n",
)
LENGTHS: Final = (
    *(b"x", b"-1", b"+1", b"1_0", b"1, 1", b"0x1", b"1\r\nContent-Length: 2", b"9" * 20, b"\xb2"),
)
CODINGS: Final = (
    *(b"gzip", b"chunked, gzip", b"identity", b"chunked\r\nContent-Length: 3", b"xchunked"),
    b"chunked\r\nTransfer-Encoding: chunked",
)


@dataclass(frozen=True, slots=True)
class Known:
    """A stream that is there, and offsets that it minted."""

    path: str  # as it stands in a URL
    offsets: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what is known of it."""

    data: bytes
    method: str = "GET"
    plain: bool = False  # the lane must answer it by itself, if nothing else is on its way
    whole: bool = True  # nothing more is needed for a reply
    stays: bool = True  # neither the request nor its reply ends the connection


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What one connection sends: writes, one after the other."""

    asked: tuple[Asked, ...]
    cuts: tuple[int, ...] = ()  # where what is sent at once is cut into writes
    pipelined: bool = False  # all of it is sent at once; else each waits for the reply before

    @property
    def plain(self) -> bool:
        return all(one.plain for one in self.asked) and not self.pipelined

    @property
    def whole(self) -> bool:
        return all(one.whole for one in self.asked)

    def writes(self) -> list[list[bytes]]:
        """Return the writes of each turn; a reply is read after each turn."""
        turns = [one.data for one in self.asked]
        if self.pipelined:
            turns = [b"".join(turns)]
        return [_cut(turn, self.cuts) for turn in turns]


def _cut(data: bytes, cuts: tuple[int, ...]) -> list[bytes]:
    places = sorted({0, *(cut % len(data) for cut in cuts), len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@dataclass(slots=True)
class Generator:
    """Makes dialogues; the same seed makes the same ones."""

    seed: int
    streams: list[Known]
    chance: Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)

    def dialogue(self) -> Dialogue:
        chance = self.chance
        count = chance.choice((1, 1, 1, 2, 3, 5))
        cuts = tuple(chance.randrange(10_000) for _ in range(chance.choice((0, 0, 0, 1, 2, 5))))
        kind = chance.random()
        if kind < 0.4:
            return Dialogue(tuple(self.plain() for _ in range(count)), cuts)
        if kind < 0.7:
            asked = tuple(chance.choice((self.plain, self.odd))() for _ in range(count))
            return Dialogue(asked, cuts)
        if kind < 0.85:
            return Dialogue((*(self.plain() for _ in range(count - 1)), self.broken()), cuts)
        # What aiohttp says of a good request that a bad one follows, or of what follows a
        # `Connection: close`, depends on how the bytes were cut.
        asked = tuple(chance.choice((self.plain, self.odd))() for _ in range(2 * count))
        asked = tuple(one for one in asked if one.stays)
        return Dialogue(asked, cuts, pipelined=True) if asked else self.dialogue()

    # --- plain ones ------------------------------------------------------------------------------

    def plain(self) -> Asked:
        chance = self.chance
        target = self._target()
        fields = [self._plain_field() for _ in range(chance.choice((0, 0, 1, 2, 4)))]
        if chance.random() < 0.1:
            fields.append(chance.choice((b"Connection: keep-alive", b"connection: Keep-Alive")))
        elif chance.random() < 0.07:
            fields.append(chance.choice((b"Connection: close", b"CONNECTION:close")))
        tags = [f for f in fields if f.lower().startswith(b"if-none-match")]
        once = {f.partition(b":")[0].lower(): f for f in fields if f not in tags}
        fields = [*tags, *once.values()]
        chance.shuffle(fields)
        host = chance.choice((b"Host: x", b"host: 127.0.0.1:80", b"HOST:[::1]", b"Host:  x\t "))
        fields.insert(chance.randrange(len(fields) + 1), host)
        data = b"GET " + target + b" HTTP/1.1\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n"
        if chance.random() < 0.03:
            data = _padded(data, HEAD_BYTES_MAX)
        return Asked(
            data,
            plain=True,
            stays=b":close" not in data.replace(b" ", b"") and b"live=sse" not in data,
        )

    def _target(self) -> bytes:
        chance = self.chance
        stream = chance.choice(self.streams)
        path = stream.path
        if chance.random() < 0.15:
            path = chance.choice(PATHS)
        elif chance.random() < 0.1:
            path = "".join(
                f"%{ord(c):02x}" if chance.random() < 0.3 and c.isalnum() else c for c in path
            )
        return f"{PREFIX}{path}{self._query(stream)}".encode()

    def _query(self, stream: Known) -> str:
        chance = self.chance
        parts = []
        if chance.random() < 0.9:
            parts.append(f"offset={self._offset(stream)}")
        if chance.random() < 0.4:
            live = chance.choice(LIVES)
            parts.append(f"live={live.replace(' ', chance.choice(('+', '%20')))}")
        if chance.random() < 0.2:
            cursor = chance.choice(("1", "99999999", "abc", "", "%ff", "+5", "9" * 300, "%31"))
            parts.append(f"cursor={cursor}")
        if chance.random() < 0.2:
            parts.append(chance.choice(PARAMETERS))
        if chance.random() < 0.03:
            parts.append(chance.choice(("offset=-1", "live=sse", "cursor=1")))
        chance.shuffle(parts)
        return ("?" if parts or chance.random() < 0.1 else "") + "&".join(parts)

    def _offset(self, stream: Known) -> str:
        chance = self.chance
        if chance.random() < 0.75:
            return chance.choice((*stream.offsets, *stream.offsets, "-1", "now"))
        minted = chance.choice(stream.offsets)
        near = (minted[:-1], minted + "0", minted[:-1] + "1", minted.replace("_", "%5F"))
        return chance.choice((*OFFSETS, *near))

    def _plain_field(self) -> bytes:
        chance = self.chance
        if chance.random() > 0.4:
            return chance.choice(PLAIN_FIELDS)
        stream = chance.choice(self.streams)
        choices = (*stream.tags, '"x"', f"W/{stream.tags[0]}", "*", '"a,b"', "", '"')
        tags = ", ".join(chance.choice(choices) for _ in range(chance.choice((1, 1, 2, 3))))
        name = chance.choice((b"If-None-Match", b"if-none-match", b"IF-NONE-MATCH"))
        return name + chance.choice((b": ", b":", b":\t ")) + tags.encode()

    # --- odd ones, which are requests all the same -----------------------------------------------

    def odd(self) -> Asked:
        chance = self.chance
        asked = self.plain()
        plain, stays = asked.data, asked.stays
        line, _, rest = plain.partition(b"\r\n")
        target = line.split(b" ")[1]
        match chance.randrange(14):
            case 13:
                return Asked(_with(plain, chance.choice(TWICE)), stays=False)
            case 0:
                method = chance.choice(("HEAD", "OPTIONS", "PATCH", "TRACE", "M-SEARCH"))
                data = method.encode() + b" " + target + b" HTTP/1.1\r\n" + rest
                return Asked(data, method, stays=b"close" not in rest)
            case 1:
                version = chance.choice((b"1.0", b"1.2", b"2.0", b"0.9", b"1.10", b"1.", b"3"))
                return Asked(plain.replace(b"HTTP/1.1", b"HTTP/" + version, 1), stays=False)
            case 2:
                data = plain.replace(PREFIX.encode(), b"http://h" + PREFIX.encode(), 1)
                return Asked(data, stays=stays)
            case 3:
                other = chance.choice(ELSEWHERE)
                return Asked(plain.replace(target, other, 1), stays=False)
            case 4:
                body = chance.choice((b"x", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n", bytes(5000)))
                return Asked(_with(plain, b"Content-Length: %d" % len(body)) + body, stays=stays)
            case 5:
                data = _with(plain, b"Transfer-Encoding: chunked") + chance.choice(CHUNKED)
                return Asked(data, stays=stays)
            case 6:
                return Asked(_with(plain, b"Content-Length: 0"), stays=stays)
            case 7:
                return Asked(
                    _with(plain, b"Connection: " + chance.choice(CONNECTIONS)), stays=False
                )
            case 8:
                return Asked(chance.choice((b"\r\n", b"\r\n\r\n", b"\n")) + plain, stays=False)
            case 9:
                size = HEAD_BYTES_MAX + chance.choice((-1, 0, 1, 2))
                return Asked(_padded(plain, size), stays=stays)
            case 10:
                count = chance.choice((90, 99, 100, 101, 130))
                data = _with(plain, b"\r\n".join(b"X%d: y" % n for n in range(count)))
                return Asked(data, stays=False)
            case 11:
                return Asked(_with(plain, chance.choice(WANTS)), stays=False)
            case _:
                return Asked(plain.replace(target, target + chance.choice(TAILS), 1), stays=False)

    # --- broken ones, after which nobody knows where the next begins ------------------------------

    def broken(self) -> Asked:
        chance = self.chance
        plain = self.plain().data
        line, _, rest = plain.partition(b"\r\n")
        place = chance.randrange(1, len(plain) - 1)
        match chance.randrange(12):
            case 0:
                return Asked(plain.replace(b"\r\n", b"\n"), whole=False)
            case 1:
                return Asked(plain[:place] + b"\n" + plain[place:], whole=False)
            case 2:
                control = bytes([chance.choice((0, 1, 11, 127, 13))])
                return Asked(plain[:place] + control + plain[place:], whole=False)
            case 3:
                return Asked(_with(plain, chance.choice(FIELDS)))
            case 4:
                return Asked(plain.replace(b"GET", chance.choice(METHODS), 1))
            case 5:
                return Asked(plain.replace(b" HTTP/1.1", chance.choice(VERSIONS), 1))
            case 6:
                fields = rest.split(b"\r\n")
                others = [f + b"\r\n" for f in fields if f and not f.lower().startswith(b"host:")]
                hosts = chance.choice(HOSTS)
                return Asked(line + b"\r\n" + hosts + b"".join(others) + b"\r\n")
            case 7:
                field = b"Content-Length: " + chance.choice(LENGTHS)
                return Asked(_with(plain, field), whole=False)
            case 8:
                field = b"Transfer-Encoding: " + chance.choice(CODINGS)
                return Asked(_with(plain, field), whole=False)
            case 9:
                return Asked(_padded(plain, chance.choice((9000, 20_000, 70_000))))
            case 10:
                return Asked(plain[:place], whole=False)
            case _:
                size = chance.randrange(1, 60)
                return Asked(bytes(chance.randrange(256) for _ in range(size)), whole=False)


def _with(data: bytes, field: bytes) -> bytes:
    """Return a request with one more header."""
    assert data.endswith(b"\r\n\r\n")
    return data[:-2] + field + b"\r\n\r\n"


def _padded(data: bytes, size: int) -> bytes:
    """Return a request whose head has a size, by one more header or by several."""
    fields: list[bytes] = []
    missing = size - len(data)
    while missing > 30:
        length = min(missing, 4000)
        name = b"P%d: " % len(fields)
        fields.append(name + b"p" * (length - len(name) - 2) + b"\r\n")
        missing -= length
    return data[:-2] + b"".join(fields) + b"\r\n"
