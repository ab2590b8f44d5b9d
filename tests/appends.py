"""Generated appends, well- and ill-formed, on few streams, so that each meets what others did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from origin.lane import BODY_BYTES_MAX
from shared.plain import HEAD_BYTES_MAX
from tests.edge.dialogues import SENTINEL, ask
from tests.edge.requests import (
    CHUNKED,
    CODINGS,
    CONNECTIONS,
    FIELDS,
    HOSTS,
    LENGTHS,
    PATHS,
    PLAIN_FIELDS,
    TAILS,
    TWICE,
    VERSIONS,
    WANTS,
    Asked,
    Dialogue,
)
from tests.edge.served import PREFIX, Line, Reply

TYPES: Final = ("text/plain", "application/json", "application/octet-stream")
OTHER_TYPES: Final = (
    *(b"TEXT/Plain", b"text/plain; charset=utf-8", b"application/json;x=y", b"nonsense", b""),
    *(b"text/html", b"application/json, text/plain", b"a/b/c", b" ; ", b"text/plain;"),
)
JSONS: Final = (
    *(b"1", b'{"a":1}', b"[1,2,3]", b"[]", b"[[]]", b" [ 1 , 2 ]\r\n", b'"\xc3\xa4"', b"1.0e400"),
    *(b"{", b"[1,]", b"NaN", b'"\xff"', b"1 2", b"[" * 2000, b'{"a":1,"a":2}', b"\xef\xbb\xbf1"),
    *(b"[" * 1024 + b"]" * 1024, b"null", b"   ", b"-0", b'"\\ud800"'),
)
SEQS: Final = (b"", b"0", b"a", b"A", b"~", b"x" * 300, b"a b", b"00000000000000000001")
INTEGERS: Final = (
    *(b"-1", b"01", b"", b"x", b"1.0", b"+1", b"9007199254740991", b"9007199254740992"),
    *(b"9" * 30, b"1 ", b"1,2"),
)
CLOSINGS: Final = (b"true", b"TRUE ", b"false", b"1", b"", b"true, true")
KEPT: Final = (b"Connection: keep-alive", b"connection:close", b"Connection: CLOSE")
TAGS: Final = (b"*", b'"x"', b"W/*", b'W/"x"', b"x", b"", b'"a", *', b'"', b"*, *", b'"a" "b"')


@dataclass(slots=True)
class Tally:
    """What dialogues have covered."""

    plain: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def check(self, dialogues: int) -> None:
        """Hold against nothing what was hardly tried: no way may be spared its part."""
        assert self.plain > dialogues / 3
        assert set(self.statuses) >= {200, 204, 400, 403, 404, 409, 412}, self.statuses


async def say_to_both(
    ours: Line, theirs: Line, appends: Appends, tally: Tally, check: Callable[[Dialogue], None]
) -> None:
    """Hold the next dialogue on two connections, which must hear the same; both are closed.

    Args:
        check: looks at what became of the dialogue besides.
    """
    dialogue = appends.dialogue()
    try:
        heard, expected = await asyncio.gather(ask(ours, dialogue), ask(theirs, dialogue))
        assert heard == expected
        check(dialogue)
    except BaseException as error:
        error.add_note(repr(dialogue))
        raise
    finally:
        ours.close()
        theirs.close()
    appends.learn(heard)
    tally.plain += dialogue.plain
    tally.statuses.update(reply.status for reply in heard if reply is not None)


@dataclass(slots=True)
class Message:
    """A request in its parts."""

    target: bytes
    fields: list[bytes]
    body: bytes = b""

    def data(self, *more: bytes, version: bytes = b" HTTP/1.1", method: bytes = b"POST") -> bytes:
        """Return its bytes, with more fields."""
        lines = [method + b" " + self.target + version, *self.fields, *more]
        return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + self.body


@dataclass(slots=True)
class Appends:
    """Makes dialogues of appends; the same seed and the same replies make the same ones."""

    seed: int
    chance: Random = field(init=False)
    paths: list[str] = field(init=False)
    tags: list[bytes] = field(default_factory=list)  # that replies told
    sent: Counter[tuple[bytes, bytes, bytes]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.paths = [f"s{number}" for number in range(30)]

    def content_type(self, path: str) -> str:
        return TYPES[int(path[1:]) % len(TYPES)]

    def learn(self, replies: list[Reply | None]) -> None:
        """Take in what was said of the streams, for later requests."""
        for reply in replies:
            if reply is not None and (tag := reply.header("etag")) is not None:
                self.tags = [*self.tags[-20:], tag.encode()]

    def dialogue(self) -> Dialogue:
        chance = self.chance
        count = chance.choice((1, 1, 2, 3, 5))
        cuts = tuple(chance.randrange(10_000) for _ in range(chance.choice((0, 0, 0, 1, 2, 5))))
        kind = chance.random()
        if kind < 0.5:
            return Dialogue(tuple(self.plain() for _ in range(count)), cuts)
        if kind < 0.7:
            asked = tuple(chance.choice((self.plain, self.odd))() for _ in range(count))
            return Dialogue(asked, cuts)
        if kind < 0.82:
            return Dialogue((*(self.plain() for _ in range(count - 1)), self.broken()), cuts)
        asked = tuple(
            chance.choice((self.plain, self.plain, self.read, self.odd))() for _ in range(3 * count)
        )
        asked = tuple(one for one in asked if one.stays)
        return Dialogue(asked, cuts, pipelined=True) if asked else self.dialogue()

    # --- plain ones ------------------------------------------------------------------------------

    def plain(self) -> Asked:
        message = self._message()
        fields = message.fields
        closes = any(f.lower().replace(b" ", b"") == b"connection:close" for f in fields)
        small = len(message.body) <= BODY_BYTES_MAX
        return Asked(message.data(self._length(message)), "POST", plain=small, stays=not closes)

    def read(self) -> Asked:
        """A read in between sees what was appended before it."""
        target = f"{PREFIX}{self.chance.choice(self.paths)}?offset=-1".encode()
        return Asked(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    def _message(self) -> Message:
        chance = self.chance
        path = chance.choice(self.paths)
        kind = self.content_type(path)
        target = path if chance.random() < 0.95 else chance.choice(PATHS)
        query = chance.choice(("", "", "", "?", "?x=1", "?offset=-1", "?live=sse&live=x"))
        fields = [chance.choice((b"Host: x", b"host: 127.0.0.1:80", b"HOST:[::1]", b"Host:  x\t "))]
        if chance.random() < 0.85:
            fields.append(chance.choice((b"Content-Type: ", b"content-type:")) + kind.encode())
        elif chance.random() < 0.8:
            fields.append(b"Content-Type: " + chance.choice(OTHER_TYPES))
        if chance.random() < 0.4:
            fields += self._producer(path.encode())
        if chance.random() < 0.2:
            known = b"%06d" % chance.randrange(1000)
            fields.append(b"Stream-Seq: " + chance.choice((known, known, *SEQS)))
        if chance.random() < 0.15:
            fields.append(b"If-Match: " + chance.choice((*TAGS, *self.tags, *self.tags)))
        if chance.random() < 0.04:
            fields.append(b"Stream-Closed: " + chance.choice(CLOSINGS))
        if chance.random() < 0.12:
            fields.append(chance.choice(KEPT))
        more = [f for f in PLAIN_FIELDS if f.isascii()]
        fields += chance.sample(more, chance.choice((0, 0, 1, 3)))
        once: dict[bytes, bytes] = {}
        for line in fields:
            once.setdefault(line.partition(b":")[0].lower(), line)
        fields = list(once.values())
        chance.shuffle(fields)
        return Message(f"{PREFIX}{target}{query}".encode(), fields, self._body(kind))

    def _body(self, kind: str) -> bytes:
        chance = self.chance
        if chance.random() < 0.05:
            return b""
        if chance.random() < 0.02:
            size = chance.choice((8189, 20_000, 65_535, 65_536, 65_537))
            return b"1" * size
        if kind == "application/json":
            return chance.choice(JSONS)
        return chance.randbytes(chance.choice((1, 10, 100, 1000)))

    def _producer(self, path: bytes) -> list[bytes]:
        chance = self.chance
        name, epoch = chance.choice((b"p", b"q")), chance.choice((b"0", b"0", b"0", b"1", b"2"))
        key = (path, name, epoch)
        seq = b"%d" % self.sent[key]
        if chance.random() < 0.7:
            self.sent[key] += 1
        else:
            step = chance.choice((-2, -1, 1, 5))
            seq = b"%d" % max(0, int(seq) + step)
        fields = [b"Producer-Id: " + name, b"producer-epoch: " + epoch, b"Producer-Seq: " + seq]
        if chance.random() < 0.1:
            fields[chance.randrange(3)] += chance.choice((b" ", b"\t ", *INTEGERS))
        if chance.random() < 0.05:
            del fields[chance.randrange(3)]
        return fields

    def _length(self, message: Message) -> bytes:
        name = self.chance.choice((b"Content-Length: ", b"content-length:"))
        return name + b"%d" % len(message.body)

    # --- odd ones, which are requests all the same -----------------------------------------------

    def odd(self) -> Asked:
        chance = self.chance
        message = self._message()
        length = self._length(message)
        match chance.randrange(12):
            case 0:
                message.body = b""
                return Asked(message.data(), "POST", stays=False)
            case 1:
                message.body = chance.choice(CHUNKED)
                return Asked(message.data(b"Transfer-Encoding: chunked"), "POST", stays=False)
            case 2:
                return Asked(message.data(length, chance.choice(WANTS)), "POST", stays=False)
            case 3:
                return Asked(message.data(length, chance.choice(TWICE)), "POST", stays=False)
            case 4:
                again = chance.choice(message.fields)
                return Asked(message.data(length, again), "POST", stays=False)
            case 5:
                connection = b"Connection: " + chance.choice(CONNECTIONS)
                return Asked(message.data(length, connection), "POST", stays=False)
            case 6:
                version = b" HTTP/" + chance.choice((b"1.0", b"1.2", b"2.0", b"0.9"))
                return Asked(message.data(length, version=version), "POST", stays=False)
            case 7:
                message.target += chance.choice(TAILS)
                return Asked(message.data(length), "POST", stays=False)
            case 8:
                message.target = b"http://h" + message.target
                return Asked(message.data(length), "POST", stays=False)
            case 9:
                missing = HEAD_BYTES_MAX + chance.choice((-40, -1, 0, 1, 40))
                missing -= len(message.data(length)) - len(message.body)
                field_ = b"Padding: " + b"p" * max(0, missing - 11)
                return Asked(message.data(length, field_), "POST", stays=False)
            case 10:
                count = chance.choice((80, 90, 99, 100, 101, 130)) - len(message.fields)
                more = [b"X%d: y" % number for number in range(count)]
                return Asked(message.data(length, *more), "POST", stays=False)
            case _:
                blank = chance.choice((b"\r\n", b"\r\n\r\n", b"\n"))
                return Asked(blank + message.data(length), "POST", stays=False)

    # --- broken ones, after which nobody knows where the next begins ------------------------------

    def broken(self) -> Asked:
        chance = self.chance
        message = self._message()
        message.body = message.body[:1000]
        # What aiohttp says of what follows a last request depends on how the bytes were cut.
        message.fields = [f for f in message.fields if not f.lower().startswith(b"connection")]
        length = self._length(message)
        whole = message.data(length)
        place = chance.randrange(1, len(whole) - len(message.body) - 2)
        match chance.randrange(12):
            case 0:
                return Asked(whole.replace(b"\r\n", b"\n"), "POST", whole=False)
            case 1:
                return Asked(whole[:place] + b"\n" + whole[place:], "POST", whole=False)
            case 2:
                control = bytes([chance.choice((0, 1, 11, 127, 13))])
                return Asked(whole[:place] + control + whole[place:], "POST", whole=False)
            case 3:
                return Asked(message.data(length, chance.choice(FIELDS)), "POST", whole=False)
            case 4:
                method = chance.choice((b"post", b"P@ST", b"PO ST", b" POST", b"POSTPOST"))
                return Asked(message.data(length, method=method), "POST", whole=False)
            case 5:
                version = chance.choice(VERSIONS)
                return Asked(message.data(length, version=version), "POST", whole=False)
            case 6:
                hosts = chance.choice(HOSTS).split(b"\r\n")[:-1]
                others = [f for f in message.fields if not f.lower().startswith(b"host:")]
                message.fields = [*hosts, *others]
                return Asked(message.data(length), "POST", whole=False)
            case 7:
                field_ = b"Content-Length: " + chance.choice(LENGTHS)
                return Asked(message.data(field_), "POST", whole=False)
            case 8:
                field_ = b"Transfer-Encoding: " + chance.choice(CODINGS)
                return Asked(message.data(length, field_), "POST", whole=False)
            case 9:
                return Asked(message.data(length, length), "POST", whole=False)
            case 10:
                # What follows is its body, or what was to be its body follows: a whole request.
                field_ = b"Content-Length: %d" % (len(message.body) + len(SENTINEL))
                return Asked(message.data(field_), "POST", whole=False)
            case _:
                following = chance.choice((self.plain, self.read))()
                return Asked(whole + following.data * following.stays, whole=False)
