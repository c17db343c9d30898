"""The supervisor: an executor's end is judged by what it has said, never by its exit code; what fails is tried again.

The executors here are real processes that run a script of the test in place of tasks.
"""

import asyncio
import errno
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import watchfiles

from milepost.protocol.work import BegunRun, Death
from milepost.worker import executor_process
from milepost.worker import supervisor as module
from milepost.worker.control import Order
from milepost.worker.deputy import Deputy
from milepost.worker.lease import lease_clock
from milepost.worker.supervisor import Supervisor, WorkerFailed, WorkerOptions

PROLOGUE = """
import json, os, signal, sys, time
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
fd, name, version = int(option("--messages")), option("--name"), open("version").read()
def say(kind, **fields):
    os.write(fd, b"\\n" + json.dumps({"type": kind, **fields}).encode() + b"\\n")
def ready():
    say("ready", tasks=["work " + version], files=[os.path.abspath("jobs.py")])
    open("readies", "a").write("x")
def order():
    return sys.stdin.readline().strip()
def starts():
    open("starts", "a").write(name + " ")
    return open("starts").read().split().count(name)
def drain(*orders):
    while (given := order()) not in (orders or ("finish", "drain", "stop", "")):
        pass
    say("drained")
"""


class Ears:
    """An audience that waits for what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _say(self, line: str) -> None:
        self.lines.append(line)

    def ready(self, tasks: Sequence[str], *, reloaded: bool) -> None:
        self._say(f"{'reloaded' if reloaded else 'ready'}: {', '.join(tasks)}")

    def changed(self, files: Sequence[Path]) -> None:
        self._say(f"changed: {len(files)}")

    def load_failed(self, message: str, *, running: bool) -> None:
        self._say(f"load failed, {'running' if running else 'nothing runs'}: {message}")

    def notice(self, message: str) -> None:
        self._say(message)

    def count(self, words: str) -> int:
        return sum(re.search(words, line) is not None for line in self.lines)

    async def hear(self, words: str, times: int = 1) -> None:
        await until(lambda: self.count(words) >= times)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that may come from another process."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Stage:
    """A folder in which a supervisor runs a script as its executors."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.ears = Ears()
        # What the server was told in the name of executors.
        self.deaths: list[Death] = []
        self.left: list[list[BegunRun]] = []
        self.kept: list[float] = []
        self.started: list[asyncio.subprocess.Process] = []
        self.alive_max = 0
        # Called with the name of an executor before it is started; may raise.
        self.before_start: Callable[[str], None] = lambda name: None
        original = asyncio.create_subprocess_exec

        async def create(*command: str, **options: Any) -> asyncio.subprocess.Process:
            place = command.index("milepost.worker")
            self.before_start(command[command.index("--name") + 1])
            process = await original(
                sys.executable, "-I", str(folder / "script.py"), *command[place:], cwd=folder, **options
            )
            self.started.append(process)
            self.alive_max = max(self.alive_max, len(self.alive()))
            return process

        def died(deputy: Deputy, worker_id: str, death: Death) -> None:
            self.deaths.append(death)

        def left(deputy: Deputy, worker_id: str, begun: Sequence[BegunRun]) -> None:
            self.left.append(list(begun))

        async def keep_lease(deputy: Deputy, worker_id: str, *, seconds_max: float) -> bool:
            self.kept.append(lease_clock())
            return True

        monkeypatch.setattr(asyncio, "create_subprocess_exec", create)
        monkeypatch.setattr(Deputy, "died", died)
        monkeypatch.setattr(Deputy, "left", left)
        monkeypatch.setattr(Deputy, "keep_lease", keep_lease)
        self.save("1")
        (folder / "jobs.py").touch()

    def script(self, text: str) -> None:
        (self.folder / "script.py").write_text(PROLOGUE + text)

    def save(self, version: str) -> None:
        """The code changes."""
        (self.folder / "version").write_text(version)
        (self.folder / "jobs.py").write_text(f"# version {version}\n")

    async def until_ready(self, count: int) -> None:
        """So many executors have been ready."""
        readies = self.folder / "readies"
        await until(lambda: readies.exists() and len(readies.read_text()) >= count)

    def alive(self) -> list[asyncio.subprocess.Process]:
        return [process for process in self.started if process.returncode is None]

    def run(
        self, play: Callable[[Supervisor], Awaitable[None]], *, processes: int = 1, reload: bool = False,
        grace_seconds: float = 20.0,
    ) -> None:  # fmt: skip
        """Run a supervisor while `play` goes on; stop it then. Raises: WorkerFailed."""
        options = WorkerOptions(
            sources=[str(self.folder / "jobs.py")],
            api_url="http://127.0.0.1:9",
            secret_key="key",
            processes=processes,
            grace_seconds=grace_seconds,
            reload=reload,
        )

        async def main() -> None:
            supervisor = Supervisor(options, self.ears)
            running = asyncio.ensure_future(supervisor.run())
            playing = asyncio.ensure_future(play(supervisor))
            async with asyncio.timeout(90):
                await asyncio.wait({running, playing}, return_when=asyncio.FIRST_COMPLETED)
                if playing.done():
                    playing.result()
                supervisor.stop()
                try:
                    await running
                finally:
                    playing.cancel()
                    await asyncio.gather(playing, return_exceptions=True)
            assert not self.alive()

        asyncio.run(main())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


# --- the end of an executor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        *((f"os._exit({code})", f"executor-1 ended with exit code {code}; starting") for code in range(7)),
        ("sys.exit(0)", "executor-1 ended with exit code 0; starting"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "executor-1 was killed by SIGKILL; starting"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "executor-1 was killed by SIGTERM; starting"),
        ("os.abort()", "executor-1 was killed by SIGABRT; starting"),
        ("os.close(fd); os._exit(0)", "executor-1 ended with exit code 0; starting"),
        ("os.closerange(0, 100); os._exit(0)", "executor-1 ended with exit code 0; starting"),
        ("os.write(fd, b'no message'); os._exit(0)", "executor-1 ended with exit code 0; starting"),
    ],
)
def test_an_end_without_a_word_is_a_crash_whatever_the_code(stage: Stage, ending: str, words: str) -> None:
    stage.script(f"ready()\nif starts() == 1:\n    {ending}\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear(re.escape(words))
        await until(lambda: (stage.folder / "starts").read_text().count("executor-1") == 2)

    stage.run(play)
    [death] = stage.deaths
    assert words.removeprefix("executor-1 ").removesuffix("; starting") in death.how
    assert stage.left == []
    assert stage.ears.count("executor-1 ended|was killed") == 1


@pytest.mark.parametrize("code", [0, 1, 4])
def test_an_end_with_a_word_is_none(stage: Stage, code: int) -> None:
    stage.script(f"ready()\nif starts() == 2:\n    drain()\nsay('drained')\nos._exit({code})\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("executor-1 has ended after a SIGTERM; starting")
        await until(lambda: (stage.folder / "starts").read_text().count("executor-1") == 2)

    stage.run(play)
    assert (stage.deaths, stage.left) == ([], [])


def test_a_word_counts_although_user_code_writes_to_the_same_pipe(stage: Stage) -> None:
    stage.script(
        """
os.write(fd, b"garbage without an end")
ready()
os.write(fd, b'{"type":"ready"}\\n\\n\\xff\\x00\\n{"type":"nonsense"}\\n[]\\n' + b"x" * 5_000_000)
say("notice", message="still heard")
drain()
"""
    )

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        await stage.ears.hear("still heard")

    stage.run(play)
    assert stage.ears.count("user code writes to file descriptor") == 1
    assert (stage.deaths, stage.left) == ([], [])


def test_an_executor_that_has_lost_its_pipe_is_supervised_as_before(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_process, "LEAVE_SECONDS_MAX", 0.5)
    stage.script("ready()\nif starts() == 1:\n    os.close(fd)\n    order()\n    os._exit(0)\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("user code has closed file descriptor")

    stage.run(play)
    assert len(stage.started) == 1
    assert stage.ears.count("ended") == 0


def test_a_crash_while_it_ends_is_told_and_not_started_again(stage: Stage) -> None:
    stage.script("ready()\norder()\nos._exit(9)\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play)
    assert stage.ears.count("executor-1 ended with exit code 9 while it was ending") == 1
    assert len(stage.deaths) == len(stage.started) == 1


def test_an_executor_that_does_not_end_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_process, "LEAVE_SECONDS_MAX", 0.1)
    stage.script("ready()\ntime.sleep(600)\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play, grace_seconds=0.1)
    assert (stage.deaths, stage.left) == ([], [[]]), "nobody is to blame"
    assert stage.ears.lines == ["ready: work 1"]


# --- what the server is told in an executor's name -----------------------------------------------------------

BOX = """
from milepost.worker.black_box import BlackBox
from milepost.worker.lease import lease_clock
box = BlackBox.open(int(option("--black-box")))
box.answered(60.0, lease_clock())
"""


def test_the_death_of_an_executor_is_told_with_what_it_had_begun(stage: Stage) -> None:
    stage.script(
        BOX
        + """
ready()
if starts() == 1:
    box.begin("run_1", 3)
    box.wait(box.begin("run_2", 1))
    box.end(box.begin("run_3", 1))
    signal.raise_signal(signal.SIGSEGV)
drain()
"""
    )

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("starting it again")
        await until(lambda: (stage.folder / "starts").read_text().count("executor-1") == 2)

    stage.run(play)
    [death] = stage.deaths
    assert death.how == "was killed by SIGSEGV (a fault in native code)"
    assert death.begun == [BegunRun(id="run_1", attempt=3), BegunRun(id="run_2", attempt=1, waiting=True)]


def test_what_a_killed_executor_had_begun_is_handed_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_process, "LEAVE_SECONDS_MAX", 0.1)
    stage.script(BOX + "box.begin('run_1', 2)\nready()\ntime.sleep(600)\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play, grace_seconds=0.1)
    assert (stage.deaths, stage.left) == ([], [[BegunRun(id="run_1", attempt=2)]])


def test_what_an_executor_could_not_hand_back_is_handed_back_for_it(stage: Stage) -> None:
    stage.script(BOX + "box.begin('run_1', 2)\nready()\norder()\nsay('drained', abandoned=1)\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play)
    assert (stage.deaths, stage.left) == ([], [[BegunRun(id="run_1", attempt=2)]])


def test_an_executor_that_crashes_while_it_loads_has_nothing_to_tell(stage: Stage) -> None:
    stage.script("if starts() == 1:\n    os._exit(1)\nready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play)
    assert (stage.deaths, stage.left) == ([], [])


def test_the_runs_of_a_supervisor_that_is_cancelled_are_handed_back(stage: Stage) -> None:
    stage.script(BOX + "box.begin('run_1', 2)\nready()\ntime.sleep(600)\n")

    async def main() -> None:
        options = WorkerOptions(
            sources=[str(stage.folder / "jobs.py")],
            api_url="http://127.0.0.1:9",
            secret_key="key",
            processes=1,
        )
        running = asyncio.ensure_future(Supervisor(options, stage.ears).run())
        await stage.ears.hear("ready")
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(main())
    assert (stage.deaths, stage.left) == ([], [[BegunRun(id="run_1", attempt=2)]])
    assert not stage.alive()


def test_the_lease_of_an_executor_that_says_nothing_is_kept_while_it_executes(stage: Stage) -> None:
    stage.script(
        BOX.replace("60.0", "0.6")
        + """
ready()
while not os.path.exists("speaks"):
    time.sleep(0.01)
while not os.path.exists("stops"):
    box.answered(0.6, lease_clock())
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGSTOP)
drain()
"""
    )

    async def play(supervisor: Supervisor) -> None:
        await until(lambda: len(stage.kept) >= 6)
        assert all(after - before < 0.6 for before, after in zip(stage.kept, stage.kept[1:], strict=False))
        await stage.ears.hear("nothing was heard of this executor")
        assert stage.ears.count("nothing was heard") == 1
        (stage.folder / "speaks").touch()
        await asyncio.sleep(0.3)
        kept = len(stage.kept)
        await asyncio.sleep(1.0)
        assert len(stage.kept) == kept, "it speaks for itself"
        (stage.folder / "stops").touch()
        [process] = stage.alive()
        await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        await asyncio.sleep(1.5)
        assert len(stage.kept) == kept, "who is stopped executes nothing"
        process.send_signal(signal.SIGCONT)
        await until(lambda: len(stage.kept) > kept)

    stage.run(play)
    assert stage.deaths == []


# --- starting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        RuntimeError("can't start new thread"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("failing", ["executor-1", "executor-2", "both"])
def test_a_start_that_fails_is_tried_again_and_the_others_are_left_alone(
    stage: Stage, error: Exception, failing: str
) -> None:
    stage.script("ready()\ndrain()\n")
    failures: dict[str, int] = {}

    def fail_three_times(name: str) -> None:
        if failing in (name, "both") and failures.setdefault(name, 0) < 3:
            failures[name] += 1
            raise error

    stage.before_start = fail_three_times

    async def play(supervisor: Supervisor) -> None:
        await until(lambda: len(stage.started) == 2)
        await stage.ears.hear("is started", times=len(failures))

    stage.run(play, processes=2)
    assert len(stage.started) == 2, "who was well was not disturbed"
    for name in failures:
        assert stage.ears.count(f"{name} cannot be started .*{re.escape(str(error))}") == 1
        assert stage.ears.count(f"{name} is started") == 1


def test_a_worker_can_be_stopped_while_nothing_can_be_started(stage: Stage) -> None:
    def fail(name: str) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    stage.before_start = fail

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("cannot be started", times=2)

    stage.run(play, processes=2)
    assert stage.started == []


@pytest.mark.parametrize("code", [0, 3, 4])
def test_code_that_ends_the_process_while_it_is_loaded_ends_the_worker(stage: Stage, code: int) -> None:
    stage.script(f"os._exit({code})\n")

    async def play(supervisor: Supervisor) -> None:
        await asyncio.Event().wait()

    with pytest.raises(WorkerFailed, match=f"the tasks cannot be loaded: .* exit code {code}, 4 times"):
        stage.run(play, processes=2)
    assert stage.ears.count("starting it again") == 3


def test_one_crash_while_loading_is_no_verdict(stage: Stage) -> None:
    stage.script("if starts() < 3:\n    os._exit(1)\nready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready")

    stage.run(play)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("say('load_failed', message='no luck', files=[])", "no luck"),
        ("say('rejected', message='bad key')", "bad key"),
    ],
)
@pytest.mark.parametrize("processes", [1, 3])
def test_a_worker_without_executors_ends_with_an_error(
    stage: Stage, message: str, words: str, processes: int
) -> None:
    stage.script(message)

    async def play(supervisor: Supervisor) -> None:
        await asyncio.Event().wait()

    with pytest.raises(WorkerFailed, match=words):
        stage.run(play, processes=processes)


# --- new code -------------------------------------------------------------------------------------------------


def test_many_saves_start_few_processes_and_the_newest_code_wins(stage: Stage) -> None:
    stage.script("time.sleep(0.3)\nready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        await stage.until_ready(2)
        for number in range(2, 32):
            stage.save(str(number))
            await asyncio.sleep(0.1)
        await stage.ears.hear("reloaded: work 31")
        await until(lambda: len(stage.alive()) == 2)

    stage.run(play, processes=2, reload=True)
    # Two that work, one that starts; two more when it takes over. Each that is outdated has ended before the next is started.
    assert stage.alive_max <= 5
    reloaded = [int(line.split()[-1]) for line in stage.ears.lines if line.startswith("reloaded")]
    assert reloaded == sorted(set(reloaded))
    assert (stage.deaths, stage.left) == ([], [])


def test_code_that_hangs_while_it_is_loaded_does_not_hold_up_the_next(stage: Stage) -> None:
    stage.script(
        "if version == '2':\n    open('hangs', 'w').close()\n    time.sleep(600)\nready()\ndrain()\n"
    )

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        stage.save("2")
        await until((stage.folder / "hangs").exists)
        stage.save("3")
        await stage.ears.hear("reloaded: work 3")
        await until(lambda: len(stage.alive()) == 1)

    stage.run(play, reload=True)
    assert stage.ears.count("reloaded") == 1


def test_old_code_finishes_its_runs_without_a_limit_of_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_process, "LEAVE_SECONDS_MAX", 0.1)
    monkeypatch.setattr(executor_process, "LOADING_LEAVE_SECONDS_MAX", 0.1)
    stage.script(
        """
ready()
if version == "2":
    drain()
else:
    assert order() == "finish"
    say("finishing", runs=2 if name == "executor-1" else 1)
    while not os.path.exists("gate"):
        time.sleep(0.01)
    say("drained")
"""
    )

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        await stage.until_ready(2)
        stage.save("2")
        await stage.ears.hear("3 runs go on with the code as it was, until the end")
        await until(lambda: len(stage.alive()) == 4)
        await asyncio.sleep(0.5)
        assert len(stage.alive()) == 4, "longer than the grace time"
        (stage.folder / "gate").touch()
        await until(lambda: len(stage.alive()) == 2)

    stage.run(play, processes=2, reload=True, grace_seconds=0.1)
    assert stage.ears.count("go on") == 1
    assert (stage.deaths, stage.left) == ([], [])


def test_old_code_with_nothing_to_do_is_not_worth_a_word(stage: Stage) -> None:
    stage.script("ready()\nif order() == 'finish': say('finishing', runs=0)\nsay('drained')\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        stage.save("2")
        await stage.ears.hear("reloaded: work 2")
        await until(lambda: len(stage.alive()) == 1)

    stage.run(play, reload=True)
    assert stage.ears.lines == ["ready: work 1", "changed: 1", "reloaded: work 2"]


def test_the_end_hurries_old_code_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_process, "LEAVE_SECONDS_MAX", 0.1)
    stage.script("ready()\nif version == '1':\n    time.sleep(600)\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        stage.save("2")
        await stage.ears.hear("reloaded: work 2")
        assert len(stage.alive()) == 2

    stage.run(play, reload=True, grace_seconds=0.2)
    assert (stage.deaths, stage.left) == ([], [[]])


def test_code_that_cannot_be_loaded_leaves_the_old_code_at_work(stage: Stage) -> None:
    stage.script("if version == '2':\n    os._exit(4)\nready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        await stage.until_ready(2)
        stage.save("2")
        await stage.ears.hear("load failed, running: the tasks cannot be loaded: .* exit code 4")
        assert len(stage.alive()) == 2, "two executors of the old code"
        stage.save("3")
        await stage.ears.hear("reloaded: work 3")

    stage.run(play, processes=2, reload=True)
    assert stage.ears.count("load failed") == 1


def test_first_code_that_cannot_be_loaded_waits_for_a_change(stage: Stage) -> None:
    stage.script("if version == '1':\n    os._exit(4)\nready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("load failed, nothing runs")
        stage.save("2")
        await stage.ears.hear("ready: work 2")

    stage.run(play, processes=2, reload=True)


def test_a_system_that_cannot_watch_files_is_no_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    original = watchfiles.awatch

    async def watch(*paths: Path, force_polling: bool | None = None, **options: Any) -> Any:
        if not force_polling:
            raise OSError(errno.ENOSPC, "OS file watch limit reached")
        async for changes in original(*paths, force_polling=True, **options):
            yield changes

    monkeypatch.setattr(watchfiles, "awatch", watch)
    monkeypatch.setattr(module, "WATCH_AGAIN_SECONDS", 0.01)
    stage.script("ready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        await stage.ears.hear("they are looked at instead")
        stage.save("2")
        await stage.ears.hear("reloaded: work 2")

    stage.run(play, reload=True)


def test_a_change_that_the_system_does_not_tell_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watch(*paths: Path, **options: Any) -> Any:
        while True:
            await asyncio.sleep(0.05)
            yield set()

    monkeypatch.setattr(watchfiles, "awatch", watch)
    stage.script("ready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        for version in ("2", "3"):
            stage.save(version)
            await stage.ears.hear(f"reloaded: work {version}")
            await until(lambda: len(stage.alive()) == 1)

    stage.run(play, reload=True)
    assert len(stage.started) == 3


def test_a_change_that_is_told_twice_is_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told = 0

    async def watch(*paths: Path, **options: Any) -> Any:
        nonlocal told
        while True:
            await asyncio.sleep(0.05)
            told += 1
            yield {(watchfiles.Change.modified, str(stage.folder / "jobs.py"))}

    monkeypatch.setattr(watchfiles, "awatch", watch)
    stage.script("ready()\ndrain()\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        stage.save("2")
        await stage.ears.hear("reloaded: work 2")
        before = told
        await until(lambda: told > before + 5)

    stage.run(play, reload=True)
    assert len(stage.started) == 2


def test_orders_only_become_more_urgent(stage: Stage) -> None:
    stage.script("ready()\nopen('orders', 'w').write(order() + ' ' + order())\nsay('drained')\n")

    async def play(supervisor: Supervisor) -> None:
        await stage.ears.hear("ready: work 1")
        stage.save("2")
        await stage.ears.hear("reloaded: work 2")
        supervisor.stop(Order.STOP)

    stage.script(
        "ready()\nif version == '1':\n    open('orders', 'w').write(order() + ' ' + order())\n    say('drained')\nelse:\n    drain()\n"
    )
    stage.run(play, reload=True)
    assert (stage.folder / "orders").read_text() == "finish stop"
