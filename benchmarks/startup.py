"""How long commands take to do nothing much, how soon a worker and a server are ready, and how much memory they then hold.

    python benchmarks/startup.py [--quick] [--markdown]

Everything is a new process each time, with warm files. Beside each time is the processor time that it took (of supervisor and executor
together for a worker), which other work on the machine disturbs less.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import bench_tasks
import harness
from harness import Figure, Options, Report

import milepost

SECRET_KEY = "benchmark-of-the-start"
SECONDS_MAX = 165.0
READY_SECONDS_MAX = 30.0
# What is loaded on the first second's occasions has been loaded, and what was needed only for the start is freed.
SETTLE_SECONDS = 1.5
COMMAND = ("-P", "-c", "from milepost.cli.main import main; main()")

# What many begin with. The other tasks have types of their own, which Pydantic checks.
PLAIN_TASK = "from milepost import task\n\n\n@task\ndef double(number: int) -> int:\n    return 2 * number\n"

COMMANDS = {
    "version": ("milepost --version", ["--version"]),
    "help": ("milepost --help", ["--help"]),
    "list": ("milepost runs list", ["runs", "list"]),
    "trigger": ("milepost trigger", ["trigger", "noop", "1"]),
}
FIGURES = (
    Figure("python", "a Python that does nothing", "ms"),
    *(Figure(name, text, "ms", at_most=150) for name, (text, _) in COMMANDS.items()),
    Figure("server_ready", "milepost server: start to ready", "ms"),
    Figure("dev_ready", "milepost dev: start to ready to run tasks", "ms"),
    Figure("worker_ready", "milepost worker: start to ready to run tasks", "ms", at_most=400),
    Figure("first_result", "milepost worker: start to the first result", "ms"),
    Figure("server", "memory of an idle server", "MB", at_most=60),
    Figure("executor_plain", "memory of an idle executor, a task with plain types", "MB", at_most=30),
    Figure("executor", "memory of an idle executor, tasks with types of their own", "MB", at_most=30),
    Figure("supervisor", "memory of its supervisor", "MB"),
)


@dataclass
class Spent:
    """Seconds on the clock and of processors, one of each for each round."""

    wall: list[float]
    processor: list[float]

    def add_to(self, report: Report, name: str) -> None:
        """Report the median in milliseconds, with the range and the median of processor time."""
        value, spread = harness.middle([seconds * 1000 for seconds in self.wall])
        processor, _ = harness.middle([seconds * 1000 for seconds in self.processor])
        report.add(
            name, value, f"{spread + '; ' if spread else ''}{harness.number(processor)} ms of a processor"
        )


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures, one after the other."""
    count = 1 if options.quick else 10
    with (
        Report(
            "startup", "Starting, and what it leaves in memory", FIGURES, markdown=options.markdown
        ) as report,
        tempfile.TemporaryDirectory(prefix="milepost-bench-") as name,
    ):
        folder = Path(name)
        # Installed packages are compiled already; without this an editable one would be compiled at each start.
        left_out = ("MILEPOST_", "PYTHONDONTWRITEBYTECODE")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        run(["-c", "pass"], folder, environment)
        rounds(lambda: run(["-c", "pass"], folder, environment), count).add_to(report, "python")
        ready: Spent = Spent([], [])
        for _ in range(count):
            with server(folder, environment) as started:
                ready.wall.append(started.seconds)
                ready.processor.append(harness.cpu_seconds(started.process.pid))
        ready.add_to(report, "server_ready")
        with server(folder, environment) as started:
            environment |= {"MILEPOST_API_URL": started.url, "MILEPOST_SECRET_KEY": SECRET_KEY}
            milepost.configure(api_url=started.url, secret_key=SECRET_KEY)
            time.sleep(SETTLE_SECONDS)
            report.add("server", *of_memory(started.process.pid))
            with worker(folder, environment):
                # The server has to know the task that is triggered, and a list is to have something in it.
                for index in range(20):
                    bench_tasks.noop.trigger(index)
            for name, (_, arguments) in COMMANDS.items():
                spent = rounds(
                    lambda arguments=arguments: run([*COMMAND, *arguments], folder, environment), count
                )
                spent.add_to(report, name)
            measure_worker(report, folder, environment, count)
        measure_dev(report, folder, environment, count)


def measure_worker(report: Report, folder: Path, environment: dict[str, str], count: int) -> None:
    """A worker with one executor, until it is ready and until it has run something."""
    ready, result = Spent([], []), Spent([], [])
    for _ in range(count):
        handle = bench_tasks.noop.trigger(1)
        with worker(folder, environment) as started:
            ready.wall.append(started.seconds)
            ready.processor.append(started.processor)
            handle.result(timeout=READY_SECONDS_MAX)
            result.wall.append(time.perf_counter() - started.at)
            result.processor.append(processor_seconds(started.process.pid))
    ready.add_to(report, "worker_ready")
    result.add_to(report, "first_result")
    plain = folder / "plain.py"
    plain.write_text(PLAIN_TASK)
    with worker(folder, environment, plain) as started:
        time.sleep(SETTLE_SECONDS)
        [executor] = harness.children(started.process.pid)
        report.add("executor_plain", *of_memory(executor))
    with worker(folder, environment) as started:
        time.sleep(SETTLE_SECONDS)
        [executor] = harness.children(started.process.pid)
        report.add("executor", *of_memory(executor))
        report.add("supervisor", *of_memory(started.process.pid))


def measure_dev(report: Report, folder: Path, environment: dict[str, str], count: int) -> None:
    """`milepost dev` with one executor, until it says that tasks can run."""
    spent = Spent([], [])
    arguments = ["dev", str(harness.HERE / "bench_tasks.py"), "--json", "--port", "0", "--no-reload"]
    for _ in range(count):
        with started([*arguments, "--processes", "1", "--data", "dev"], folder, environment) as (
            process,
            output,
            at,
        ):
            expect(output, b"{")
            spent.wall.append(time.perf_counter() - at)
            spent.processor.append(processor_seconds(process.pid))
    spent.add_to(report, "dev_ready")


# --- processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A process that is ready, how long that took, and what all of its processes had used then."""

    process: subprocess.Popen[bytes]
    at: float
    seconds: float
    processor: float
    url: str = ""


def rounds(once: Callable[[], tuple[float, float]], count: int) -> Spent:
    """Do it so many times."""
    pairs = [once() for _ in range(count)]
    return Spent([wall for wall, _ in pairs], [processor for _, processor in pairs])


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run Python to its end; seconds on the clock and of processors."""
    at = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        environment | {"PWD": str(folder)},
        file_actions=[(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)],
    )
    _, status, used = os.wait4(process, 0)
    wall = time.perf_counter() - at
    if status:
        raise RuntimeError(f"{' '.join(arguments)} has ended with {os.waitstatus_to_exitcode(status)}")
    return wall, used.ru_utime + used.ru_stime


@contextmanager
def started(
    arguments: list[str], folder: Path, environment: dict[str, str], *, tells_on: str = "stdout"
) -> Generator[tuple[subprocess.Popen[bytes], IO[bytes], float]]:
    """Run a command while the block runs: the process, the output to read, and the time of its start."""
    at = time.perf_counter()
    with (folder / "other.txt").open("wb") as other:
        output, errors = (subprocess.PIPE, other) if tells_on == "stdout" else (other, subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, *COMMAND, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=errors,
        )
        try:
            told = process.stdout if tells_on == "stdout" else process.stderr
            assert told is not None
            yield process, told, at
        finally:
            process.terminate()
            process.communicate(timeout=harness.END_SECONDS_MAX)


@contextmanager
def server(folder: Path, environment: dict[str, str]) -> Generator[Started]:
    """Run `milepost server` while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = environment | {"MILEPOST_SECRET_KEY": SECRET_KEY}
    with started(["server", "--port", str(port), "--data", "server"], folder, environment) as (
        process,
        _,
        at,
    ):
        while True:
            try:
                with urllib.request.urlopen(url + "/api/v1/ready", timeout=READY_SECONDS_MAX):
                    break
            except OSError:
                if process.poll() is not None or time.perf_counter() - at > READY_SECONDS_MAX:
                    raise RuntimeError("the server does not come up") from None
                time.sleep(0.002)
        yield Started(process, at, time.perf_counter() - at, processor_seconds(process.pid), url)


@contextmanager
def worker(
    folder: Path, environment: dict[str, str], tasks: Path = harness.HERE / "bench_tasks.py"
) -> Generator[Started]:
    """Run `milepost worker` with one executor while the block runs."""
    arguments = ["worker", str(tasks), "--processes", "1", "--grace", "1"]
    with started(arguments, folder, environment, tells_on="stderr") as (process, output, at):
        expect(output, b"ready to run")
        yield Started(process, at, time.perf_counter() - at, processor_seconds(process.pid))


def expect(output: IO[bytes], text: bytes) -> None:
    """Read lines until there is one with this text. Raises RuntimeError at the end of the output."""
    lines: list[bytes] = []
    for line in output:
        if text in line:
            return
        lines.append(line)
    raise RuntimeError(f"{text!r} was not said, but {b''.join(lines)!r}")


def processor_seconds(process: int) -> float:
    """Processor time that a process and those that it has started have used so far."""
    total = 0.0
    for each in (process, *harness.children(process)):
        for thread in Path(f"/proc/{each}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return total


def of_memory(process: int) -> tuple[float, str]:
    """The memory of a process, proportional; as a note what belongs to it alone, and its resident set."""
    held = harness.memory(process)
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return (
        held.pss,
        f"{harness.number(held.anonymous)} MB of it no file's; resident set {harness.number(resident)} MB",
    )


if __name__ == "__main__":
    main()
