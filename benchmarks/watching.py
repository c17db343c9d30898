"""Watchers of runs in a process of their own: one event loop, one raw connection to the event stream for each watcher.

As a program (`feed.py` starts it): one line of JSON on standard input says whom to watch; then each line that comes in is answered
with what has been seen since the line before. The counting is as plain as it can be, because it takes place on the measured machine.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

CONNECTING_AT_ONCE = 64
CONNECTING_SECONDS_MAX = 60.0

_VERSIONS = re.compile(rb'"fromVersion":(\d+),"version":(\d+)')
_MOMENT = re.compile(rb'"value":(\d{6,})')


@dataclass
class Watch:
    """Whom to watch: each run this many times; or the event streams at `paths`, which tell of several runs. Of every so many deltas of
    a run one is looked at for the moment of its update."""

    url: str
    secret_key: str
    run_ids: list[str]
    paths: list[str] = field(default_factory=list[str])
    times: int = 1
    sample_every: int = 1


@dataclass
class Seen:
    """What all watchers together have seen since the last time they were asked.

    Attributes:
        open: connections that are open now.
        ended: streams that the server has ended because the run was over, since the beginning.
        versions: steps of documents; a frame may carry several.
        latencies_ms: from an update to its arrival.
        seconds: since the last time.
    """

    open: int = 0
    ended: int = 0
    frames: int = 0
    versions: int = 0
    bytes: int = 0
    latencies_ms: list[float] = field(default_factory=list[float])
    seconds: float = 0.0

    def plus(self, later: Seen) -> Seen:
        """Both together."""
        return Seen(
            open=later.open,
            ended=later.ended,
            frames=self.frames + later.frames,
            versions=self.versions + later.versions,
            bytes=self.bytes + later.bytes,
            latencies_ms=self.latencies_ms + later.latencies_ms,
            seconds=self.seconds + later.seconds,
        )


class Counters:
    """Shared by all watchers of the process."""

    def __init__(self, sample_every: int) -> None:
        self.sample_every = sample_every
        self.seen = Seen()
        self.began_at = time.monotonic()

    def take(self) -> Seen:
        """What was seen since the last time; counting starts anew."""
        now = time.monotonic()
        seen, self.seen = self.seen, Seen(open=self.seen.open, ended=self.seen.ended)
        seen.seconds = now - self.began_at
        self.began_at = now
        return seen


class Watcher(asyncio.Protocol):
    """One connection. `is_ready` is done when the snapshot has come."""

    def __init__(self, request: bytes, counters: Counters) -> None:
        self._request = request
        self._counters = counters
        # The beginning of an event, in pieces: a large one is joined once.
        self._rest: list[bytes] = []
        self.is_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        cast("asyncio.Transport", transport).write(self._request)
        self._counters.seen.open += 1

    def data_received(self, data: bytes) -> None:
        """Count what has come; an event ends with an empty line."""
        seen = self._counters.seen
        seen.bytes += len(data)
        self._rest.append(data)
        # The end of an event may be cut in its middle.
        if b"\n\n" not in b"".join(self._rest[-2:])[-len(data) - 1 :]:
            return
        *events, rest = b"".join(self._rest).split(b"\n\n")
        self._rest = [rest]
        for event in events:
            if b"event: delta\n" in event:
                self._count(event, seen)
            elif b"event: snapshot\n" in event or b"event: present\n" in event:
                if not self.is_ready.done():
                    self.is_ready.set_result(None)
            elif b"event: end\n" in event:
                seen.ended += 1
            # Else it is a sign of life.

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has ended it, or this program."""
        self._counters.seen.open -= 1
        if not self.is_ready.done():
            self.is_ready.set_exception(ConnectionError(f"refused: {b''.join(self._rest)[:300]!r}"))

    def _count(self, event: bytes, seen: Seen) -> None:
        versions = _VERSIONS.search(event)
        if versions is None:
            # Only the state of the run has changed.
            return
        seen.frames += 1
        seen.versions += int(versions[2]) - int(versions[1])
        if seen.frames % self._counters.sample_every == 0:
            now = time.monotonic_ns()
            seen.latencies_ms += [(now - int(moment)) / 1e6 for moment in _MOMENT.findall(event)]


async def watch_all(wanted: Watch) -> None:
    """Connect everything, say so, then answer line by line until standard input ends."""
    counters = Counters(wanted.sample_every)
    address = urlsplit(wanted.url)
    host, port = address.hostname or "", address.port or 80
    loop = asyncio.get_running_loop()
    turn = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def connect(path: str) -> None:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {wanted.secret_key}\r\nAccept: text/event-stream\r\n\r\n"
        ).encode()
        async with turn:
            _, watcher = await loop.create_connection(lambda: Watcher(request, counters), host, port)
            await watcher.is_ready

    async with asyncio.timeout(CONNECTING_SECONDS_MAX), asyncio.TaskGroup() as group:
        for path in [
            *(f"/api/v1/runs/{run_id}/feed" for run_id in wanted.run_ids),
            *wanted.paths,
        ] * wanted.times:
            group.create_task(connect(path))
    _answer(counters.take())
    while await asyncio.to_thread(sys.stdin.readline):
        _answer(counters.take())


def _answer(seen: Seen) -> None:
    print(json.dumps(asdict(seen)), flush=True)


class Watchers:
    """The process with the watchers, seen from the program that measures. A context manager: they end with its block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        # Waits for its end.
        self._process.__exit__(None, None, None)

    def take(self) -> Seen:
        """What they have seen since the last time."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read()

    def take_until_ended(self, streams: int, *, seconds: float) -> Seen:
        """What they see until the server has ended this many streams. Raises TimeoutError."""
        until = time.monotonic() + seconds
        seen = self.take()
        while seen.ended < streams:
            if time.monotonic() > until:
                raise TimeoutError(f"{seen.ended} of {streams} streams came to their end within {seconds} s")
            time.sleep(0.05)
            seen = seen.plus(self.take())
        return seen

    def read(self) -> Seen:
        """Their next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the watchers have ended; what they wrote to standard error says why")
        fields: dict[str, Any] = json.loads(line)
        return Seen(**fields)


def watch(wanted: Watch) -> Watchers:
    """Start watching; returns when every watcher has its first frame."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    watchers = Watchers(process)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(wanted)) + "\n")
        process.stdin.flush()
        watchers.read()
    except BaseException:
        watchers.__exit__()
        raise
    return watchers


def main() -> None:
    """Read whom to watch, and do it."""
    wanted = Watch(**json.loads(sys.stdin.readline()))
    try:
        import uvloop
    except ImportError:
        asyncio.run(watch_all(wanted))
    else:
        uvloop.run(watch_all(wanted))


if __name__ == "__main__":
    main()
