"""Lifecycle hooks and middleware: order, what they receive, what their errors do, in every colour; `metadata` works in all."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from milepost import AbortTaskRun, Context, Retry, Task, UsageError, hooks, metadata, task
from milepost.model.run import Outcome
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.scope import RunScope
from sdk.here import HereLink, claimed, scope_of

ONCE = Retry(max_attempts=1)


def attempt_in(scope: RunScope, task: Task[Any, Any]) -> Outcome:
    if needs_loop(task):
        return asyncio.run(run_attempt(task, scope.run, scope))
    return run_attempt_in_thread(task, scope.run, scope)


def attempt(task: Task[Any, Any], payload: object = None, **fields: Any) -> tuple[Outcome, HereLink]:
    scope = scope_of(claimed(payload, **{"task": task.id, "attempt": 1, **fields}))
    link = scope.link
    assert isinstance(link, HereLink)
    outcome = attempt_in(scope, task)
    link.flush(scope)
    return outcome, link


def note(text: str) -> None:
    metadata.append("order", text)


COLOURS = [(function, hook) for function in ("def", "async def") for hook in ("def", "async def")]


def coloured(colour: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as an `async def`, if that is asked for; it keeps its parameters."""
    if colour == "def":
        return function

    async def in_async(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    in_async.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return in_async


def make(colour: str, function: Callable[[], Any], **options: Any) -> Task[Any, Any]:
    return task(id=f"work-{colour.split()[0]}", retry=ONCE, **options)(coloured(colour, function))


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_the_order_global_then_own_M12_M13_M14(colour: str, hook_colour: str) -> None:
    work = make(colour, lambda: note("task"))
    names = ["on_start_attempt", "on_start", "on_success", "on_failure", "on_complete"]
    for name in names:
        for place, register in (("own", work), ("global", hooks), ("own 2", work)):

            def hook(text: str = f"{place} {name}") -> None:
                note(text)

            getattr(register, name)(coloured(hook_colour, hook))
    _, link = attempt(work)
    expected = ["on_start_attempt", "on_start", None, "on_success", "on_complete"]
    order = [
        f"{place} {name}" if name else "task" for name in expected for place in ("global", "own", "own 2")
    ]
    assert link.server.document.value["order"] == list(dict.fromkeys(order))


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_what_hooks_receive(colour: str, hook_colour: str) -> None:
    seen: dict[str, Any] = {}
    work = make(colour, lambda payload: {"got": payload}, metadata=None)

    @hooks.on_success
    def success(output: Any, payload: Any, ctx: Context, run: Any, result: Any, error: Any) -> None:
        seen["success"] = (output, payload, ctx.run is run, result.ok, result.output, error)

    work.on_complete(coloured(hook_colour, lambda result: seen.update(complete=result.ok)))
    outcome, _ = attempt(work, [1])
    assert outcome.error is None
    assert seen == {"success": ({"got": [1]}, [1], True, True, {"got": [1]}, None), "complete": True}


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_failure_hooks_run_when_the_run_has_failed_for_good(colour: str, hook_colour: str) -> None:
    seen: list[Any] = []

    def fail() -> None:
        raise ValueError("bad")

    work = task(id="work", retry=Retry(max_attempts=2, jitter=False))(coloured(colour, fail))
    work.on_failure(
        coloured(hook_colour, lambda error, result: seen.append((repr(error), result.ok, result.error.name)))
    )
    work.on_complete(coloured(hook_colour, lambda result: seen.append(result.ok)))
    work.on_success(lambda: seen.append("success"))
    work.on_start(lambda: seen.append("start"))
    outcome, _ = attempt(work, attempt=1)
    assert outcome.retry_after_ms == 1000
    assert seen == ["start"]
    seen.clear()
    outcome, _ = attempt(work, attempt=2, charged=1, has_begun=True)
    assert outcome.retry_after_ms is None
    assert seen == [("ValueError('bad')", False, "ValueError"), False]


@pytest.mark.parametrize(("has_begun", "expected"), [(False, ["attempt", "start"]), (True, ["attempt"])])
def test_on_start_runs_once_whatever_the_number_of_the_attempt(has_begun: bool, expected: list[str]) -> None:
    seen: list[str] = []
    work = task(id="work")(lambda: None)
    work.on_start_attempt(lambda: seen.append("attempt"))
    work.on_start(lambda: seen.append("start"))
    attempt(work, attempt=5, has_begun=has_begun)
    assert seen == expected


def test_a_bad_payload_reaches_the_failure_hooks_as_it_arrived() -> None:
    seen: list[Any] = []

    @task
    def work(n: int) -> None: ...

    work.on_start_attempt(lambda: seen.append("start"))
    work.on_failure(lambda payload, error: seen.append((payload, type(error).__name__)))
    attempt(work, {"not": "a number"})
    assert seen == [({"not": "a number"}, "PayloadValidationError")]


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_start_hooks_that_raise_fail_the_attempt(colour: str) -> None:
    called: list[str] = []
    work = make("def", lambda: called.append("task"))

    def refuse() -> None:
        raise RuntimeError("not now")

    work.on_start(coloured(colour, refuse))
    work.on_failure(lambda error: called.append(str(error)))
    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert outcome.error.message == "not now"
    assert called == ["not now"]


@pytest.mark.parametrize("colour", ["def", "async def"])
@pytest.mark.parametrize("error", [RuntimeError("oops"), SystemExit(1), KeyboardInterrupt()])
def test_later_hooks_that_raise_change_nothing_and_are_logged(colour: str, error: BaseException) -> None:
    called: list[str] = []
    work = make("def", lambda: 5)

    def fail() -> None:
        raise error

    work.on_success(coloured(colour, fail))
    work.on_success(lambda: called.append("next"))
    work.on_complete(coloured(colour, fail))
    outcome, link = attempt(work)
    assert outcome == Outcome(output="5")
    assert called == ["next"]
    assert [level for level, _, _ in link.lines] == ["error", "error"]
    assert "on_success hook" in link.lines[0][1]
    assert "Traceback" in link.lines[0][1]


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_catch_error_may_replace_the_error(colour: str, hook_colour: str) -> None:
    def fail() -> None:
        raise ValueError("bad")

    work = task(id="work", retry=Retry(max_attempts=9))(coloured(colour, fail))
    seen: list[str] = []
    work.catch_error(coloured(hook_colour, lambda error: seen.append(repr(error))))
    work.catch_error(coloured(hook_colour, lambda error: AbortTaskRun(f"given up: {error}")))
    outcome, _ = attempt(work, attempt=1)
    assert seen == ["ValueError('bad')"]
    assert outcome.error is not None
    assert outcome.error.message == "given up: bad"
    assert outcome.retry_after_ms is None


def test_catch_error_that_raises_gives_its_own_error() -> None:
    def fail() -> None:
        raise ValueError("bad")

    work = make("def", fail)

    @work.catch_error
    def translate(error: BaseException) -> None:
        raise LookupError("translated") from error

    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert outcome.error.name == "LookupError"


# --- middleware ---------------------------------------------------------------------------------------------


def middlewares(colour: str, name: str) -> Callable[..., Any]:
    if colour == "def":

        def plain(next: Callable[[], None]) -> None:
            note(f"{name} in")
            try:
                next()
            finally:
                note(f"{name} out")

        return plain

    async def in_async(next: Callable[[], Any]) -> None:
        note(f"{name} in")
        try:
            await next()
        finally:
            note(f"{name} out")

    return in_async


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
@pytest.mark.parametrize("inner_colour", ["def", "async def"])
def test_middleware_wraps_everything(colour: str, hook_colour: str, inner_colour: str) -> None:
    work = make(colour, lambda: note("task"))
    work.middleware(middlewares(inner_colour, "own"))
    hooks.middleware(middlewares(hook_colour, "global"))
    work.on_start(lambda: note("start"))
    work.on_complete(coloured(hook_colour, lambda: note("complete")))
    outcome, link = attempt(work)
    assert outcome == Outcome()
    assert link.server.document.value["order"] == [
        "global in",
        "own in",
        "start",
        "task",
        "complete",
        "own out",
        "global out",
    ]


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_middleware_sees_the_error_and_cannot_hide_it(colour: str, hook_colour: str) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise ValueError("bad")

    work = make(colour, fail)
    if hook_colour == "def":

        @work.middleware
        def swallow(next: Callable[[], None]) -> None:
            try:
                next()
            except ValueError as error:
                seen.append(str(error))
    else:

        @work.middleware
        async def swallow_async(next: Callable[[], Any]) -> None:
            try:
                await next()
            except ValueError as error:
                seen.append(str(error))

    work.on_failure(lambda: seen.append("failure"))
    outcome, _ = attempt(work)
    assert seen == ["failure", "bad"]
    assert outcome.error is not None
    assert outcome.error.message == "bad"


def test_middleware_that_raises_fails_the_attempt() -> None:
    seen: list[Any] = []
    work = make("def", lambda: seen.append("task"))

    @work.middleware
    def before(next: Callable[[], None]) -> None:
        raise RuntimeError("before")

    work.on_failure(lambda error: seen.append(str(error)))
    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert outcome.error.message == "before"
    assert seen == ["before"]

    late = task(id="late", retry=ONCE)(lambda: 5)

    @late.middleware
    def after(next: Callable[[], None]) -> None:
        next()
        raise RuntimeError("after")

    outcome, _ = attempt(late)
    assert outcome.error is not None
    assert outcome.error.message == "after"


@pytest.mark.parametrize("times", [0, 2])
def test_middleware_calls_next_exactly_once(times: int) -> None:
    called: list[int] = []
    work = make("def", lambda: called.append(1))

    @work.middleware
    def wrong(next: Callable[[], None]) -> None:
        for _ in range(times):
            next()

    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert "next()" in outcome.error.message
    assert "wrong" in outcome.error.message
    assert len(called) <= 1


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize(("colour", "hook_colour"), COLOURS)
def test_context_variables_of_middleware_reach_the_task(colour: str, hook_colour: str) -> None:
    seen: list[str] = []
    work = make(colour, lambda: seen.append(tenant.get()))
    if hook_colour == "def":

        @work.middleware
        def set_tenant(next: Callable[[], None]) -> None:
            tenant.set("t1")
            next()
    else:

        @work.middleware
        async def set_tenant_async(next: Callable[[], Any]) -> None:
            tenant.set("t1")
            await next()

    assert attempt(work)[0] == Outcome()
    assert seen == ["t1"]


# --- registering --------------------------------------------------------------------------------------------


def test_hooks_may_be_given_to_the_decorator() -> None:
    seen: list[str] = []

    @task(
        on_success=lambda: seen.append("one"),
        on_complete=[lambda: seen.append("two"), lambda: seen.append("three")],
    )
    def work() -> None: ...

    attempt(work)
    assert seen == ["one", "two", "three"]
    with pytest.raises(TypeError, match="on_sucess"):
        task(on_sucess=print)  # type: ignore[call-overload]


def test_a_hook_that_asks_for_something_unknown_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="'outptu'"):
        hooks.on_success(lambda outptu: None)
    with pytest.raises(UsageError, match="next"):
        hooks.middleware(lambda ctx: None)

    @hooks.on_success
    def fine(output: object, *args: object, spare: int = 1, **more: object) -> None: ...

    assert fine(1) is None
