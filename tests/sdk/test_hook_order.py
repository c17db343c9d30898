"""The order of hooks under every outcome, as docs/hooks.md has it; context managers as middleware; hooks that never return."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost import (
    AbortTaskRun,
    Caught,
    Context,
    MaxDurationError,
    Retry,
    Task,
    TaskFailedError,
    UsageError,
    hooks,
    metadata,
    task,
)
from milepost.model import lifecycle
from milepost.model.run import AttemptEnd, Closing, Outcome, RunError, RunStatus
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.hooks import HOOK_NAMES
from milepost.sdk.scope import RunScope, Stop
from milepost.sdk.settings import TaskSettings
from sdk.here import HereLink, claimed, scope_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "hooks.md"
DOCUMENTED = {
    outcome.strip(): re.findall(r"`(\w+)`|\b(task)\b", order)
    for outcome, order in re.findall(
        r"^\| ([a-z][^|]+) \| (`middleware`[^|]*) \|$", DOCUMENT.read_text("utf-8"), re.M
    )
}
ENDINGS = {
    "returns": None,
    "raises, and is tried again": ValueError("again"),
    "raises, and is the last one": AbortTaskRun("enough"),
    "is cancelled": asyncio.CancelledError(),
}


def attempt(work: Task[Any, Any], **fields: Any) -> tuple[Outcome, HereLink]:
    scope = scope_of(claimed(**{"task": work.id, "attempt": 1, **fields}))
    return carried_out(work, scope), link_of(scope)


def link_of(scope: RunScope) -> HereLink:
    assert isinstance(scope.link, HereLink)
    return scope.link


def carried_out(work: Task[Any, Any], scope: RunScope) -> Outcome:
    if needs_loop(work):
        return asyncio.run(run_attempt(work, scope.run, scope))
    return run_attempt_in_thread(work, scope.run, scope)


def note_all(order: list[str], colour: str, failing: str = "") -> None:
    """Hooks of every kind, of every task, that note their names."""
    for name in HOOK_NAMES:
        if name == "middleware":
            continue

        def plain(name: str = name) -> None:
            order.append(name)
            metadata.append("order", name)
            if name == failing:
                raise RuntimeError(f"in {name}")

        async def in_async(plain: Callable[[], None] = plain) -> None:
            await asyncio.sleep(0)
            plain()

        getattr(hooks, name)(plain if colour == "def" else in_async)

    @hooks.middleware
    def around() -> Iterator[None]:
        order.append("middleware")
        yield


def test_the_page_names_every_outcome_and_hook() -> None:
    assert DOCUMENTED.keys() == ENDINGS.keys()
    named = {name for order in DOCUMENTED.values() for pair in order for name in pair if name} - {"task"}
    assert named == set(HOOK_NAMES) - {"on_wait", "on_resume"}


@pytest.mark.parametrize("outcome", ENDINGS)
@pytest.mark.parametrize(("colour", "hook_colour"), list(itertools.product(["def", "async def"], repeat=2)))
def test_the_order_is_the_documented_one(outcome: str, colour: str, hook_colour: str) -> None:
    order: list[str] = []
    error = ENDINGS[outcome]

    def plain() -> None:
        order.append("task")
        if outcome == "is cancelled":
            scope.ask_to_stop(Stop(AttemptEnd.CANCELLED, lifecycle.CANCELLED))
        if error is not None:
            raise error

    async def in_async() -> None:
        plain()

    note_all(order, hook_colour)
    work: Task[Any, Any] = task(id="work", retry=Retry(max_attempts=2))(
        plain if colour == "def" else in_async
    )
    scope = scope_of(claimed(task="work", attempt=1))
    ended = carried_out(work, scope)
    assert order == [first or second for first, second in DOCUMENTED[outcome]]
    assert (ended.retry_after_ms is not None) is (outcome == "raises, and is tried again")
    # What the last hook wrote is there.
    link_of(scope).flush(scope)
    written = link_of(scope).server.document.value["order"]
    assert written == [name for name in order if name not in ("middleware", "task")]


FAILING_START = {"on_start_attempt", "on_start"}


@pytest.mark.parametrize("outcome", ENDINGS)
@pytest.mark.parametrize(
    "failing", [name for name in HOOK_NAMES if name not in ("middleware", "on_wait", "on_resume")]
)
@pytest.mark.parametrize("colour", ["def", "async def"])
def test_what_an_error_in_each_hook_does_under_each_outcome(outcome: str, failing: str, colour: str) -> None:
    order: list[str] = []
    error = ENDINGS[outcome]

    def work() -> int:
        if outcome == "is cancelled":
            scope.ask_to_stop(Stop(AttemptEnd.CANCELLED, lifecycle.CANCELLED))
        if error is not None:
            raise error
        return 1

    note_all(order, colour, failing)
    made = task(id="work", retry=Retry(max_attempts=2))(work)
    scope = scope_of(claimed(task="work", attempt=1))
    ended = carried_out(made, scope)
    lines = [message for level, message, _ in link_of(scope).lines if level == "error"]
    if failing in FAILING_START:
        assert ended.error is not None
        assert ended.error.message == f"in {failing}"
        assert ended.retry_after_ms is not None
    elif failing == "catch_error" and failing in order:
        assert ended.error is not None
        assert ended.error.message == "in catch_error"
        assert ended.retry_after_ms is not None
    else:
        expected = (
            "RunCancelledError"
            if outcome == "is cancelled"
            else None
            if error is None
            else type(error).__name__
        )
        assert (ended.error and ended.error.name) == expected
        assert (failing in order) is (len(lines) == 1)
        assert all(f"{failing} hook" in line for line in lines)


def make_plain(seen: list[str]) -> Callable[..., Any]:
    def around(ctx: Context, payload: Any) -> Iterator[None]:
        seen.append(f"in {ctx.task.id} {payload}")
        try:
            yield
        except ValueError as error:
            seen.append(f"saw {error}")
            raise
        finally:
            seen.append("out")

    return around


def make_async(seen: list[str]) -> Callable[..., Any]:
    async def around(ctx: Context, payload: Any) -> AsyncIterator[None]:
        seen.append(f"in {ctx.task.id} {payload}")
        try:
            yield
        except ValueError as error:
            seen.append(f"saw {error}")
            raise
        finally:
            await asyncio.sleep(0)
            seen.append("out")

    return around


def make_class(seen: list[str]) -> Callable[..., Any]:
    class Around:
        def __init__(self, ctx: Context, payload: Any) -> None:
            seen.append(f"in {ctx.task.id} {payload}")

        def __enter__(self) -> None: ...

        def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
            if error is not None:
                seen.append(f"saw {error}")
            seen.append("out")

    return Around


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        make_plain,
        lambda seen: contextlib.contextmanager(make_plain(seen)),
        make_async,
        lambda seen: contextlib.asynccontextmanager(make_async(seen)),
        make_class,
    ],
)
def test_context_managers_around_the_attempt(
    make: Callable[[list[str]], Callable[..., Any]], fails: bool, is_async: bool
) -> None:
    seen: list[str] = []

    def plain(n: int) -> None:
        seen.append("task")
        if fails:
            raise ValueError("bad")

    async def in_async(n: int) -> None:
        plain(n)

    work: Task[Any, Any] = task(id="work", middleware=make(seen))(in_async if is_async else plain)
    outcome, _ = attempt(work, payload=5)
    assert seen == ["in work 5", "task", *(["saw bad"] if fails else []), "out"]
    assert (outcome.error is not None) is fails


def test_context_managers_nest_and_one_that_fails_fails_the_attempt() -> None:
    seen: list[str] = []

    @hooks.middleware
    def outer() -> Iterator[None]:
        seen.append("outer in")
        try:
            yield
        finally:
            seen.append("outer out")

    work: Task[Any, Any] = task(id="work", retry=Retry(max_attempts=1))(lambda: seen.append("task"))

    @work.middleware
    def inner() -> Iterator[None]:
        raise RuntimeError("no room")
        yield

    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert outcome.error.message == "no room"
    assert seen == ["outer in", "outer out"]
    with pytest.raises(UsageError, match="is no context manager: write `yield`"):
        work.middleware(lambda: None)


@pytest.mark.parametrize("name", ["on_start", "on_success"])
@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_hook_that_never_returns_is_given_up(
    name: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost.sdk.attempt.task_settings", lambda: TaskSettings(hook_seconds_max=0.05))
    never = threading.Event()

    @task(id="work", retry=Retry(max_attempts=1))
    async def work() -> int:
        return 1

    async def in_async() -> None:
        await asyncio.Event().wait()

    getattr(work, name)(in_async if colour == "async def" else never.wait)
    scope = scope_of(claimed(task="work", attempt=1))

    async def main() -> Outcome:
        try:
            return await run_attempt(work, scope.run, scope)
        finally:
            never.set()

    outcome = asyncio.run(main())
    words = "took longer than 0.05 s (MILEPOST_HOOK_SECONDS_MAX) and was given up"
    if name == "on_start":
        assert outcome.error is not None
        assert words in outcome.error.message
    else:
        assert outcome == Outcome(output="1")
        assert any(words in message for _, message, _ in link_of(scope).lines)


@pytest.mark.parametrize("colour", ["def", "async def"])
@pytest.mark.parametrize("status", [RunStatus.CRASHED, RunStatus.TIMED_OUT])
@pytest.mark.parametrize("payload", [5, "no number"])
def test_an_attempt_that_closes_a_run_runs_its_last_hooks_alone(
    colour: str, status: RunStatus, payload: Any
) -> None:
    order: list[str] = []
    note_all(order, colour)
    seen: list[Any] = []

    @task(id="work")
    def work(n: int) -> None:
        order.append("task")

    work.on_failure(lambda payload, error, result: seen.append((payload, error, result.ok, result.error)))
    cause = RunError(name="ProcessDiedError", message="was killed by SIGKILL")
    outcome, link = attempt(work, payload=payload, closing=Closing(status, cause))
    assert outcome == Outcome()
    assert order == ["middleware", "on_failure", "on_complete"]
    [(given, error, is_ok, told)] = seen
    assert (given, is_ok, told) == (payload, False, cause)
    if status is RunStatus.CRASHED:
        assert isinstance(error, TaskFailedError)
        assert error.error_name == "ProcessDiedError"
    else:
        assert isinstance(error, MaxDurationError)
    assert "was killed by SIGKILL" in str(error)
    assert link.lines == []


@pytest.mark.parametrize("is_in_middleware", [False, True])
def test_what_fails_while_a_run_is_closed_is_told(is_in_middleware: bool) -> None:
    work: Task[Any, Any] = task(id="work")(lambda n: None)

    def fails() -> None:
        raise ValueError("out of ink")

    def around(next: Callable[[], None]) -> None:
        fails()

    if is_in_middleware:
        work.middleware(around)
    work.on_failure(fails)
    closing = Closing(RunStatus.CRASHED, RunError(message="gone"))
    outcome, link = attempt(work, payload=1, closing=closing)
    if is_in_middleware:
        assert outcome.error is not None
        assert outcome.error.message == "out of ink"
    else:
        assert outcome == Outcome()
        assert "on_failure hook" in link.lines[0][1]


def test_a_task_says_whether_it_has_hooks_for_its_end() -> None:
    work: Task[Any, Any] = task(id="work")(lambda n: None)
    work.on_success(lambda: None)
    assert not work.describe().has_end_hooks
    work.on_complete(lambda: None)
    assert work.describe().has_end_hooks
    other: Task[Any, Any] = task(id="other")(lambda n: None)
    hooks.on_failure(lambda: None)
    assert other.describe().has_end_hooks


def test_a_decision_of_catch_error_is_seen_by_the_hooks_behind() -> None:
    order: list[str] = []
    note_all(order, "def")
    work = task(id="work", retry=Retry(max_attempts=9))(lambda: 1 / 0)
    work.catch_error(lambda: Caught(skip_retrying=True))
    attempt(work)
    assert order[-3:] == ["catch_error", "on_failure", "on_complete"]
