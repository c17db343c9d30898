"""What the benchmarks share: a real `milepost dev` to measure, what `/proc` says about its processes, and the report.

Linux only, because of `/proc`. Everything listens on loopback and lives in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import select
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import bench_tasks

import milepost
from milepost.client import calls
from milepost.client.client import Client
from milepost.client.handles import BatchHandle
from milepost.client.subscription import BatchFollower

HERE = Path(__file__).resolve().parent
READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 15.0
BATCH_RUNS = bench_tasks.BATCH_RUNS
BATCHES_AHEAD_MAX = 20


# --- a report ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One line of a report: what is measured, and the goal, if there is one."""

    name: str
    text: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words; a dash without one."""
        if self.at_least is not None:
            return f"≥ {number(self.at_least)} {self.unit}"
        if self.at_most == 0:
            return "none"
        if self.at_most is not None:
            return f"≤ {number(self.at_most)} {self.unit}"
        return "–"

    def ratio(self, value: float) -> float | None:
        """How many times better than the goal: 1 and more is reached."""
        if self.at_least:
            return value / self.at_least
        if self.at_most == 0:
            return 0.0 if value else 1.0
        if self.at_most:
            # Growth may be none at all, or less.
            return self.at_most / value if value > 0 else float("inf")
        return None


class Report:
    """Prints each figure when it is measured, or at the end of its block all of them as rows of a Markdown table."""

    def __init__(self, name: str, title: str, figures: Sequence[Figure], *, markdown: bool) -> None:
        self._figures = {figure.name: figure for figure in figures}
        self._values: dict[str, tuple[float, str]] = {}
        self._markdown = markdown
        self._name = name
        self._say(f"\n{title}\n{'-' * len(title)}")

    def add(self, name: str, value: float, note: str = "") -> None:
        """A figure has been measured. `note` is a word about this measurement, such as its spread."""
        figure = self._figures[name]
        self._values[name] = value, note
        ratio = figure.ratio(value)
        verdict = "" if ratio is None else f"   {_ratio(ratio)} of goal ({figure.goal})"
        self._say(f"  {figure.text:<72} {_measured(figure, value, note)}{verdict}")

    def note(self, text: str) -> None:
        """A line of explanation; not part of the Markdown table."""
        self._say(f"  {text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after a failure: what has been measured is worth having.
        if self._markdown:
            print(f"<!-- numbers: {self._name} -->")
            print("\n".join(self.rows()))
            print("<!-- end -->", flush=True)

    def rows(self) -> list[str]:
        """The table as Markdown; what has not been measured says `(run)`."""
        lines = ["| | goal | measured | ratio |", "| --- | --- | --- | --- |"]
        for figure in self._figures.values():
            measured, ratio = "(run)", "–" if figure.goal == "–" else "(run)"
            if figure.name in self._values:
                value, note = self._values[figure.name]
                measured = _measured(figure, value, note)
                better = figure.ratio(value)
                ratio = "–" if better is None else _ratio(better)
            lines.append(f"| {figure.text} | {figure.goal} | {measured} | {ratio} |")
        return lines

    def _say(self, text: str) -> None:
        if not self._markdown:
            print(text, flush=True)


def _measured(figure: Figure, value: float, note: str) -> str:
    return f"{number(value)} {figure.unit}".rstrip() + (f" ({note})" if note else "")


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 100 else "> 100x"


def number(value: float) -> str:
    """A number with as many digits as are worth reading."""
    if value == round(value) and abs(value) < 1000:
        return f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def middle(values: Sequence[float]) -> tuple[float, str]:
    """The median of several rounds, and their spread as a note."""
    note = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""
    return statistics.median(values), note


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine() -> str:
    """The machine in one line: what numbers depend on."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"Milepost {version('milepost')}, "
        f"{commit_ms():.2f} ms for a commit to disk, load {os.getloadavg()[0]:.1f} at the start"
    )


def commit_ms() -> float:
    """How long SQLite takes to keep one row as the server keeps it (write-ahead log, `synchronous=FULL`), median of 100."""
    taken: list[float] = []
    with tempfile.TemporaryDirectory(prefix="milepost-bench-") as folder:
        with closing(sqlite3.connect(Path(folder) / "commit.db", isolation_level=None)) as connection:
            connection.executescript(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (x TEXT)"
            )
            for _ in range(100):
                started = time.perf_counter()
                connection.execute("INSERT INTO t VALUES (?)", ("x" * 200,))
                taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


# --- the command line --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told."""

    quick: bool
    markdown: bool


def arguments(description: str | None) -> Options:
    """Parse the command line, and see that the program ends by itself when it is asked to."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add_options(parser)
    given = parser.parse_args()
    end_cleanly_on_sigterm()
    return Options(quick=given.quick, markdown=given.markdown)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything works")
    parser.add_argument("--markdown", action="store_true", help="print the rows of the table in README.md")


def end_cleanly_on_sigterm() -> None:
    """SIGTERM unwinds as Ctrl-C does, so that no process is left behind."""

    def end(signal_number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)


def rounds(count: int, *, seconds: float) -> Iterator[int]:
    """Count rounds of a measurement: so many, but after this time no further one."""
    until = time.monotonic() + seconds
    for index in range(count):
        if index and time.monotonic() > until:
            return
        yield index


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Raise TimeoutError in the main thread when the block takes longer."""

    def ring(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"the measurement has not come to its end within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raise_open_files(wanted: int) -> int:
    """Allow this process and its children as many open files as wanted, or as many as the system lets it; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((max(soft, wanted), max(hard, wanted)), (max(soft, min(wanted, hard)), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        except (ValueError, OSError):
            continue
        return limit[0]
    return soft


# --- processes ---------------------------------------------------------------------------------------------


def cpu_seconds(process_id: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Memory of a process in MB: its proportional share of all its pages, and of those that no file backs."""

    pss: float
    anonymous: float


def memory(process_id: int) -> Memory:
    """The memory of one process, without its children."""
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()[1:]
        if ":" in line
    )
    kilobytes = {name: int(value.split()[0]) for name, value in fields.items()}
    return Memory(kilobytes["Pss"] / 1024, kilobytes["Pss_Anon"] / 1024)


def children(process_id: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(child)
        for thread in Path(f"/proc/{process_id}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


@dataclass(frozen=True)
class Cpu:
    """Processor seconds of server, workers and this program since some moment."""

    server: float
    workers: float
    client: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.server - other.server, self.workers - other.workers, self.client - other.client)

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.server + other.server, self.workers + other.workers, self.client + other.client)


class House:
    """A running `milepost dev`: server and executors, started for a measurement."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, url: str, secret_key: str) -> None:
        self._process = process
        self.folder = folder
        self.url = url
        self.secret_key = secret_key
        self.client = Client(url, secret_key)
        self.worker_ids: list[int] = []

    @property
    def server_id(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def use(self) -> None:
        """Have tasks and `runs` talk to this server from now on."""
        milepost.configure(api_url=self.url, secret_key=self.secret_key)

    def cpu(self) -> Cpu:
        """What its processes and this one have used so far."""
        return Cpu(
            cpu_seconds(self.server_id),
            sum(map(cpu_seconds, self.worker_ids)),
            time.process_time(),
        )

    @contextmanager
    def paused_workers(self) -> Generator[None]:
        """Executors stand still while the block runs; what is triggered gathers."""
        self._signal_workers(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_workers(signal.SIGCONT)

    def _signal_workers(self, number: int) -> None:
        for process_id in self.worker_ids:
            os.kill(process_id, number)

    def run_noops(self, count: int) -> float:
        """Run no-op tasks, triggered a thousand at a time; seconds from the first trigger to the last stored result."""
        self.use()
        started = time.perf_counter()
        under_way: list[BatchHandle[int]] = []
        for first in range(0, count, BATCH_RUNS):
            under_way.append(bench_tasks.noop.batch_trigger(range(first, min(first + BATCH_RUNS, count))))
            if len(under_way) > BATCHES_AHEAD_MAX:
                self.wait_for(under_way.pop(0))
        for batch in under_way:
            self.wait_for(batch)
        return time.perf_counter() - started

    def wait_for(self, batch: BatchHandle[int]) -> None:
        """Wait until every run of the batch has ended and its result is stored, without fetching the results."""
        for _ in self.client.connection.follow(calls.watch_batch(batch.id), BatchFollower()):
            pass

    def gather_workers(self, processes: int) -> None:
        """Wait until this many executors run tasks, and remember their process ids."""
        self.use()
        until = time.monotonic() + READY_SECONDS_MAX
        while True:
            results = bench_tasks.process_id.batch_trigger_and_wait(range(8 * processes))
            self.worker_ids = sorted({result.unwrap() for result in results} | set(self.worker_ids))
            if len(self.worker_ids) >= processes:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.worker_ids)} of {processes} executors came up")
            time.sleep(0.2)


@contextmanager
def dev(
    *,
    processes: int = 1,
    concurrency: int = 100,
    flush_interval_ms: float | None = None,
    database_url: str | None = None,
) -> Generator[House]:
    """Run `milepost dev` on the benchmarks' tasks while the block runs; data and processes are gone afterwards.

    Args:
        flush_interval_ms: another metadata flush interval than the default.
        database_url: a PostgreSQL database; SQLite without.
    Raises: RuntimeError when it does not come up.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    if flush_interval_ms is not None:
        environment["MILEPOST_METADATA_FLUSH_INTERVAL_MS"] = str(flush_interval_ms)
    if database_url is not None:
        environment["MILEPOST_DATABASE_URL"] = database_url
    with tempfile.TemporaryDirectory(prefix="milepost-bench-") as name:
        folder = Path(name)
        command = [
            sys.executable, "-P", "-c", "from milepost.cli.main import main; main()",
            "dev", str(HERE / "bench_tasks.py"), "--json", "--port", "0", "--no-reload", "--data", str(folder / "data"),
            "--processes", str(processes), "--concurrency", str(concurrency), "--grace", "1",
        ]  # fmt: skip
        with (folder / "stderr.txt").open("w+b") as errors:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            try:
                ready = json.loads(_first_line(process, folder / "stderr.txt"))
                house = House(process, folder / "data", ready["url"], ready["secret_key"])
                house.gather_workers(processes)
                yield house
            finally:
                _end(process)


def _first_line(process: subprocess.Popen[bytes], errors: Path) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS_MAX)
    line = process.stdout.readline() if readable else b""
    if not line:
        raise RuntimeError(f"milepost dev did not come up:\n{errors.read_text()}")
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    executors = children(process.pid) if process.poll() is None else []
    for process_id in executors:
        # One that is stopped could not end.
        os.kill(process_id, signal.SIGCONT)
    process.terminate()
    try:
        process.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        for process_id in (*executors, process.pid):
            os.kill(process_id, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def nanoseconds_to_ms(values: Iterable[int]) -> list[float]:
    """For reading."""
    return [value / 1e6 for value in values]
