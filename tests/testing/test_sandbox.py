"""`milepost.testing`: runs in memory, with the real engine and worker, and a time that is the test's."""

import asyncio
import logging
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from milepost import (
    AbortTaskRun,
    ConfigurationError,
    Context,
    PayloadValidationError,
    Queue,
    Retry,
    RunStatus,
    TaskFailedError,
    UsageError,
    metadata,
    runs,
    streams,
    task,
    tasks,
    wait,
)
from milepost.client.default import default_client
from milepost.testing import Sandbox, SandboxRun, arun_task, run_task

HOURS = Retry(max_attempts=3, min_delay=3600, max_delay=7200, jitter=False)
tried: list[int] = []
happened: list[str] = []


@pytest.fixture(autouse=True)
def nothing_happened() -> None:
    tried.clear()
    happened.clear()


@task
def double(n: int) -> int:
    metadata.parent.increment("done")
    return n * 2


@task
async def double_all(count: int) -> int:
    metadata.set("total", count)
    results = await double.abatch_trigger_and_wait(range(count))
    return sum(result.unwrap() for result in results)


@task(retry=HOURS)
def fails_twice(ctx: Context) -> str:
    tried.append(ctx.attempt.number)
    metadata.append("attempts", ctx.attempt.number)
    if ctx.attempt.number < 3:
        raise ValueError(f"attempt {ctx.attempt.number}")
    return "at last"


@task(retry=HOURS)
def always_fails() -> None:
    raise ValueError("out of ink")


@task
async def has_failing_child(n: int) -> str:
    result = await always_fails.atrigger_and_wait()
    assert result.error is not None
    return result.error.message


@task(retry=HOURS)
def aborts() -> None:
    raise AbortTaskRun("no use")


@task(retry=HOURS)
def has_hooks(ok: bool) -> str:
    happened.append("task")
    if not ok:
        raise ValueError("no")
    return "fine"


for _name in ("on_start_attempt", "on_start", "on_success", "on_failure", "on_complete", "catch_error"):

    def _note(name: str = _name) -> Any:
        def hook() -> None:
            happened.append(name)
            metadata.append("hooks", name)

        return hook

    getattr(has_hooks, _name)(_note())


@has_hooks.middleware
async def around(next: Any) -> None:
    happened.append("before")
    try:
        await next()
    finally:
        happened.append("after")


@task
def talks(ctx: Context) -> None:
    print("printed")
    logging.getLogger("of.the.user").warning("logged")
    ctx.logger.info("by the context")


@task
def quick(n: int = 0) -> int:
    return n


# --- a tree ------------------------------------------------------------------------------------------------


def test_a_parent_with_a_hundred_children_counts_exactly() -> None:
    run = run_task(double_all, 100)
    assert run.status is RunStatus.COMPLETED
    assert run.output == 9900
    assert run.metadata == {"total": 100, "done": 100}
    assert [child.output for child in run.children] == [2 * n for n in range(100)]
    assert {child.status for child in run.children} == {RunStatus.COMPLETED}
    increments = [step for step in run.history if step.writer_run_id != run.id]
    assert len({step.writer_run_id for step in increments}) == 100
    assert len(list(run.tree())) == 101


def test_an_async_test_runs_async_tasks_on_its_own_loop() -> None:
    async def test() -> None:
        here = asyncio.get_running_loop()
        seen: list[asyncio.AbstractEventLoop] = []

        @task(id="sees-loop")
        async def sees_loop(n: int) -> int:
            seen.append(asyncio.get_running_loop())
            return (await double.atrigger_and_wait(n)).unwrap()

        run = await arun_task(sees_loop, 4)
        assert run.output == 8
        assert seen == [here]

    asyncio.run(test())


def test_the_options_of_a_trigger_are_taken() -> None:
    run = run_task(quick, 3, metadata={"user": {"id": "u"}}, tags=["user:1"])
    assert (run.output, run.metadata, run.tags) == (3, {"user": {"id": "u"}}, ["user:1"])


def test_a_payload_that_does_not_fit_is_refused_as_ever() -> None:
    wrong: Any = "three"
    with pytest.raises(PayloadValidationError, match="n"):
        run_task(double, wrong)


# --- retries -----------------------------------------------------------------------------------------------


def test_hours_between_attempts_take_no_time() -> None:
    with Sandbox(now=datetime(2030, 1, 1, tzinfo=UTC)) as box:
        began = time.monotonic()
        handle = box.trigger(fails_twice)
        box.run_until_idle()
        run = box.run(handle)
        took = time.monotonic() - began
        assert box.now >= datetime(2030, 1, 1, 3, tzinfo=UTC)
    assert took < 5
    assert run.output == "at last"
    assert tried == [1, 2, 3]
    assert run.metadata == {"attempts": [1, 2, 3]}
    assert [attempt.number for attempt in run.attempts] == [1, 2, 3]
    assert [attempt.error.message if attempt.error else None for attempt in run.attempts] == [
        "attempt 1",
        "attempt 2",
        None,
    ]
    claimed = [attempt.claimed_at for attempt in run.attempts if attempt.claimed_at is not None]
    pauses = [later - earlier for earlier, later in pairwise(claimed)]
    assert [round(pause.total_seconds()) for pause in pauses] == [3600, 7200]


def test_a_failed_run_says_how(caplog: pytest.LogCaptureFixture) -> None:
    run = run_task(always_fails)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert (run.error.name, run.error.message) == ("ValueError", "out of ink")
    assert len(run.attempts) == 3
    with pytest.raises(TaskFailedError, match="out of ink"):
        run.unwrap()
    assert "FAILED, 3 attempts, ValueError: out of ink" in repr(run)


def test_a_failing_child_is_a_result_of_its_parent() -> None:
    run = run_task(has_failing_child, 1)
    assert run.output == "out of ink"
    [child] = run.children
    assert child.status is RunStatus.FAILED
    assert len(child.attempts) == 3


def test_abort_is_not_tried_again() -> None:
    assert len(run_task(aborts).attempts) == 1


# --- hooks and logs ----------------------------------------------------------------------------------------


def test_hooks_run_in_their_order() -> None:
    run = run_task(has_hooks, True)
    assert happened == [
        "before",
        "on_start_attempt",
        "on_start",
        "task",
        "on_success",
        "on_complete",
        "after",
    ]
    assert run.metadata["hooks"] == ["on_start_attempt", "on_start", "on_success", "on_complete"]
    happened.clear()
    run_task(has_hooks, False, max_attempts=2)
    again = ["before", "on_start_attempt", "task", "catch_error", "after"]
    assert happened == [
        *["before", "on_start_attempt", "on_start", "task", "catch_error", "after"],
        *again[:-1],
        *["on_failure", "on_complete", "after"],
    ]


def test_what_is_printed_and_logged_is_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_task(talks)
    assert [(line.level, line.message) for line in run.logs] == [
        ("info", "printed"),
        ("warning", "logged"),
        ("info", "by the context"),
    ]
    print("after it")
    assert capsys.readouterr().out == "printed\nafter it\n"


# --- time --------------------------------------------------------------------------------------------------


def test_a_delay_is_over_when_its_time_has_come() -> None:
    with Sandbox() as box:
        began = box.now
        handle = box.trigger(quick, 1, delay="1h")
        box.settle()
        assert box.run(handle).status is RunStatus.DELAYED
        box.advance("59m")
        assert box.run(handle).status is RunStatus.DELAYED
        box.advance(timedelta(minutes=1))
        assert box.run(handle).status is RunStatus.COMPLETED
        assert timedelta(hours=1) <= box.now - began < timedelta(hours=1, seconds=1)


def test_each_thing_happens_at_its_time() -> None:
    with Sandbox() as box:
        began = box.now
        handles = [box.trigger(quick, n, delay=f"{n}h") for n in (3, 1, 2)]
        box.advance("5h")
        found = [box.run(handle).run for handle in handles]
    hours = [round((run.started_at - began) / timedelta(hours=1)) for run in found if run.started_at]
    assert hours == [3, 1, 2]


def test_a_run_that_nobody_takes_expires() -> None:
    with Sandbox() as box:
        handle = box.trigger(quick, 1, ttl="10m")
        box.advance("9m", worker=False)
        assert box.run(handle).status is RunStatus.QUEUED
        box.advance("1m", worker=False)
        assert box.run(handle).status is RunStatus.EXPIRED
        in_time = box.trigger(quick, 1, ttl="10m")
        box.advance("9m", worker=False)
        box.run_until_idle()
        assert box.run(in_time).status is RunStatus.COMPLETED


def test_nothing_begins_by_itself() -> None:
    with Sandbox() as box:
        handles = [box.trigger(quick, n) for n in range(5)]
        # A worker that was at work would need a moment for it.
        time.sleep(0.2)
        assert {box.run(handle).status for handle in handles} == {RunStatus.QUEUED}
        box.settle()
        assert {box.run(handle).status for handle in handles} == {RunStatus.COMPLETED}
        again = box.trigger(quick, 6)
        time.sleep(0.2)
        assert box.run(again).status is RunStatus.QUEUED


def test_whoever_waits_outside_lets_time_go_by() -> None:
    with Sandbox() as box:
        handle = fails_twice.trigger(delay="2d")
        assert handle.result().output == "at last"
        assert [run.status for run in quick.trigger(1, delay="1d").subscribe()][-1] is RunStatus.COMPLETED
        assert runs.wait(tasks.trigger("quick", 3).id).output == 3
        assert box.trigger(quick, 9).retrieve().status is RunStatus.QUEUED


def test_waiting_for_what_will_never_happen_is_said() -> None:
    with Sandbox(tasks=[quick]) as box:
        handle = box.client.trigger("of-nobody")
        with pytest.raises(UsageError, match="waits for ever"):
            handle.result()


def test_another_thread_may_wait() -> None:
    with Sandbox() as box:
        found: list[Any] = []
        handle = box.trigger(fails_twice)
        thread = threading.Thread(target=lambda: found.append(handle.result(timeout=30).output))
        thread.start()
        thread.join()
    assert found == ["at last"]


def test_a_schedule_triggers_where_it_is_asked_for() -> None:
    @task(id="by-the-hour", every="1h")
    def by_the_hour() -> None:
        happened.append("hour")

    with Sandbox(tasks=[by_the_hour], schedules=True) as box:
        box.run_until_idle()
        assert happened == []
        box.advance("5h30m")
        assert len(happened) == 5
    with Sandbox(tasks=[by_the_hour]) as box:
        box.advance("5h30m")
        assert len(happened) == 5


@task(id="waits-long")
def waits_long(days: int, timeout: str = "1h") -> Any:
    wait.for_(days=days)
    wait.for_(seconds=2)
    until = datetime.fromisoformat("2030-01-10T00:00:00+00:00")
    wait.until(until)
    token = wait.create_token(timeout=timeout)
    metadata.set("token", token.id)
    return wait.for_token(token.id).ok


def test_waits_take_no_time() -> None:
    began = time.monotonic()
    with Sandbox(now=datetime(2030, 1, 1, tzinfo=UTC)) as box:
        handle = box.trigger(waits_long, 3)
        box.settle()
        assert box.run(handle).status is RunStatus.WAITING
        box.advance("8d")
        assert "token" not in box.run(handle).metadata
        box.advance("1d")
        assert "token" in box.run(handle).metadata
        box.run_until_idle()
        assert box.run(handle).output is False
        assert timedelta(hours=1) <= box.now - datetime(2030, 1, 10, tzinfo=UTC) < timedelta(hours=2)
    assert time.monotonic() - began < 10


def test_a_token_is_completed_by_the_test() -> None:
    with Sandbox(now=datetime(2030, 1, 1, tzinfo=UTC)) as box:
        handle = box.trigger(waits_long, days=3, timeout="30d")
        box.advance("9d")
        wait.complete_token(box.run(handle).metadata["token"], {"yes": True})
        box.settle()
        assert box.run(handle).output is True


# --- steering ----------------------------------------------------------------------------------------------


def test_a_run_is_cancelled_before_it_begins() -> None:
    with Sandbox() as box:
        handle = box.trigger(quick, 1, delay="1h")
        box.cancel(handle)
        box.run_until_idle()
        assert box.run(handle).status is RunStatus.CANCELED


def test_a_queue_executes_no_more_than_its_limit() -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    @task(id="limited", queue=Queue("limited", concurrency=2))
    def limited(n: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    with Sandbox(concurrency=8) as box:
        handles = [box.trigger(limited, n) for n in range(10)]
        box.run_until_idle()
        assert {box.run(handle).status for handle in handles} == {RunStatus.COMPLETED}
    assert most == 2


def test_one_run_after_the_other_in_the_same_order() -> None:
    @task(id="in-order")
    def in_order(n: int) -> None:
        happened.append(str(n))

    @task(id="orders")
    async def orders(n: int) -> None:
        await in_order.abatch_trigger_and_wait(range(n))

    seen = []
    for _ in range(3):
        happened.clear()
        run_task(orders, 20)
        seen.append(list(happened))
    assert seen == [[str(n) for n in range(20)]] * 3


def test_a_run_reads_what_is_sent_to_it() -> None:
    @task(id="listens")
    def listens() -> Any:
        return streams.input("orders").receive()

    with Sandbox() as box:
        handle = box.trigger(listens)
        box.settle()
        assert box.run(handle).status is RunStatus.WAITING
        streams.input("orders").send(handle.id, {"go": 1})
        box.settle()
        assert box.run(handle).output == {"go": 1}


# --- the sandbox itself ------------------------------------------------------------------------------------


def test_a_task_that_does_not_end_is_named() -> None:
    gate = threading.Event()

    @task(id="hangs")
    def hangs() -> None:
        gate.wait(20)

    with Sandbox(timeout=0.5) as box:
        box.trigger(hangs)
        try:
            with pytest.raises(TimeoutError, match="'hangs' has not ended"):
                box.run_until_idle()
        finally:
            gate.set()


def test_a_task_that_always_comes_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.testing.host.JUMPS_MAX", 20)

    @task(id="comes-again")
    def comes_again() -> None:
        tasks.trigger("comes-again", delay="1d")

    with Sandbox() as box:
        box.trigger(comes_again)
        with pytest.raises(UsageError, match="trigger itself with a delay"):
            box.run_until_idle()


def test_the_default_client_is_the_sandboxs_only_inside() -> None:
    with Sandbox() as box:
        assert default_client() is box.client
        with Sandbox() as inner:
            assert default_client() is inner.client
        assert default_client() is box.client
        handle = box.trigger(quick, 1)
        box.run_until_idle()
        run = box.run(handle)
    with pytest.raises(UsageError, match="not open"):
        box.run_until_idle()
    assert isinstance(run, SandboxRun)
    with suppress(ConfigurationError):
        assert default_client() is not box.client


def test_nothing_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("MILEPOST_API_URL", "http://127.0.0.1:1")
    assert run_task(quick, 4).output == 4


def test_nothing_is_left_behind() -> None:
    def of_sandboxes() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("milepost-sandbox")}

    before = of_sandboxes()
    with Sandbox() as box:
        box.trigger(double_all, 3)
        box.run_until_idle()
        assert of_sandboxes() - before
    assert of_sandboxes() == before


def test_blocking_in_the_loop_of_the_tasks_is_refused() -> None:
    async def test() -> None:
        async with Sandbox() as box:
            box.trigger(double_all, 1)
            with pytest.raises(UsageError, match="arun_until_idle"):
                box.run_until_idle()
            await box.arun_until_idle()
            [run] = box.runs()
            assert run.output == 0

    asyncio.run(test())


@pytest.mark.parametrize(
    ("wrong", "said"), [({"concurrency": 0}, "concurrency=0"), ({"now": datetime(2030, 1, 1)}, "time zone")]
)
def test_wrong_arguments_are_named(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sandbox(**wrong)


def test_the_fixture_is_a_sandbox(milepost_sandbox: Sandbox) -> None:
    handle = quick.trigger(3)
    milepost_sandbox.run_until_idle()
    assert milepost_sandbox.run(handle).output == 3
