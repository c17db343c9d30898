"""A run must not harm its neighbours: whatever it does to its process, the others go on, or are tried again at once."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from real_processes import Command, House, wait_until, write_tasks

from milepost import Client

# With such a lease nothing comes back by itself while a test runs: the supervisor has to tell the server.
LONG_LEASE = {"MILEPOST_LEASE_SECONDS": "600"}

GATE = """
import asyncio, os, pathlib
@task(retry=Retry(max_attempts=1))
async def neighbour(path: str, ctx: Context) -> int:
    metadata.set("pid", os.getpid())
    while not pathlib.Path(path).exists():
        # Seldom awake: a signal handler of another run's that raises hits whatever executes.
        await asyncio.sleep(0.1)
    return ctx.attempt.number
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment in which Milepost runs on this event loop."""
    if request.param == "uvloop":
        return {}
    (tmp_path / "without" / "uvloop").mkdir(parents=True)
    (tmp_path / "without" / "uvloop" / "__init__.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": str(tmp_path / "without")}


KILLERS = """
import ctypes, signal, sys, time
once = Retry(max_attempts=1)
@task(retry=once)
def exits(code: int) -> None:
    os._exit(code)
@task(retry=once)
async def exits_on_loop(code: int) -> None:
    os._exit(code)
@task(retry=once)
async def exits_in_thread(code: int) -> None:
    await asyncio.to_thread(os._exit, code)
@task(retry=once)
def is_killed(number: int) -> None:
    signal.raise_signal(number)
    # The signal may come by way of another thread, a moment later.
    time.sleep(60)
@task(retry=once)
def closes_descriptors(first: int) -> None:
    os.closerange(first, 1000)
    time.sleep(60)
"""


# The system ends the process: only a loop whose descriptors are closed has a say in it. The others take turns.
@pytest.mark.parametrize(
    ("loop", "task_id", "argument", "words"),
    [
        ("uvloop", "exits", 0, "ended with exit code 0"),
        ("asyncio", "exits", 3, "ended with exit code 3"),
        ("uvloop", "exits", 4, "ended with exit code 4"),
        ("asyncio", "exits_on_loop", 0, "ended with exit code 0"),
        ("uvloop", "exits_in_thread", 5, "ended with exit code 5"),
        ("uvloop", "is_killed", signal.SIGKILL, "was killed by SIGKILL"),
        ("asyncio", "is_killed", signal.SIGABRT, "was killed by SIGABRT"),
        ("uvloop", "closes_descriptors", 3, r"(was killed by SIGABRT|ended with exit code 1)"),
        ("asyncio", "closes_descriptors", 3, r"(was killed by SIGABRT|ended with exit code 1)"),
        ("asyncio", "closes_descriptors", 0, r"(was killed by SIGABRT|ended with exit code 1)"),
    ],
    indirect=["loop"],
)
def test_a_crash_is_told_in_one_line_and_costs_its_neighbour_nothing(
    house: Callable[..., House], tmp_path: Path, loop: dict[str, str],
    task_id: str, argument: int, words: str,
) -> None:  # fmt: skip
    dev = house(GATE + KILLERS, "--processes", "1", env=LONG_LEASE | loop)
    run_id = dev.trigger("neighbour", str(tmp_path / "gate"))
    first = dev.until(run_id, lambda run: run.metadata.get("pid")).metadata["pid"]
    bad_id = dev.trigger(task_id, argument)
    # Both are suspects: they are tried again one after the other.
    dev.until(run_id, lambda run: run.metadata.get("pid") not in (None, first))
    (tmp_path / "gate").touch()
    assert dev.finished(run_id).output == 2
    bad = dev.finished(bad_id)
    assert bad.is_failed
    assert bad.error is not None
    assert bad.error.name == "ProcessDiedError"
    assert re.search(words, bad.error.message)
    # The supervisor tells the server first.
    line = f"executor-1 {words}; starting it again"
    wait_until(lambda: len(re.findall(line, dev.errors)) == 2, what=line)
    assert dev.end() == 0


ENDERS = """
import signal, sys
once = Retry(max_attempts=1)
async def exits() -> None:
    sys.exit(4)
async def interrupts() -> None:
    raise KeyboardInterrupt
@task(retry=once)
async def exits_below_gather() -> None:
    await asyncio.gather(exits(), asyncio.sleep(60))
@task(retry=once)
async def interrupts_below_gather() -> None:
    await asyncio.gather(interrupts(), asyncio.sleep(60))
@task(retry=once)
async def exits_below_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(exits())
@task(retry=once)
async def exits_in_background() -> None:
    background = asyncio.create_task(exits())
    await asyncio.sleep(60)
@task(retry=once)
async def exits_in_callback() -> None:
    asyncio.get_running_loop().call_later(0.01, sys.exit, 4)
    await asyncio.sleep(60)
@task(retry=once)
def exits_in_a_loop_of_its_own() -> None:
    asyncio.run(exits_below_gather.function())
@task(retry=once)
async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
@task(retry=once)
async def stops_the_loop_later() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
    await asyncio.sleep(0.1)
    raise LookupError("went on")
@task(retry=once)
async def is_alarmed() -> None:
    def alarm(number: int, frame: object) -> None:
        sys.exit(4)
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await asyncio.sleep(0.5)
    raise LookupError("went on")
@task(retry=once)
async def cancels_itself() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)
@cancels_itself.on_failure
async def failed() -> None:
    metadata.set("hook", "has run")
"""


def test_what_would_end_a_program_ends_the_run_alone(
    house: Callable[..., House], tmp_path: Path, loop: dict[str, str]
) -> None:
    dev = house(GATE + ENDERS, "--processes", "1", env=LONG_LEASE | loop)
    run_id = dev.trigger("neighbour", str(tmp_path / "gate"))
    dev.until(run_id, lambda run: run.metadata.get("pid"))
    [executor] = dev.executors()
    expected = {
        "exits_below_gather": "SystemExit",
        "interrupts_below_gather": "KeyboardInterrupt",
        "exits_below_group": "SystemExit",
        "exits_in_background": "SystemExit",
        "exits_in_callback": "SystemExit",
        "exits_in_a_loop_of_its_own": "SystemExit",
        "stops_the_loop": "UsageError",
        "stops_the_loop_later": "LookupError",
        "cancels_itself": "CancelledError",
    }
    ids = {task_id: dev.trigger(task_id) for task_id in expected}
    ended = {task_id: dev.finished(bad) for task_id, bad in ids.items()}
    assert {task_id: run.error and run.error.name for task_id, run in ended.items()} == expected
    assert ended["cancels_itself"].metadata == {"hook": "has run"}
    assert [each.pid for each in dev.executors()] == [executor.pid]
    (tmp_path / "gate").touch()
    assert dev.finished(run_id).output == 1
    # Without a neighbour: what a signal handler raises hits whatever executes at that moment, a neighbour too.
    alarmed = dev.run("is_alarmed")
    assert alarmed.error is not None
    assert alarmed.error.name == "LookupError"
    assert [each.pid for each in dev.executors()] == [executor.pid]
    assert dev.end() == 0


def test_a_pipe_that_user_code_has_written_to_or_closed(house: Callable[..., House]) -> None:
    dev = house(
        """
        import os, stat
        def pipes() -> list[int]:
            # The pipe to the supervisor is the one that only writes; those of the event loops are read here as well.
            import fcntl
            found = []
            for name in os.listdir("/proc/self/fd"):
                number = int(name)
                try:
                    is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
                    if number > 2 and is_pipe and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                        found.append(number)
                except OSError:
                    pass
            readers = {os.fstat(int(name)).st_ino for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)
                       and fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY}
            return [number for number in found if os.fstat(number).st_ino not in readers]
        @task
        def writes() -> int:
            [number] = pipes()
            os.write(number, b'not a word\\n')
            return number
        @task
        def closes_and_opens(path: str) -> int:
            [number] = pipes()
            # The number may be that of any file of the user's later.
            return os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        @task(retry=Retry(max_attempts=1))
        def dies() -> None:
            os._exit(0)
        @task
        def ok() -> int:
            return os.getpid()
        """,
        "--processes", "1", env=LONG_LEASE,
    )  # fmt: skip
    first = dev.run("ok").output
    number = dev.run("writes").output
    dev.says(f"user code writes to file descriptor {number}")
    file = dev.folder / "file"
    assert dev.run("closes_and_opens", str(file)).output == number
    dev.says(f"user code has closed file descriptor {number}")
    assert dev.run("ok").output == first
    assert dev.run("dies").is_failed
    dev.says("executor-1 ended with exit code 0; starting it again")
    assert dev.run("ok").output != first
    assert file.read_bytes() == b""
    assert dev.end() == 0


def test_output_that_nobody_reads_any_more(command: Callable[..., Command], tmp_path: Path) -> None:
    """`milepost worker jobs.py 2>&1 | head -1`"""
    env = {"MILEPOST_SECRET_KEY": "tr_test_key"}
    server = command("server", "--port", "0", "--data", "data", env=env)
    server.says("serves at ")
    env["MILEPOST_API_URL"] = url = server.errors.split("serves at ")[1].split()[0]
    write_tasks(
        tmp_path / "jobs.py",
        """
        import os, subprocess, sys
        @task(retry=Retry(max_attempts=1))
        def talks() -> int:
            for number in range(1000):
                print("line", number)
                print("line", number, file=sys.stderr)
            subprocess.run(["sh", "-c", "echo from a program"], check=True)
            return os.getpid()
        """,
    )
    reading, writing = os.pipe()
    worker = command("worker", "jobs.py", "--processes", "1", env=env, output=writing)
    os.close(writing)
    with os.fdopen(reading) as output:
        assert "ready to run talks" in output.readline()
    client = Client(url, "tr_test_key")
    first = client.runs.wait(client.trigger("talks").id, timeout=30)
    assert first.is_completed, first
    [executor] = worker.executors()
    executor.kill()
    wait_until(lambda: [each.pid for each in worker.executors()] not in ([], [executor.pid]))
    second = client.runs.wait(client.trigger("talks").id, timeout=30)
    assert second.is_completed
    assert second.output != first.output
    assert worker.end() == 0


@pytest.mark.parametrize("code", ["import os\nos._exit(4)\n", "import os\nos.abort()\n"])
def test_code_that_ends_its_process_while_it_is_loaded_is_said(
    command: Callable[..., Command], tmp_path: Path, code: str
) -> None:
    (tmp_path / "jobs.py").write_text(code)
    worker = command("dev", "jobs.py", "--port", "0", "--no-reload", "--processes", "2")
    assert worker.process.wait(60) == 1
    assert "error: the tasks cannot be loaded: the process that loads them" in worker.errors
    assert "Traceback" not in worker.errors


def test_failing_runs_do_not_grow_the_worker(house: Callable[..., House]) -> None:
    dev = house(
        """
        import asyncio, resource
        from pathlib import Path
        @task(retry=Retry(max_attempts=1))
        async def fails() -> None:
            large = bytearray(10_000_000)
            children = [asyncio.create_task(asyncio.sleep(0)) for _ in range(3)]
            await asyncio.gather(*children)
            raise ValueError("after all")
        @fails.on_failure
        async def failed(error: BaseException) -> None:
            await asyncio.sleep(0)
        @hooks.middleware
        async def around(next) -> None:
            await next()
        @task
        def size() -> int:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * resource.getpagesize()
        """,
        "--processes", "1",
    )  # fmt: skip
    before = dev.run("size").output
    for run_id in [dev.trigger("fails") for _ in range(40)]:
        assert dev.finished(run_id).is_failed
    assert dev.run("size").output - before < 100_000_000
