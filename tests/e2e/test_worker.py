"""Executors under bad conditions: killed, blocked, drained, abused; and the runs always come through."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from real_processes import Command, House, cmdline, is_alive, wait_until, write_tasks

from milepost import Client
from milepost.client import calls
from milepost.protocol.triggering import BatchItem, BatchRequest

TREE = """
import asyncio
@task
async def leaf(name: str) -> str:
    return name

@task
async def middle(name: str) -> str:
    results = await leaf.abatch_trigger_and_wait([name + "a", name + "b"])
    return "".join(result.unwrap() for result in results)

@task
async def top() -> str:
    one = await middle.atrigger_and_wait("1")
    two = await middle.atrigger_and_wait("2")
    return one.unwrap() + two.unwrap()

@task
def plain_leaf(name: str) -> str:
    return name

@task
def plain_middle(name: str) -> str:
    return plain_leaf.trigger_and_wait(name + "a").unwrap() + plain_leaf.trigger_and_wait(name + "b").unwrap()

@task
def plain_top() -> str:
    return plain_middle.trigger_and_wait("1").unwrap() + plain_middle.trigger_and_wait("2").unwrap()

@task
async def number_leaf(number: int) -> int:
    return number

@task
async def wide() -> int:
    batches = [number_leaf.abatch_trigger_and_wait([number] * 3) for number in range(5)]
    return sum(result.unwrap() for results in await asyncio.gather(*batches) for result in results)
"""


def test_trees_and_several_waits_at_once_go_through_one_slot(house: Callable[..., House]) -> None:
    dev = house(TREE, "--processes", "1", "--concurrency", "1")
    for task_id in ("top", "plain_top"):
        run = dev.run(task_id)
        assert (run.output, run.attempt_count) == ("1a1b2a2b", 1)
    assert dev.run("wide").output == 30
    assert dev.end() == 0


def test_never_more_runs_at_once_than_there_are_slots(house: Callable[..., House]) -> None:
    dev = house(
        """
        import asyncio, threading, time
        lock, now, most = threading.Lock(), 0, 0
        def enter() -> None:
            global now, most
            with lock:
                now += 1
                most = max(most, now)
        def leave() -> None:
            global now
            with lock:
                now -= 1
        @task
        async def child(number: int) -> None:
            enter()
            await asyncio.sleep(0.002)
            leave()
        @task
        def plain_child(number: int) -> None:
            enter()
            time.sleep(0.002)
            leave()
        @task
        async def parent() -> int:
            for _ in range(3):
                enter()
                await asyncio.sleep(0.001)
                leave()
                await child.abatch_trigger_and_wait(range(10))
                enter()
                leave()
                await plain_child.abatch_trigger_and_wait(range(10))
            return most
        """,
        "--processes", "1", "--concurrency", "4",
    )  # fmt: skip
    runs = [dev.trigger("parent") for _ in range(6)]
    assert max(dev.finished(run_id, 60).output for run_id in runs) == 4


def test_a_killed_executor_is_replaced_and_its_run_is_tried_again_at_once(
    house: Callable[..., House],
) -> None:
    dev = house(
        """
        import os, signal
        @task(retry=Retry(max_attempts=3, min_delay=0))
        async def fragile(ctx: Context) -> int:
            metadata.increment("attempts")
            await metadata.aflush()
            if ctx.attempt.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return ctx.attempt.number
        """,
        "--processes", "1",
    )  # fmt: skip
    started = time.monotonic()
    run = dev.run("fragile")
    assert (run.output, run.metadata) == (2, {"attempts": 2})
    assert time.monotonic() - started < 15, (
        "the supervisor tells the server, which need not wait for the lease"
    )
    assert "killed by SIGKILL" in dev.errors
    assert dev.end() == 0


def test_a_run_without_retries_that_kills_its_process_fails_and_ends_with_all_that_it_has_started(
    house: Callable[..., House],
) -> None:
    dev = house(
        """
        import os, subprocess
        @task(retry=Retry(max_attempts=1))
        def dies() -> None:
            process = subprocess.Popen(["sleep", "600"])
            metadata.set("pid", process.pid).flush()
            os._exit(7)
        @task
        def lives() -> str:
            return "alive"
        """,
        "--processes", "1",
    )  # fmt: skip
    run = dev.run("dies")
    assert run.is_failed
    assert run.error is not None
    assert run.error.name == "ProcessDiedError"
    assert "ended with exit code 7 (the task may have called os._exit)" in run.error.message
    process_id = run.metadata["pid"]
    wait_until(lambda: not psutil.pid_exists(process_id) or not is_alive(psutil.Process(process_id)))
    assert dev.run("lives").output == "alive"


GATE = """
import asyncio, os, pathlib, time
@task
async def gated(path: str, ctx: Context) -> int:
    metadata.set("pid", os.getpid())
    while not pathlib.Path(path).exists():
        await asyncio.sleep(0.01)
    metadata.set("last", "words")
    return ctx.attempt.number

@task
def gated_plain(path: str, ctx: Context) -> int:
    metadata.set("pid", os.getpid())
    while not pathlib.Path(path).exists():
        time.sleep(0.01)
    metadata.set("last", "words")
    return ctx.attempt.number
"""


def begin_gated(dev: House, gate: Path) -> list[str]:
    """A coroutine and a function that go on until there is a file; both are under way."""
    run_ids = [dev.trigger(task_id, str(gate)) for task_id in ("gated", "gated_plain")]
    for run_id in run_ids:
        dev.until(run_id, lambda run: run.metadata.get("pid"))
    return run_ids


def test_runs_under_way_may_end_after_the_signal(house: Callable[..., House], tmp_path: Path) -> None:
    dev = house(GATE, "--processes", "1")
    run_ids = begin_gated(dev, tmp_path / "gate")
    dev.signal()
    (tmp_path / "gate").touch()
    assert dev.ended() == 0
    again = house(None, "--processes", "1")
    for run_id in run_ids:
        run = again.client.runs.retrieve(run_id)
        assert (run.output, run.attempt_count, run.metadata["last"]) == (1, 1, "words")


def test_runs_that_do_not_end_in_time_are_tried_again(house: Callable[..., House], tmp_path: Path) -> None:
    dev = house(GATE, "--processes", "1", "--grace", "0.2")
    run_ids = begin_gated(dev, tmp_path / "gate")
    assert dev.end() == 0
    (tmp_path / "gate").touch()
    again = house(None, "--processes", "1")
    for run_id in run_ids:
        run = again.finished(run_id)
        assert (run.output, run.attempt_count) == (2, 2)


def test_runs_that_were_claimed_and_have_not_started_are_not_charged(
    house: Callable[..., House], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    source = f"""
    import pathlib, time
    @task(retry=Retry(max_attempts=1))
    def step(number: int) -> int:
        if number == 300:
            metadata.set("blocked", True)
            while not pathlib.Path({str(gate)!r}).exists():
                time.sleep(0.01)
        return number
    """
    dev = house(source, "--processes", "1", "--concurrency", "1")
    batch = dev.client.send(_batch("step", range(600)))
    blocked = batch.run_ids[300]
    dev.until(blocked, lambda run: run.metadata.get("blocked"))
    dev.signal()
    gate.touch()
    assert dev.ended() == 0
    again = house(None, "--processes", "1")
    for number, run_id in enumerate(batch.run_ids):
        if number % 50 == 0 or 290 < number < 320:
            run = again.finished(run_id)
            assert run.output == number, run
    assert not list(again.client.runs.list(status="FAILED"))


def _batch(task_id: str, payloads: Iterable[int]) -> Any:
    items = [BatchItem(task=task_id, payload=str(payload)) for payload in payloads]
    return calls.trigger_batch(BatchRequest(items=items))


def test_a_second_signal_ends_at_once(house: Callable[..., House], tmp_path: Path) -> None:
    dev = house(GATE, "--processes", "1", "--grace", "60")
    run_id = dev.trigger("gated", str(tmp_path / "gate"))
    dev.until(run_id, lambda run: run.metadata.get("pid"))
    dev.signal(signal.SIGINT)
    dev.says("Ctrl-C again ends at once")
    assert dev.end(signal.SIGINT, seconds=10) == 0
    assert "handed back" in dev.errors


def test_an_executor_drains_by_its_own_signal_and_is_replaced(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(GATE, "--processes", "1")
    run_id = dev.trigger("gated", str(tmp_path / "gate"))
    dev.until(run_id, lambda run: run.metadata.get("pid"))
    [executor] = dev.executors()
    executor.send_signal(signal.SIGINT)
    executor.send_signal(signal.SIGTERM)
    (tmp_path / "gate").touch()
    assert dev.finished(run_id).attempt_count == 1
    wait_until(lambda: [each.pid for each in dev.executors()] not in ([], [executor.pid]))
    assert dev.run("gated", str(tmp_path / "gate")).output == 1


def test_executors_end_with_a_supervisor_that_was_killed(house: Callable[..., House]) -> None:
    dev = house(GATE, "--processes", "2")
    assert len(dev.executors()) == 2
    dev.process.kill()
    dev.process.wait()
    wait_until(lambda: not dev.left_behind(), 20)


def test_a_blocked_event_loop_keeps_its_lease_and_flushes(house: Callable[..., House]) -> None:
    dev = house(
        """
        import time
        @task
        async def blocks() -> int:
            for number in range(10):
                metadata.set("number", number)
                time.sleep(0.4)
            return 1
        @task
        def other() -> str:
            return "meanwhile"
        """,
        "--processes", "1", env={"MILEPOST_LEASE_SECONDS": "1"},
    )  # fmt: skip
    run_id = dev.trigger("blocks")
    seen = dev.until(run_id, lambda run: run.metadata.get("number", -1) >= 2)
    assert not seen.is_completed, "it was flushed while the loop was blocked"
    assert dev.run("other").output == "meanwhile", "a `def` task needs no event loop"
    assert not dev.client.runs.retrieve(run_id).is_completed
    run = dev.finished(run_id)
    assert (run.output, run.attempt_count, run.metadata) == (1, 1, {"number": 9})


def test_a_run_that_never_yields_does_not_outlive_the_grace_time(house: Callable[..., House]) -> None:
    dev = house(
        """
        @task
        async def spins() -> None:
            metadata.set("spinning", True)
            while True:
                pass
        """,
        "--processes", "1", "--grace", "0.5",
    )  # fmt: skip
    run_id = dev.trigger("spins")
    dev.until(run_id, lambda run: run.metadata.get("spinning"))
    assert dev.end(seconds=15) == 0


BAD = """
import asyncio, os, sys, threading

@task
def ok(name: str = "") -> str:
    return "ok"

once = Retry(max_attempts=1)

@task(retry=once)
def raises_base() -> None:
    raise BaseException("not even an Exception")

@task(retry=once)
async def raises_base_async() -> None:
    raise BaseException("not even an Exception")

@task(retry=once)
def raises_interrupt() -> None:
    raise KeyboardInterrupt

@task(retry=once)
async def raises_interrupt_async() -> None:
    raise KeyboardInterrupt

@task(retry=once)
def exits() -> None:
    sys.exit(3)

@task(retry=once)
async def exits_async() -> None:
    sys.exit(3)

@task(retry=once)
async def cancels_itself() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)

@task(retry=once)
async def raises_cancelled() -> None:
    raise asyncio.CancelledError("by hand")

@task(retry=once)
def raises_stop() -> None:
    raise StopIteration(1)

@task(retry=once)
async def raises_stop_async() -> None:
    raise StopAsyncIteration

@task(retry=once)
async def returns_generator() -> object:
    return (number for number in range(3))

@task(retry=once)
def returns_coroutine() -> object:
    return asyncio.sleep(0)

@task(retry=once)
def returns_thread() -> object:
    return threading.Lock()

@task(retry=once)
def recurses() -> None:
    recurses()
"""


def test_whatever_a_task_raises_or_returns_the_worker_survives(house: Callable[..., House]) -> None:
    dev = house(BAD, "--processes", "1", "--concurrency", "3")
    [executor] = dev.executors()
    bad = [line.split("(")[0].split()[-1] for line in BAD.splitlines() if "def " in line and "ok" not in line]
    assert len(bad) == 14
    for task_id in bad:
        run = dev.run(task_id)
        assert run.is_failed, task_id
        assert run.error is not None
        assert run.error.message, task_id
    assert dev.run("ok").output == "ok"
    assert [each.pid for each in dev.executors()] == [executor.pid]
    assert dev.end() == 0


def test_a_forked_child_does_not_speak_for_its_parent(house: Callable[..., House], tmp_path: Path) -> None:
    dev = house(
        """
        import asyncio, os, multiprocessing

        @task
        def forks(ctx: Context) -> str:
            metadata.set("before", True)
            if os.fork() == 0:
                metadata.set("child", True)
                return "child"
            os.wait()
            return "parent"

        @task
        async def forks_on_loop(ctx: Context) -> str:
            metadata.set("before", True)
            child = os.fork()
            if child == 0:
                metadata.set("child", True)
                await asyncio.sleep(0.01)
                return "child"
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                await asyncio.sleep(0.01)
            return "parent"

        def work(number, queue):
            queue.put(number * 2)

        @task
        def uses_processes() -> int:
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=work, args=(21, queue))
            process.start()
            result = queue.get()
            process.join()
            return result
        """,
        "--processes", "1",
    )  # fmt: skip
    [executor] = dev.executors()
    for task_id in ("forks", "forks_on_loop"):
        run = dev.run(task_id)
        assert (run.output, run.attempt_count, run.metadata) == ("parent", 1, {"before": True})
    assert dev.run("uses_processes").output == 42
    assert dev.run("forks").output == "parent"
    assert [each.pid for each in dev.executors()] == [executor.pid]
    assert dev.end() == 0
    assert "Exception ignored" not in dev.errors
    assert "Traceback" not in dev.errors


def test_a_refused_operation_is_in_the_log_of_the_run(house: Callable[..., House]) -> None:
    dev = house(
        """
        @task
        async def child() -> None:
            metadata.parent.increment("text")
            metadata.parent.set("fine", True)
            await asyncio.sleep(0)
            try:
                await metadata.aflush()
            except MetadataFlushError:
                pass
        import asyncio
        @task
        async def parent() -> str:
            metadata.set("text", "a text")
            result = await child.atrigger_and_wait()
            return result.run_id
        """,
        "--processes", "1",
    )  # fmt: skip
    run = dev.run("parent")
    assert run.metadata == {"text": "a text", "fine": True}
    assert any("refused" in line and run.id in line for line in dev.log(str(run.output)))


def test_two_workers_with_different_code_get_what_is_theirs(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    env = {"MILEPOST_SECRET_KEY": "tr_test_key"}
    server = command("server", "--port", "0", "--data", "data", env=env)
    server.says("serves at ")
    url = server.errors.split("serves at ")[1].split()[0]
    env["MILEPOST_API_URL"] = url
    workers: list[Command] = []
    for name in ("one", "other"):
        write_tasks(tmp_path / f"{name}.py", f"@task\ndef {name}() -> str:\n    return {name!r}\n")
        workers.append(command("worker", f"{name}.py", "--processes", "1", env=env))
    for worker in workers:
        worker.says("ready to run")
    client = Client(url, "tr_test_key")
    ids = [(name, client.trigger(name).id) for _ in range(10) for name in ("one", "other")]
    for name, run_id in ids:
        assert client.runs.wait(run_id, timeout=30).output == name

    # With its worker gone a task waits; with the worker back it goes on.
    assert workers[1].end() == 0
    waiting = client.trigger("other").id
    assert client.runs.wait(client.trigger("one").id, timeout=30).output == "one"
    assert client.runs.retrieve(waiting).is_queued
    command("worker", "other.py", "--processes", "1", env=env)
    assert client.runs.wait(waiting, timeout=30).output == "other"
    assert server.end() == 0
    assert "Traceback" not in server.errors


def test_a_worker_outlives_its_server(command: Callable[..., Command], tmp_path: Path) -> None:
    env = {"MILEPOST_SECRET_KEY": "tr_test_key"}
    server = command("server", "--port", "0", "--data", "data", env=env)
    server.says("serves at ")
    url = server.errors.split("serves at ")[1].split()[0]
    env["MILEPOST_API_URL"] = url
    write_tasks(tmp_path / "jobs.py", GATE)
    worker = command("worker", "jobs.py", "--processes", "1", env=env)
    worker.says("ready to run")
    client = Client(url, "tr_test_key")
    run_id = client.trigger("gated", str(tmp_path / "gate")).id
    for run in client.runs.subscribe(run_id):
        if run.metadata.get("pid"):
            break
    server.process.kill()
    server.process.wait()
    (tmp_path / "gate").touch()
    server = command("server", "--port", url.rpartition(":")[2], "--data", "data", env=env)
    server.says("serves at ")
    run = client.runs.wait(run_id, timeout=30)
    assert (run.output, run.attempt_count, run.metadata["last"]) == (1, 1, "words")


def test_a_wrong_key_is_said_in_one_line_and_the_right_one_is_in_no_list_of_processes(
    house: Callable[..., House], command: Callable[..., Command]
) -> None:
    dev = house(GATE, "--processes", "1")
    for process in [psutil.Process(dev.process.pid), *dev.executors()]:
        assert dev.secret_key not in json.dumps(cmdline(process))
    assert os.getpid() not in [executor.pid for executor in dev.executors()]
    worker = command("worker", "jobs.py", env={"MILEPOST_API_URL": dev.url, "MILEPOST_SECRET_KEY": "wrong"})
    assert worker.process.wait(60) == 1
    assert "the secret key is wrong" in worker.errors
    assert len(worker.errors.splitlines()) == 1


def test_a_worker_waits_for_its_server(command: Callable[..., Command], tmp_path: Path) -> None:
    write_tasks(tmp_path / "jobs.py", GATE)
    worker = command(
        "worker", "jobs.py", "--processes", "1",
        env={"MILEPOST_API_URL": "http://127.0.0.1:9", "MILEPOST_SECRET_KEY": "key"},
    )  # fmt: skip
    worker.says("waiting for the server at http://127.0.0.1:9")
    assert worker.end() == 0
