"""Streams: from a write inside a task to those who read: throughput, latency, many readers, bytes.

    python benchmarks/streams.py [--quick] [--markdown]

Every chunk is committed at `synchronous=FULL` before anybody reads it. Readers are this process; server and executors run beside it on
the same machine. Where `redis-server` is installed, a Redis stream is measured in the same way beside it: one XADD per chunk and
pipelined, with a reader by XREAD, and nothing kept on disk. Where `BENCH_DBOS_PYTHON` names a Python that has DBOS, its streams are
measured too, on SQLite.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import bench_tasks
import harness
from bench_tasks import Updates
from harness import Figure, House, Options, Report, percentile

from milepost import streams
from milepost.client.handles import RunHandle

FIGURES = (
    Figure("through", "100,000 chunks of 100 bytes from one task to one reader", "/s", at_least=20_000),
    Figure("through_server", "processor time of the server per chunk", "µs"),
    Figure("through_worker", "processor time of the worker per chunk", "µs"),
    Figure("through_memory", "growth of the server's memory meanwhile", "MB", at_most=50),
    Figure("late", "the same 100,000 chunks read again, a moment later", "/s"),
    Figure("disk", "bytes on disk per byte of chunks, the log of the database included", "x"),
    Figure("redis", "a Redis stream on the same machine, one XADD per chunk, nothing on disk", "/s"),
    Figure("redis_pipelined", "the same, 100 XADDs in one round trip", "/s"),
    Figure("dbos", "a stream of DBOS on SQLite, writer and reader in one process", "/s"),
    Figure("first_p50", "from a write to a reader on an idle server, p50", "ms", at_most=10),
    Figure("first_p99", "the same, p99", "ms"),
    Figure("many_p50", "200 streams at 50 chunks/s, a reader of each, p50", "ms", at_most=30),
    Figure("many_p99", "the same, p99", "ms", at_most=150),
    Figure("crowd_p50", "1,000 readers of one stream at 50 chunks/s, p50", "ms"),
    Figure("crowd_p99", "the same, p99", "ms", at_most=300),
)

SECONDS_MAX = 260.0
CHUNK_BYTES = 100
PIPELINED = 100
# DBOS commits each chunk by itself: fewer of them do.
DBOS_SHARE = 50
DBOS_PROGRAM = Path(__file__).parent / "peers" / "dbos_streams.py"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    chunks: int
    rounds: int
    first: int
    streams: int
    readers: int
    ticks: int


FULL = Sizes(chunks=100_000, rounds=3, first=100, streams=200, readers=1000, ticks=250)
QUICK = Sizes(chunks=2000, rounds=1, first=5, streams=5, readers=10, ticks=10)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures, one after the other."""
    sizes = QUICK if options.quick else FULL
    harness.raise_open_files(2 * sizes.readers + 300)
    with Report(
        "streams", "Streams: from a write to those who read", FIGURES, markdown=options.markdown
    ) as report:
        with harness.dev(processes=1) as house:
            house.use()
            measure_through(report, sizes, house)
            measure_latency(report, house, "first", Updates(sizes.first, 20), 1, 1)
            measure_latency(report, house, "many", Updates(sizes.ticks, 50), sizes.streams, 1)
            measure_latency(report, house, "crowd", Updates(sizes.ticks, 50), 1, sizes.readers)
        measure_redis(report, sizes)
        measure_dbos(report, sizes)


def measure_through(report: Report, sizes: Sizes, house: House) -> None:
    """As fast as one task can write, with one reader."""
    speeds: list[float] = []
    late: list[float] = []
    before = harness.memory(house.server_id).anonymous
    cpu = house.cpu()
    disk = _size(house)
    for _ in harness.rounds(sizes.rounds, seconds=60):
        started = time.perf_counter()
        run = bench_tasks.write_chunks.trigger(sizes.chunks)
        assert sum(1 for _ in streams.read(run.id, "chunks")) == sizes.chunks
        speeds.append(sizes.chunks / (time.perf_counter() - started))
        started = time.perf_counter()
        assert sum(1 for _ in streams.read(run.id, "chunks")) == sizes.chunks
        late.append(sizes.chunks / (time.perf_counter() - started))
    used = house.cpu() - cpu
    written = sizes.chunks * len(speeds)
    report.add("through", *harness.middle(speeds))
    report.add("through_server", used.server * 1e6 / written, "the second reading included")
    report.add("through_worker", used.workers * 1e6 / written)
    report.add("through_memory", harness.memory(house.server_id).anonymous - before)
    report.add("late", *harness.middle(late))
    report.add("disk", (_size(house) - disk) / (written * CHUNK_BYTES))


def _size(house: House) -> int:
    return sum(file.stat().st_size for file in house.folder.rglob("milepost.db*"))


def measure_latency(
    report: Report, house: House, name: str, wanted: Updates, stream_count: int, reader_count: int
) -> None:
    """Each chunk carries its moment."""
    runs = [bench_tasks.stamp_chunks.trigger(wanted) for _ in range(stream_count)]
    latencies = asyncio.run(_read_all([run for run in runs for _ in range(reader_count)]))
    assert len(latencies) == wanted.count * stream_count * reader_count, "every chunk reaches every reader"
    report.add(f"{name}_p50", percentile(latencies, 0.5))
    report.add(f"{name}_p99", percentile(latencies, 0.99))


async def _read_all(runs: Iterable[RunHandle[None]]) -> list[float]:
    latencies: list[float] = []

    async def read(run: RunHandle[None]) -> None:
        async for at in streams.aread(run.id, "chunks"):
            latencies.append((time.monotonic_ns() - at) / 1e6)

    await asyncio.gather(*map(read, runs))
    return latencies


# --- a Redis stream, spoken to directly: no client of it is needed for two commands ---------------------------


def measure_redis(report: Report, sizes: Sizes) -> None:
    """XADD and XREAD, as fast as they go."""
    program = shutil.which("redis-server")
    if program is None:
        report.note("redis-server is not installed: not measured")
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL
    )
    try:
        for name, together in (("redis", 1), ("redis_pipelined", PIPELINED)):
            speeds = [
                _redis(port, name, sizes.chunks, together) for _ in harness.rounds(sizes.rounds, seconds=60)
            ]
            report.add(name, *harness.middle(speeds))
    finally:
        process.terminate()
        process.wait()


def _redis(port: int, key: str, count: int, together: int) -> float:
    """Chunks per second from a writer to a reader."""
    with _connected(port) as writer, _connected(port) as reader:
        _send(writer, ["DEL", key])
        writer.readline()
        reading = threading.Thread(target=_read_redis, args=(reader, key, count))
        started = time.perf_counter()
        reading.start()
        for _ in range(0, count, together):
            for _ in range(together):
                _send(writer, ["XADD", key, "*", "d", "x" * CHUNK_BYTES], flush=False)
            writer.flush()
            for _ in range(together):
                length = int(writer.readline()[1:])
                writer.read(length + 2)
        reading.join()
        return count / (time.perf_counter() - started)


def _connected(port: int) -> IO[bytes]:
    until = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                return cast("IO[bytes]", connection.makefile("rwb", buffering=1 << 20))


def _read_redis(reader: IO[bytes], key: str, count: int) -> None:
    seen, last = 0, "0"
    while seen < count:
        _send(reader, ["XREAD", "COUNT", "1000", "BLOCK", "5000", "STREAMS", key, last])
        answer = _reply(reader)
        assert isinstance(answer, list), "the stream goes on"
        entries = answer[0][1]
        seen += len(entries)
        last = entries[-1][0].decode()


def _send(connection: IO[bytes], words: Sequence[str], *, flush: bool = True) -> None:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words]
    connection.write(b"".join(parts))
    if flush:
        connection.flush()


def _reply(connection: IO[bytes]) -> object:
    line = connection.readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_reply(connection) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == b"-1" else connection.read(int(rest) + 2)[:-2]
    return rest


def measure_dbos(report: Report, sizes: Sizes) -> None:
    """As fast as one workflow can write, with one reader."""
    python = os.environ.get("BENCH_DBOS_PYTHON")
    if python is None:
        report.note("BENCH_DBOS_PYTHON is not set: DBOS is not measured")
        return
    command = [python, str(DBOS_PROGRAM), str(sizes.chunks // DBOS_SHARE), str(CHUNK_BYTES)]
    speeds = [
        float(subprocess.check_output(command, text=True)) for _ in harness.rounds(sizes.rounds, seconds=60)
    ]
    report.add("dbos", *harness.middle(speeds))


if __name__ == "__main__":
    main()
