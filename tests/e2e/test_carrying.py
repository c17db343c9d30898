"""Metadata from wherever a run's code goes, with real processes: interruptions, threads, forks, programs, shell scripts (M15)."""

import sys
from collections.abc import Callable

from real_processes import MILEPOST, House

# Before, Python does not tell who starts a thread.
STARTS_ARE_TOLD = sys.version_info >= (3, 12)

INTERRUPTIONS = """
    import gc, logging, os, signal, sys, threading, time

    @task
    async def ticks(n: int) -> int:
        # The signal handler of a task runs in the thread of the event loop, in the middle of whatever it does.
        before = {name: metadata.get(name, 0) for name in ("ticks", "n")}
        ticks = 0

        def tick(*_):
            nonlocal ticks
            ticks += 1
            metadata.increment("ticks").append("last", ticks, max_items=3)
            metadata.get("n")
            # One at a time: a handler may be interrupted by the next signal.
            signal.setitimer(signal.ITIMER_REAL, 0.0003)

        signal.signal(signal.SIGALRM, tick)
        signal.setitimer(signal.ITIMER_REAL, 0.0003)
        try:
            for index in range(n):
                metadata.increment("n").set("index", index).append("log", index, max_items=5)
                metadata.get("ticks")
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        await metadata.aflush()
        assert metadata.get("ticks", 0) == ticks, (metadata.get("ticks"), ticks)
        return ticks

    class Garbage:
        def __init__(self, count):
            self.itself = self
            self.count = count

        def __del__(self):
            self.count()

    @task
    def finalizers(n: int) -> None:
        # Bound, because the collector runs in any thread: those of other runs, the loop's, the link's.
        count = metadata.bind(lambda: metadata.increment("finalized").parent.increment("finalized"))
        thresholds = gc.get_threshold()
        gc.set_threshold(7, 2, 2)
        try:
            for index in range(n):
                Garbage(count)
                metadata.set("index", {"at": [index]}).update({"a": index, "b": index})
            time.sleep(0.3)
            gc.collect()
        finally:
            gc.set_threshold(*thresholds)

    class Handler(logging.Handler):
        def emit(self, record):
            metadata.increment("lines")

    @task
    def handlers(n: int) -> None:
        # A handler that counts, and finalizers that log: each has a lock that the other one waits for.
        logger = logging.getLogger("handlers")
        logger.setLevel("INFO")
        logger.propagate = False
        logger.handlers = [Handler()]

        def work():
            thresholds = gc.get_threshold()
            gc.set_threshold(5, 2, 2)
            for index in range(n):
                Garbage(lambda: logger.info("finalized"))
                logger.info("line")
                metadata.increment("n")
            gc.set_threshold(*thresholds)

        threads = [threading.Thread(target=metadata.bind(work)) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

    @task
    def traced(n: int) -> None:
        def trace(frame, event, argument):
            if "milepost" in frame.f_code.co_filename:
                nonlocal_count[0] += 1
                if nonlocal_count[0] % 97 == 0:
                    metadata.increment("traced")
                    expected[0] += 1
            return trace

        nonlocal_count, expected = [0], [0]
        sys.settrace(trace)
        for index in range(n):
            metadata.increment("n")
        sys.settrace(None)
        assert metadata.get("traced") == expected[0] > 10

    @task
    def stuck(seconds: float) -> None:
        # As by a finalizer that takes its time in the middle of a call: the other runs of the process do not notice.
        def trace(frame, event, argument):
            if frame.f_code.co_name == "apply":
                time.sleep(seconds)

        metadata.set("begun", 1)
        sys.settrace(trace)
        metadata.increment("n")
        sys.settrace(None)

    @task
    def quick() -> None:
        metadata.set("done", 1)
        metadata.flush()
"""


def test_calls_that_interrupt_one_another(house: Callable[..., House]) -> None:
    """Signal handlers, finalizers, logging handlers and trace functions: each call is taken once, nothing hangs, no run is lost."""
    started = house(INTERRUPTIONS, "--processes", "1")
    work = {"ticks": 20_000, "finalizers": 3000, "handlers": 500, "traced": 200}
    ended = {name: started.run(name, count) for name, count in work.items()}
    assert {name: run.error for name, run in ended.items()} == dict.fromkeys(work)
    assert ended["ticks"].metadata["n"] == 20_000
    assert ended["ticks"].metadata["ticks"] == ended["ticks"].output > 0
    assert ended["traced"].metadata["n"] == 200
    assert ended["finalizers"].metadata["finalized"] == 2 * 3000
    assert ended["finalizers"].metadata["a"] == ended["finalizers"].metadata["b"] == 2999
    assert ended["handlers"].metadata["n"] == 1500
    assert ended["handlers"].metadata["lines"] >= 1500
    assert all(run.attempt_count == 1 for run in ended.values())


def test_a_call_that_is_stopped_in_the_middle_holds_up_no_other_run(house: Callable[..., House]) -> None:
    started = house(INTERRUPTIONS, "--processes", "1", env={"MILEPOST_LEASE_SECONDS": "3"})
    stuck = started.trigger("stuck", 8.0)
    started.until(stuck, lambda run: run.is_executing)
    for _ in range(20):
        assert started.run("quick").is_success
    assert started.client.runs.retrieve(stuck).is_executing
    ended = started.finished(stuck)
    assert ended.error is None
    assert (ended.is_success, ended.attempt_count, ended.metadata) == (True, 1, {"begun": 1, "n": 1})


FORKS = """
    import multiprocessing, threading, time

    def in_child(index: int) -> None:
        assert metadata.get("before") == 1
        metadata.increment("children").parent.increment("children")
        metadata.run("run_00000000000000000000000000").set("not", "mine")

    def unbound(index: int) -> None:
        metadata.increment("lost")

    @task
    def forks(stranger: str) -> list[int]:
        metadata.set("before", 1)
        over = threading.Event()

        def write():
            index = 0
            while not over.is_set():
                index += 1
                metadata.set("index", index).append("log", "x" * 100, max_items=20)

        threads = [threading.Thread(target=metadata.bind(write)) for _ in range(3)]
        [thread.start() for thread in threads]
        codes = []
        for index in range(15):
            process = multiprocessing.get_context("fork").Process(target=metadata.bind(in_child), args=(index,))
            process.start()
            process.join(20)
            codes.append(process.exitcode)
        over.set()
        [thread.join() for thread in threads]
        metadata.run(stranger).set("by", "the task")
        process = multiprocessing.get_context("fork").Process(target=metadata.bind(writes_to), args=(stranger,))
        process.start()
        process.join(20)
        return codes

    def writes_to(stranger: str) -> None:
        metadata.run(stranger).set("by", "a child")

    @task
    def nothing() -> None:
        pass

    @task
    def starts_unbound(method: str) -> None:
        with multiprocessing.get_context(method).Pool(1) as pool:
            pool.map(unbound, range(5))
"""


def test_forked_children_write_as_their_run_beside_threads_that_write(house: Callable[..., House]) -> None:
    started = house(FORKS)
    stranger = started.run("nothing")
    run = started.run("forks", stranger.id)
    assert run.error is None
    assert run.output == [0] * 15
    assert run.metadata["children"] == 30, "without a parent it is the run itself"
    assert started.client.runs.retrieve(stranger.id).metadata == {}
    log = started.log(run.id)
    assert sum(stranger.id in line and "ancestors" in line for line in log) == 2
    writers = {change.writer_run_id for change in started.client.runs.metadata_history(run.id)}
    assert writers == {run.id}


def test_a_child_process_that_was_not_bound_says_so_once(house: Callable[..., House]) -> None:
    started = house(FORKS, "--processes", "1")
    for method in ("fork", "spawn"):
        before = started.errors.count("metadata.bind(function)")
        assert started.run("starts_unbound", method).error is None
        started.says("metadata.bind(function)")
        assert started.errors.count("metadata.bind(function)") == before + 1


PROGRAMS = """
    import asyncio, os, subprocess, sys

    PROGRAM = '''
    import subprocess, sys, threading
    from milepost import metadata
    assert metadata.attach() is metadata
    assert metadata.get("before") == 1, metadata.current()
    metadata.attach().set("program", 1).parent.increment("programs")
    metadata.root.increment("programs")
    threads = [threading.Thread(target=lambda: metadata.increment("threads")) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert metadata.get("threads") == 5
    metadata.run(sys.argv[1]).set("by", "a program")
    subprocess.run([sys.executable, "-c", INNER], check=True, env=metadata.environment())
    '''
    INNER = 'from milepost import metadata; metadata.attach().increment("inner")'
    PROGRAM = f"INNER = {INNER!r}\\n" + PROGRAM

    @task
    def child(stranger: str) -> None:
        metadata.set("before", 1)
        metadata.flush()
        env = metadata.environment()
        assert "MILEPOST_RUN_ID" not in os.environ
        subprocess.run([sys.executable, "-c", PROGRAM, stranger], check=True, env=env, cwd="/")
        assert metadata.refresh().get("inner") == 1
        metadata.set("after", 1)

    @task
    async def parent(stranger: str) -> None:
        (await child.atrigger_and_wait(stranger)).unwrap()

    @task
    async def shell(milepost: list[str]) -> None:
        script = '''
            set -e
            m() { "$@" ; }
            "$@" metadata set status "in the shell"
            "$@" metadata increment n 5
            test "$("$@" metadata get status)" = "in the shell"
        '''
        process = await asyncio.create_subprocess_exec("sh", "-c", script, "sh", *milepost, env=metadata.environment())
        assert await process.wait() == 0
        await metadata.arefresh()
        assert metadata.get("n") == 5

    @task
    def nothing() -> None:
        pass
"""


def test_a_program_and_a_shell_script_are_part_of_the_run(house: Callable[..., House]) -> None:
    started = house(PROGRAMS)
    stranger = started.run("nothing")
    run = started.run("parent", stranger.id)
    assert run.error is None, run.error
    assert run.metadata == {"programs": 2}
    [child] = started.client.runs.list(parent=run.id)
    assert child.metadata == {"before": 1, "program": 1, "threads": 5, "inner": 1, "after": 1}
    assert started.client.runs.retrieve(stranger.id).metadata == {}
    assert any(stranger.id in line for line in started.log(child.id))
    assert started.run("shell", MILEPOST).metadata == {"status": "in the shell", "n": 5}


UNBOUND = """
    import asyncio, contextvars, threading
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)

    def count(n: int = 100) -> None:
        for _ in range(n):
            metadata.increment("n")

    def in_thread(work) -> None:
        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

    @task
    def plain() -> None:
        in_thread(count)
        in_thread(lambda: metadata.get("n"))

    @task
    def plain_pool() -> None:
        with ThreadPoolExecutor(2) as own:
            list(own.map(lambda _: count(), range(4)))

    @task
    def shared_pool() -> None:
        pool.submit(count).result()

    @task
    async def to_executor() -> None:
        await asyncio.get_running_loop().run_in_executor(None, count)

    @task
    async def carried() -> None:
        await asyncio.to_thread(count)
        in_thread(metadata.bind(count))
        in_thread(lambda context=contextvars.copy_context(): context.copy().run(count))
        with ThreadPoolExecutor(2) as own:
            list(own.map(metadata.bind(lambda _: count()), range(4)))

    @task
    async def waits() -> None:
        metadata.set("begun", 1)
        while not metadata.get("end"):
            await asyncio.sleep(0.01)
"""


def test_a_thread_that_was_not_bound_gets_one_warning_per_run(house: Callable[..., House]) -> None:
    """It names the cure, and stands in the log of the run whose thread it is."""
    started = house(UNBOUND, "--processes", "1")

    def warnings(run_id: str) -> list[str]:
        return [line for line in started.log(run_id) if "metadata.bind(function)" in line]

    innocent = started.trigger("waits")
    started.until(innocent, lambda run: run.metadata.get("begun"))
    for _ in range(2):
        for name in ("plain", "plain_pool", "to_executor"):
            run = started.run(name)
            assert run.metadata == {}
            [warning] = warnings(run.id)
            assert ("which this run has started" if STARTS_ARE_TOLD else "perhaps for this run") in warning
    carried = started.run("carried")
    assert carried.metadata == {"n": 100 * 11}
    assert warnings(carried.id) == []
    assert len(warnings(innocent)) == (0 if STARTS_ARE_TOLD else 1)
    # Of the thread of a pool that the whole program shares nobody knows which run it works for: the one that started it has ended.
    assert len(warnings(started.run("shared_pool").id)) == 1
    assert len(warnings(started.run("shared_pool").id)) == 1
    started.client.runs.metadata(innocent).set("end", 1).send()
    started.finished(innocent)
    assert len(warnings(innocent)) == 1
    assert "perhaps" in warnings(innocent)[0]
    assert started.errors.count("metadata.bind(function)") == 6 + 2 + 1
