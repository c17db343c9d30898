"""An attempt that is to end: how its code hears so in either colour, what it may still do, and what the attempt comes to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from milepost import Context, MaxDurationError, RunCancelledError, Task, metadata, task
from milepost.model.lifecycle import CANCELLED, took_too_long
from milepost.model.run import AttemptEnd, Outcome
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.hooks import hooks
from milepost.sdk.scope import RunScope, Stop
from sdk.here import claimed, scope_of

CANCEL = Stop(AttemptEnd.CANCELLED, CANCELLED)
TIMEOUT = Stop(AttemptEnd.TIMED_OUT, took_too_long(2.5))


def stopped(task: Task[Any, Any], stop: Stop = CANCEL, *, on_loop: bool | None = None) -> Outcome:
    """Run an attempt that is asked to end as soon as its code sets `begun`."""
    return stopped_in(scope_of(claimed()), task, stop, on_loop=on_loop)


BEGUN = threading.Event()


@pytest.fixture(autouse=True)
def nothing_has_begun() -> None:
    BEGUN.clear()


def stopped_in(
    scope: RunScope, task: Task[Any, Any], stop: Stop = CANCEL, *, on_loop: bool | None = None
) -> Outcome:
    if not (needs_loop(task) if on_loop is None else on_loop):

        def ask() -> None:
            assert BEGUN.wait(60)
            scope.ask_to_stop(stop)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            return run_attempt_in_thread(task, scope.run, scope)
        finally:
            asking.join()

    async def both() -> Outcome:
        running = asyncio.create_task(run_attempt(task, scope.run, scope))
        assert await asyncio.to_thread(BEGUN.wait, 10)
        scope.ask_to_stop(stop)
        assert scope.attempt is not None
        scope.attempt.stop()
        return await running

    return asyncio.run(both())


def name_of(outcome: Outcome) -> str | None:
    assert outcome.error is not None, outcome
    return outcome.error.name


@pytest.mark.parametrize(
    ("stop", "end", "error"),
    [
        (CANCEL, AttemptEnd.CANCELLED, "RunCancelledError"),
        (TIMEOUT, AttemptEnd.TIMED_OUT, "MaxDurationError"),
    ],
)
def test_an_async_task_is_cancelled_once_and_its_cleanup_may_write_metadata(
    stop: Stop, end: AttemptEnd, error: str
) -> None:
    scope = scope_of(claimed())
    cancelled: list[str] = []

    @task
    async def work() -> None:
        try:
            BEGUN.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            cancelled.append(str(error))
            raise
        finally:
            await asyncio.sleep(0.01)
            metadata.set("state", "stopped")

    outcome = stopped_in(scope, work, stop)
    assert outcome.end is end
    assert name_of(outcome) == error
    assert outcome.retry_after_ms is None
    assert outcome.error is not None
    assert "asyncio.sleep(60)" in (outcome.error.stack_trace or "")
    assert cancelled == [stop.error.message]
    assert scope.buffer.current() == {"state": "stopped"}


def test_what_returns_although_it_was_asked_has_completed() -> None:
    @task
    async def stubborn() -> str:
        BEGUN.set()
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.2)
        return "done"

    assert stopped(stubborn) == Outcome(output='"done"')


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_thread_hears_by_its_next_call_once_and_not_as_an_exception(on_loop: bool) -> None:
    scope = scope_of(claimed())
    rounds: list[int] = []

    @task
    def work() -> None:
        BEGUN.set()
        try:
            while True:
                try:
                    metadata.increment("rounds", 1)
                except Exception:
                    rounds.append(-1)
        finally:
            metadata.set("state", "stopped")

    outcome = stopped_in(scope, work, on_loop=on_loop)
    assert (outcome.end, name_of(outcome)) == (AttemptEnd.CANCELLED, "RunCancelledError")
    assert rounds == []
    assert scope.buffer.current()["state"] == "stopped"


def test_a_thread_that_has_looked_is_told_no_second_time() -> None:
    @task
    def work(ctx: Context) -> int:
        BEGUN.set()
        assert ctx.wait_cancelled(20)
        assert ctx.cancelled
        metadata.set("state", "half done")
        return 7

    assert stopped(work) == Outcome(output="7")


def test_waiting_to_be_cancelled_is_a_sleep_otherwise() -> None:
    @task
    def work(ctx: Context) -> bool:
        return ctx.wait_cancelled(0.01) or ctx.cancelled

    scope = scope_of(claimed())
    assert run_attempt_in_thread(work, scope.run, scope) == Outcome(output="false")


def test_each_thread_of_a_run_is_told() -> None:
    ends: list[type[BaseException]] = []

    @task
    def work(ctx: Context) -> None:
        def beside() -> None:
            try:
                while True:
                    metadata.increment("beside", 1)
            except BaseException as error:
                ends.append(type(error))

        thread = threading.Thread(target=ctx.run.bind(beside))
        thread.start()
        BEGUN.set()
        try:
            while True:
                metadata.increment("here", 1)
        finally:
            thread.join()

    outcome = stopped(work, TIMEOUT)
    assert outcome.end is AttemptEnd.TIMED_OUT
    assert ends == [MaxDurationError]


def test_another_error_on_the_way_out_is_logged_and_changes_nothing() -> None:
    scope = scope_of(claimed())

    @task
    def work() -> None:
        BEGUN.set()
        try:
            while True:
                metadata.increment("n", 1)
        except RunCancelledError:
            raise ValueError("the file is in use") from None

    outcome = stopped_in(scope, work)
    assert (outcome.end, name_of(outcome)) == (AttemptEnd.CANCELLED, "RunCancelledError")
    assert outcome.retry_after_ms is None
    [line] = [line for level, line, _ in scope.link.lines if level == "warning"]  # type: ignore[attr-defined]
    assert "the file is in use" in line


def test_hooks_say_so_and_others_do_not_run() -> None:
    said: list[str] = []

    def say(name: str) -> Callable[..., None]:
        def hook(error: BaseException | None) -> None:
            said.append(f"{name} {type(error).__name__}")
            metadata.set(name, True)

        return hook

    for name in ("on_success", "on_failure", "on_cancel", "on_complete", "catch_error"):
        getattr(hooks, name)(say(name))

    @task
    def plain() -> None:
        BEGUN.set()
        while True:
            metadata.get("x")

    @task
    async def on_the_loop() -> None:
        BEGUN.set()
        await asyncio.sleep(60)

    for work in (plain, on_the_loop):
        scope = scope_of(claimed())
        assert stopped_in(scope, work).end is AttemptEnd.CANCELLED
        assert said == ["on_cancel RunCancelledError", "on_complete RunCancelledError"]
        assert scope.buffer.current() == {"on_cancel": True, "on_complete": True}
        said.clear()
        BEGUN.clear()
        assert stopped(work, TIMEOUT).end is AttemptEnd.TIMED_OUT
        assert said == ["on_failure MaxDurationError", "on_complete MaxDurationError"]
        said.clear()
        BEGUN.clear()


def test_hooks_of_a_stop_run_inside_of_the_middleware_which_sees_the_cancellation() -> None:
    said: list[str] = []

    @hooks.middleware
    async def around(next: Callable[[], Any]) -> None:
        said.append("open")
        try:
            async with asyncio.timeout(30):
                await next()
        except BaseException as error:
            said.append(type(error).__name__)
            raise
        finally:
            said.append("close")

    @task
    async def work() -> None:
        BEGUN.set()
        await asyncio.sleep(60)

    @work.on_cancel
    async def tidy() -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.01))
        said.append("tidied")

    outcome = stopped(work)
    assert outcome.end is AttemptEnd.CANCELLED
    assert said == ["open", "tidied", "CancelledError", "close"]


def test_hooks_after_the_task_are_not_cancelled_and_its_output_counts() -> None:
    @task
    async def work() -> int:
        return 5

    @work.on_success
    async def tell() -> None:
        BEGUN.set()
        await asyncio.sleep(0.1)
        metadata.set("told", True)

    scope = scope_of(claimed())
    assert stopped_in(scope, work) == Outcome(output="5")
    assert scope.buffer.current() == {"told": True}


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_to_end_before_its_code_has_begun_never_begins(is_async: bool) -> None:
    called: list[str] = []

    @task
    def plain() -> None:
        called.append("plain")

    @task
    async def on_the_loop() -> None:
        called.append("loop")

    @hooks.on_cancel
    def tell() -> None:
        called.append("hook")

    scope = scope_of(claimed())
    scope.ask_to_stop(CANCEL)
    work = on_the_loop if is_async else plain
    outcome = (
        asyncio.run(run_attempt(work, scope.run, scope))
        if is_async
        else run_attempt_in_thread(work, scope.run, scope)
    )
    assert outcome.end is AttemptEnd.CANCELLED
    assert called == []


def test_a_start_hook_in_a_thread_is_followed_by_no_task() -> None:
    called: list[str] = []

    @task
    async def work() -> None:
        called.append("work")

    @work.on_start
    def prepare() -> None:
        BEGUN.set()
        time.sleep(0.2)
        called.append("prepared")

    assert stopped(work).end is AttemptEnd.CANCELLED
    assert called == ["prepared"]


@pytest.mark.parametrize(
    ("given", "milliseconds"), [("10m", 600_000), (1.5, 1500), ("1h30m", 5_400_000), (None, None)]
)
def test_a_task_says_how_long_it_may_execute(given: Any, milliseconds: int | None) -> None:
    @task(max_duration=given)
    def work() -> None: ...

    assert work.max_duration_ms == milliseconds


@pytest.mark.parametrize("wrong", ["soon", -1, 0, True, "0s"])
def test_a_wrong_duration_names_the_task(wrong: Any) -> None:
    from milepost import UsageError

    with pytest.raises(UsageError, match="task 'work': max_duration"):

        @task(max_duration=wrong)
        def work() -> None: ...
