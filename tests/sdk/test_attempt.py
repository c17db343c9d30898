"""An attempt from its payload to its outcome: what is passed in, what comes out, and that nothing ends the worker."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, Field

from milepost import (
    AbortTaskRun,
    Context,
    MetadataError,
    MetadataFlushError,
    MilepostError,
    Retry,
    Task,
    TaskFailedError,
    UnavailableError,
    UsageError,
    metadata,
    task,
)
from milepost.model.run import Outcome
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.scope import RunScope, current_scope
from sdk.here import HereLink, claimed, scope_of

if TYPE_CHECKING:
    from decimal import Decimal


def attempt(
    task: Task[Any, Any], payload: object = None, *, on_loop: bool | None = None, **fields: Any
) -> Outcome:
    """Run one attempt the way that the task wants, or on the loop although a thread would do."""
    return attempt_in(scope_of(claimed(payload, task=task.id, **fields)), task, on_loop=on_loop)


def attempt_in(scope: RunScope, task: Task[Any, Any], *, on_loop: bool | None = None) -> Outcome:
    if needs_loop(task) if on_loop is None else on_loop:
        return asyncio.run(run_attempt(task, scope.run, scope))
    return run_attempt_in_thread(task, scope.run, scope)


def error_of(outcome: Outcome) -> tuple[str | None, str]:
    assert outcome.error is not None, outcome
    return outcome.error.name, outcome.error.message


class Row(BaseModel):
    id: int
    email: str = Field(alias="e-mail")


@dataclass
class Point:
    x: int
    at: datetime


class Shape(msgspec.Struct):
    corners: list[int]


class Options(TypedDict):
    name: str


# --- payload, context, output -------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loop", [True, False])
def test_def_tasks_get_payload_and_context(on_loop: bool) -> None:
    @task
    def work(row: Row, ctx: Context) -> dict[str, Any]:
        metadata.set("seen", row.id)
        return {"id": row.id, "email": row.email, "run": ctx.run.id, "attempt": ctx.attempt.number}

    outcome = attempt(work, {"id": 1, "e-mail": "a@b"}, on_loop=on_loop)
    assert msgspec.json.decode(outcome.output or "") == {
        "id": 1,
        "email": "a@b",
        "run": "run_self",
        "attempt": 3,
    }
    assert outcome.error is None


def test_async_tasks_run_on_the_loop() -> None:
    @task
    async def work(n: int) -> list[int]:
        await asyncio.sleep(0)
        metadata.increment("n", n)
        return [n, metadata.get("n")]

    assert attempt(work, 5) == Outcome(output="[5,5]")


@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        (Row, {"id": "7", "e-mail": "x"}, Row.model_validate({"id": 7, "e-mail": "x"})),
        (Point, {"x": 1, "at": "2026-01-02T03:04:05Z"}, Point(1, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))),
        (Shape, {"corners": [1, 2]}, Shape([1, 2])),
        (list[Shape], [{"corners": []}], [Shape([])]),
        (Options, {"name": "x"}, {"name": "x"}),
        (int | None, None, None),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Any, {"a": [1]}, {"a": [1]}),
    ],
)
def test_payloads_of_every_kind(annotation: Any, payload: object, expected: object) -> None:
    received: list[object] = []

    def work(value: Any) -> None:
        received.append(value)

    work.__annotations__["value"] = annotation
    assert attempt(task(work), payload) == Outcome()
    assert received == [expected]


def test_payload_encodings() -> None:
    received: list[object] = []

    @task
    def work(value: Any = "default") -> None:
        received.append(value)

    attempt(work, text="hello, \u00e9", payload_type="text/plain")
    attempt(work, text='{"json":{"at":"2024-01-02T03:04:05.000Z"},"meta":{"values":{"at":["Date"]}}}',
            payload_type="application/super+json")  # fmt: skip
    attempt(work, text="[1]", payload_type="application/json")
    attempt(work)
    assert received == ["hello, \u00e9", {"at": "2024-01-02T03:04:05.000Z"}, [1], "default"]


def test_parameters_in_any_order_and_kind() -> None:
    received: list[Any] = []

    @task(id="context-first")
    def context_first(ctx: Context, n: int) -> None:
        received.append((ctx.run.id, n))

    @task(id="keywords")
    def keywords(*, n: int = 4, ctx: Context | None = None) -> None:
        received.append((ctx and ctx.run.id, n))

    @task(id="only-context")
    async def only_context(ctx: Context) -> None:
        received.append((ctx.run.id, None))

    @task(id="nothing")
    def nothing() -> None:
        received.append(None)

    for each in (context_first, keywords, only_context, nothing):
        assert attempt(each, 4) == Outcome()
    assert attempt(keywords) == Outcome()
    assert received == [("run_self", 4), ("run_self", 4), ("run_self", None), None, ("run_self", 4)]


def test_a_bad_payload_fails_without_retry_and_names_the_field() -> None:
    called: list[object] = []

    @task(retry=Retry(max_attempts=9))
    def work(row: Row) -> None:
        called.append(row)

    outcome = attempt(work, {"id": "x", "e-mail": "y"}, attempt=1)
    assert error_of(outcome)[0] == "PayloadValidationError"
    assert "'work'" in error_of(outcome)[1]
    assert "id: " in error_of(outcome)[1]
    assert outcome.retry_after_ms is None
    assert "e-mail" in error_of(attempt(work, {"id": 1}))[1]
    assert "needs a payload (row)" in error_of(attempt(work))[1]
    broken = attempt(work, text="{", payload_type="application/super+json")
    assert "not application/super+json" in error_of(broken)[1]
    assert called == []


def test_msgspec_payloads_name_the_field_too() -> None:
    @task
    def work(shapes: list[Shape]) -> None: ...

    assert "[0].corners[1]: Expected `int`" in error_of(attempt(work, [{"corners": [1, "x"]}]))[1]
    assert "[0].corners: required" in error_of(attempt(work, [{}]))[1]


def test_outputs_become_json() -> None:
    @task
    def work() -> Any:
        return {
            "row": Row.model_validate({"id": 1, "e-mail": "x"}),
            "at": datetime(2026, 1, 1, tzinfo=UTC),
            "set": {2, 1},
        }

    output = attempt(work).output
    assert output == '{"row":{"id":1,"e-mail":"x"},"at":"2026-01-01T00:00:00Z","set":[1,2]}'


def generator() -> Any:
    yield 1


async def coroutine() -> None: ...


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (generator, "generator"),
        (async_generator, "generator"),
        (coroutine, "async def"),
        (object, r"output: an instance of object"),
        (lambda: {"a": [float("nan")]}, r"output\.a\[0\]: NaN"),
        (lambda: "x" * 11_000_000, "11,000,002 bytes"),
        (lambda: "\ud800", "surrogate"),
    ],
)
@pytest.mark.parametrize("on_loop", [True, False])
def test_outputs_that_cannot_be_kept_fail_the_run_clearly(
    make: Callable[[], Any], message: str, on_loop: bool
) -> None:
    @task(retry=Retry(max_attempts=1))
    def work() -> Any:
        return make()

    outcome = attempt(work, on_loop=on_loop)
    assert outcome.output is None
    name, text = error_of(outcome)
    assert name == "OutputError"
    assert re.search(message, text)


# --- errors -------------------------------------------------------------------------------------------------


def test_errors_become_data_with_the_users_frames() -> None:
    @task(retry=Retry(max_attempts=1))
    def work() -> None:
        raise ValueError("bad thing")

    outcome = attempt(work, attempt=1)
    assert error_of(outcome) == ("ValueError", "bad thing")
    assert outcome.error is not None
    assert outcome.error.stack_trace is not None
    assert "test_attempt.py" in outcome.error.stack_trace
    assert "milepost/sdk" not in outcome.error.stack_trace


def test_retries_follow_the_rule_and_the_runs_own_limit() -> None:
    @task(retry=Retry(max_attempts=3, min_delay=1, factor=2, jitter=False))
    def work() -> None:
        raise ValueError

    assert attempt(work, charged=0).retry_after_ms == 1000
    assert attempt(work, charged=1).retry_after_ms == 2000
    assert attempt(work, charged=2).retry_after_ms is None
    assert attempt(work, charged=0, max_attempts=1).retry_after_ms is None
    assert attempt(work, charged=2, max_attempts=5).retry_after_ms == 4000
    assert error_of(attempt(work)) == ("ValueError", "ValueError")


@pytest.mark.parametrize("on_loop", [False, True])
def test_attempts_that_cost_nothing_do_not_count_for_the_retry_rule(on_loop: bool) -> None:
    @task(retry=Retry(max_attempts=2, min_delay=1, factor=2, jitter=False))
    def work() -> None:
        raise ValueError

    assert attempt(work, attempt=9, charged=0, on_loop=on_loop).retry_after_ms == 1000
    assert attempt(work, attempt=9, charged=1, on_loop=on_loop).retry_after_ms is None


def test_abort_means_no_retry() -> None:
    @task(retry=Retry(max_attempts=9))
    async def work() -> None:
        raise AbortTaskRun("enough")

    outcome = attempt(work, attempt=1)
    assert error_of(outcome) == ("AbortTaskRun", "enough")
    assert outcome.retry_after_ms is None


def wrong_usage_in_a_task() -> None:
    raise UsageError("the wrong form")


class Unstorable:
    pass


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (wrong_usage_in_a_task, "UsageError"),
        (lambda: Unstorable(), "OutputError"),
        (lambda: float("nan"), "OutputError"),
        (lambda: "x" * 11_000_000, "OutputError"),
        (lambda: metadata.set("x", print), "MetadataValueError"),
        (lambda: metadata.set("$.", 1), "MetadataPathError"),
        (lambda: metadata.set("x", "y" * 300_000), "MetadataTooLargeError"),
        (lambda: metadata.set("x", "text").increment("x"), "MetadataTypeError"),
        (lambda: task(retry=5)(print), "UsageError"),
    ],
)
def test_what_would_fail_again_is_not_retried(work: Callable[[], Any], name: str) -> None:
    made = task(id="wrong", retry=Retry(max_attempts=9))(work)
    outcome = attempt(made, attempt=1)
    assert error_of(outcome)[0] == name
    assert outcome.retry_after_ms is None


def test_a_group_of_errors_is_retried_unless_one_of_them_would_come_again() -> None:
    for inside, is_retried in (
        (ValueError(), True),
        (AbortTaskRun("enough"), False),
        (UsageError("wrong"), False),
    ):
        error = BaseExceptionGroup("together", [KeyError(), BaseExceptionGroup("inner", [inside])])

        def work(error: BaseException = error) -> None:
            raise error

        made = task(id=f"group {type(inside)}", retry=Retry(max_attempts=9))(work)
        assert (attempt(made, attempt=1).retry_after_ms is not None) is is_retried


def test_what_may_succeed_later_is_retried() -> None:
    for number, error in enumerate(
        (
            UnavailableError("away"),
            TaskFailedError(run_id="r"),
            MetadataFlushError("refused"),
        )
    ):

        def work(error: MilepostError = error) -> None:
            raise error

        assert (
            attempt(task(id=f"later {number}", retry=Retry(max_attempts=9))(work), attempt=1).retry_after_ms
            is not None
        )


def test_an_output_that_does_not_fit_its_annotation_is_handed_on_and_told() -> None:
    @task(retry=Retry(max_attempts=9))
    def work(payload: Any) -> int:
        return payload

    for payload, text, has_line in (
        ("many", '"many"', True),
        ({"a": [1]}, '{"a":[1]}', True),
        ("5", "5", False),
        (5, "5", False),
    ):
        scope = scope_of(claimed(payload, task="work"))
        outcome = attempt_in(scope, work)
        assert outcome.output == text
        link = scope.link
        assert isinstance(link, HereLink)
        assert bool(link.lines) is has_line
        if has_line:
            assert "output: Input should be a valid integer" in link.lines[0][1]
    # It would be another value on the other side.
    outcome = attempt(task(id="pair")(lambda_of_a_pair))
    assert error_of(outcome)[0] == "OutputError"


def lambda_of_a_pair() -> int:
    return (1, 2)  # type: ignore[return-value]


class Odd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("colour", ["thread", "loop", "async"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(3), "sys.exit(3)"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(5), "StopIteration"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (asyncio.CancelledError(), "cancelled"),
        (BaseExceptionGroup("several", [ValueError("one"), Odd()]), "several"),
        (Odd(), "RuntimeError"),
        (ValueError("lone \ud800 surrogate"), "lone"),
        (ValueError("x" * 1_000_000), "characters left out"),
        (TimeoutError("user's own"), "user's own"),
    ],
)
def test_the_worker_survives_whatever_is_raised(colour: str, error: BaseException, message: str) -> None:
    @task(id="plain", retry=Retry(max_attempts=1))
    def plain() -> None:
        raise error

    @task(id="async", retry=Retry(max_attempts=1))
    async def in_async() -> None:
        raise error

    work = in_async if colour == "async" else plain
    outcome = attempt(work, on_loop=colour != "thread")
    assert message in error_of(outcome)[1]
    assert len(msgspec.json.encode(outcome)) < 100_000


def test_a_recursion_without_end_fails_the_run() -> None:
    @task(retry=Retry(max_attempts=1))
    def work() -> int:
        def deeper(n: int) -> int:
            return deeper(n + 1)

        return deeper(0)

    assert error_of(attempt(work))[0] == "RecursionError"


def test_a_subtask_that_was_cancelled_fails_the_run() -> None:
    @task(id="inner", retry=Retry(max_attempts=1))
    async def inner() -> None:
        sleeping = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        sleeping.cancel()
        await sleeping

    assert error_of(attempt(inner))[0] == "CancelledError"


def note(seen: list[str], text: str) -> Callable[[], None]:
    return lambda: seen.append(text)


@pytest.mark.parametrize(
    "colour", ["plain", "plain in a plain middleware", "async", "async in a plain middleware"]
)
@pytest.mark.parametrize("has_started", [False, True])
def test_an_attempt_that_the_worker_gives_up_ends_without_hooks(colour: str, has_started: bool) -> None:
    seen: list[str] = []
    gate = threading.Event()

    async def main() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def in_async() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("cleaned up")

        def plain() -> None:
            loop.call_soon_threadsafe(started.set)
            gate.wait(60)

        work = task(id="work")(in_async if colour.startswith("async") else plain)
        work.on_failure(note(seen, "failure"))
        work.on_complete(note(seen, "complete"))
        work.catch_error(note(seen, "caught"))
        if "middleware" in colour:

            @work.middleware
            def around(next: Callable[[], None]) -> None:
                next()

        run = claimed(task="work")
        scope = scope_of(run)
        running = asyncio.create_task(run_attempt(work, run, scope))
        if has_started:
            await started.wait()
        scope.is_lost = True
        if scope.attempt is not None:
            scope.attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert scope.is_over
        gate.set()

    asyncio.run(main())
    assert seen == (["cleaned up"] if has_started and colour.startswith("async") else [])


CANCELLING = """
async def at_once():
    asyncio.current_task().cancel()
    await asyncio.sleep(0)

async def and_returns():
    asyncio.current_task().cancel()

async def later():
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    await asyncio.sleep(60)

async def several_times():
    for _ in range(3):
        asyncio.current_task().cancel()
    await asyncio.sleep(0)

async def from_a_child():
    own = asyncio.current_task()
    async def child():
        own.cancel()
    await asyncio.gather(child(), asyncio.sleep(60))

async def in_a_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        asyncio.current_task().cancel()

async def in_a_timeout():
    async with asyncio.timeout(60):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)
"""


def cancelling(name: str) -> Callable[[], Any]:
    namespace: dict[str, Any] = {"asyncio": asyncio}
    exec(CANCELLING, namespace)
    return namespace[name]


@pytest.mark.parametrize("name", re.findall(r"^async def (\w+)", CANCELLING, re.MULTILINE))
@pytest.mark.parametrize("middleware", ["none", "def", "async def"])
def test_a_run_that_cancels_itself_fails_like_any_other_and_its_hooks_run(name: str, middleware: str) -> None:
    work = task(id="work", retry=Retry(max_attempts=1))(cancelling(name))
    seen: list[str] = []

    @work.catch_error
    async def catch_error(error: BaseException) -> None:
        # Whoever counts the wishes to cancel counts from nothing.
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()
        seen.append(type(error).__name__)

    work.on_failure(note(seen, "failure"))
    work.on_complete(note(seen, "complete"))
    if middleware == "def":

        @work.middleware
        def around(next: Callable[[], None]) -> None:
            next()
    elif middleware == "async def":

        @work.middleware
        async def around_async(next: Callable[[], Any]) -> None:
            await next()

    outcome = attempt(work)
    assert seen == ["CancelledError", "failure", "complete"]
    assert error_of(outcome)[0] == "CancelledError"
    again = task(id="again", retry=Retry(max_attempts=2, jitter=False))(cancelling(name))
    assert attempt(again, attempt=1).retry_after_ms == 1000


def test_a_run_that_takes_its_cancel_back_completes() -> None:
    @task
    async def work() -> str:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "went on"
        return "was not cancelled"

    assert attempt(work).output == '"went on"'


def test_a_timeout_of_a_middleware_stays_a_timeout() -> None:
    seen: list[str] = []

    @task(retry=Retry(max_attempts=1))
    async def work() -> None:
        await asyncio.sleep(60)

    @work.middleware
    async def limit(next: Callable[[], Any]) -> None:
        async with asyncio.timeout(0.01):
            await next()

    @work.on_failure
    async def failed(error: BaseException) -> None:
        await asyncio.sleep(0)
        seen.append(type(error).__name__)

    assert error_of(attempt(work))[0] == "TimeoutError"
    assert seen == ["TimeoutError"]


@pytest.mark.parametrize("hook", ["on_success", "on_complete", "catch_error", "on_failure", "on_start"])
def test_a_hook_that_cancels_itself_does_what_a_hook_does_that_raises(hook: str) -> None:
    fails = hook in ("catch_error", "on_failure")
    seen: list[str] = []

    @task(retry=Retry(max_attempts=1))
    async def work() -> int:
        if fails:
            raise ValueError("the task's")
        return 5

    getattr(work, hook)(cancelling("at_once"))
    work.on_complete(note(seen, "complete"))
    outcome = attempt(work, attempt=1)
    assert seen == ["complete"]
    if hook in ("on_success", "on_complete"):
        assert outcome.output == "5"
    else:
        name = "ValueError" if hook == "on_failure" else "CancelledError"
        assert error_of(outcome)[0] == name


# --- what a failed run leaves behind ---------------------------------------------------------------------------


class Large:
    """What a frame of a task holds."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What a cycle holds lives on for ever in this test."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


FAILING = """
async def raises(hold):
    large = hold()
    raise ValueError

def raises_plain(hold):
    large = hold()
    raise ValueError

async def keeps_its_error(hold):
    large = hold()
    try:
        raise ValueError
    except ValueError as error:
        kept = error
        raise

async def waits_for_a_task(hold):
    large = hold()
    child = asyncio.create_task(raises(hold))
    await child

async def gathers(hold):
    large = hold()
    await asyncio.gather(raises(hold), raises(hold))

async def raises_a_group(hold):
    large = hold()
    async with asyncio.TaskGroup() as group:
        children = [group.create_task(raises(hold)) for _ in range(2)]

async def raises_groups_in_groups(hold):
    large = hold()
    async with asyncio.TaskGroup() as group:
        group.create_task(raises_a_group(hold))

async def raises_from(hold):
    large = hold()
    try:
        await waits_for_a_task(hold)
    except ValueError as error:
        other = LookupError()
        raise other from error

async def raises_while_it_handles(hold):
    large = hold()
    try:
        await keeps_its_error(hold)
    except ValueError as error:
        kept = error
        other = LookupError()
        raise other

async def raises_in_a_thread(hold):
    large = hold()
    await asyncio.to_thread(raises_plain, hold)

async def cancels_itself(hold):
    large = hold()
    child = asyncio.current_task()
    child.cancel()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as error:
        kept = error
        raise

async def exits(hold):
    large = hold()
    try:
        raise SystemExit(3)
    except SystemExit as error:
        kept = error
        raise
"""


@pytest.mark.parametrize("name", re.findall(r"def (\w+)", FAILING))
@pytest.mark.parametrize(
    "hook",
    ["none", "start", "start async", "catch", "catch async", "catch replaces", "catch raises", "failure raises",
     "failure raises async", "middleware", "middleware async", "middleware swallows", "middleware replaces"],
)  # fmt: skip
@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_failed_run_keeps_nothing_alive(
    no_collector: None, monkeypatch: pytest.MonkeyPatch, name: str, hook: str, max_attempts: int
) -> None:
    held: list[weakref.ref[Large]] = []

    def hold() -> Large:
        large = Large()
        held.append(weakref.ref(large))
        return large

    # Whoever keeps a line of a log may keep the error in it.
    monkeypatch.setattr(logging.getLogger("milepost.run"), "disabled", True)

    def keep(error: BaseException) -> None:
        large, kept = hold(), error  # noqa: F841 - the frame holds both

    def replace(error: BaseException) -> BaseException:
        large, kept = hold(), error  # noqa: F841
        return LookupError("instead")

    def fail() -> None:
        large = hold()  # noqa: F841
        try:
            raise RuntimeError
        except RuntimeError as error:
            kept = error  # noqa: F841
            raise

    def around(next: Callable[[], None]) -> None:
        large = hold()  # noqa: F841
        next()

    async def around_async(next: Callable[[], Any]) -> None:
        large = hold()  # noqa: F841
        await next()

    def swallow(next: Callable[[], None]) -> None:
        large = hold()  # noqa: F841
        try:
            next()
        except BaseException as error:
            kept = error  # noqa: F841

    def instead(next: Callable[[], None]) -> None:
        large = hold()  # noqa: F841
        try:
            next()
        except BaseException as error:
            kept = error  # noqa: F841
        raise LookupError("instead") from None

    def in_async(function: Callable[..., Any]) -> Callable[..., Any]:
        async def hook(error: Any = None) -> Any:
            return function(error) if function is keep else function()

        return hook

    namespace: dict[str, Any] = {"asyncio": asyncio}
    exec(FAILING, namespace)
    function = namespace[name]
    plain = not inspect.iscoroutinefunction(function)

    async def work_async() -> None:
        await function(hold)

    def work_plain() -> None:
        function(hold)

    work = task(id="work", retry=Retry(max_attempts=max_attempts))(work_plain if plain else work_async)
    kind, _, form = hook.partition(" ")
    match kind, form:
        case "start", _:
            work.on_start_attempt(in_async(list) if form else lambda: None)
        case "catch", "replaces":
            work.catch_error(replace)
        case "catch", "raises":
            work.catch_error(fail)
        case "catch", _:
            work.catch_error(in_async(keep) if form else keep)
        case "failure", _:
            work.on_failure(in_async(fail) if form.endswith("async") else fail)
        case "middleware", _:
            work.middleware(
                {"": around, "async": around_async, "swallows": swallow, "replaces": instead}[form]
            )
        case _:
            pass
    outcome = attempt(work, attempt=1)
    assert outcome.error is not None
    del outcome
    assert held
    assert not [reference for reference in held if reference() is not None]


def test_an_attempt_that_is_given_up_keeps_nothing_alive(no_collector: None) -> None:
    held: list[weakref.ref[Large]] = []

    @task
    async def work() -> None:
        large = Large()
        held.append(weakref.ref(large))
        try:
            async with asyncio.TaskGroup() as group:
                child = group.create_task(asyncio.sleep(60))
                await child
        except BaseException as error:
            kept = error  # noqa: F841 - a cycle
            raise

    async def main() -> None:
        run = claimed(task="work")
        scope = scope_of(run)
        running = asyncio.create_task(run_attempt(work, run, scope))
        await asyncio.sleep(0.01)
        assert held
        scope.is_lost = True
        assert scope.attempt is not None
        scope.attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert held[0]() is None


def test_a_task_that_is_given_up_is_told_why() -> None:
    told: list[str] = []

    @task
    async def work() -> None:
        async def values() -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(60)

        try:
            async for _ in values():
                pass
        except asyncio.CancelledError as error:
            told.append(str(error))
            raise

    async def main() -> None:
        run = claimed(task="work")
        scope = scope_of(run)
        running = asyncio.create_task(run_attempt(work, run, scope))
        await asyncio.sleep(0.01)
        scope.is_lost = True
        assert scope.attempt is not None
        scope.attempt.cancel("attempt 1 was given up")
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert told == ["attempt 1 was given up"]


def test_code_that_goes_on_is_left_alone(no_collector: None) -> None:
    """The traceback of an error may lead through a coroutine that has caught it, handed it on and still runs."""
    outcomes: list[Outcome] = []

    @task(retry=Retry(max_attempts=1))
    async def work(n: int) -> None:
        await asks[n]

    async def shared() -> int:
        for answer in asks:
            try:
                raise ValueError("for one run")
            except ValueError as error:
                answer.set_exception(error)
            await goes_on.wait()
        return len(asks)

    async def main() -> None:
        nonlocal asks, goes_on
        asks = [asyncio.get_running_loop().create_future() for _ in range(2)]
        goes_on = asyncio.Event()
        others = asyncio.create_task(shared())
        for n in range(2):
            run = claimed(n, task="work")
            outcomes.append(await run_attempt(work, run, scope_of(run)))
            goes_on.set()
        assert await others == 2

    asks: list[asyncio.Future[None]] = []
    goes_on = asyncio.Event()
    asyncio.run(main())
    assert [error_of(outcome) for outcome in outcomes] == [("ValueError", "for one run")] * 2


# --- surroundings -------------------------------------------------------------------------------------------


def test_the_scope_is_current_inside_and_over_afterwards() -> None:
    seen: list[Any] = []

    @task
    async def work() -> None:
        seen.append(current_scope.get())
        seen.append(await asyncio.to_thread(current_scope.get))

    scope = scope_of(claimed(task="work"))
    attempt_in(scope, work)
    assert seen == [scope, scope]
    assert scope.is_over
    assert current_scope.get() is None


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("on_loop", [True, False])
def test_context_variables_reach_def_tasks_and_do_not_leak(on_loop: bool) -> None:
    seen: list[str] = []

    @task
    def work() -> None:
        seen.append(variable.get())
        variable.set("changed")

    token = variable.set("before")
    try:
        attempt(work, on_loop=on_loop)
        assert variable.get() == "before"
    finally:
        variable.reset(token)
    assert seen == ["before"]


def test_a_def_task_on_the_loop_runs_in_a_thread() -> None:
    threads: list[int] = []

    @task
    def work() -> None:
        threads.append(threading.get_ident())
        metadata.set("a", 1)
        metadata.flush()

    scope = scope_of(claimed(task="work"))
    attempt_in(scope, work, on_loop=True)
    assert threads != [threading.get_ident()]
    assert scope.loop_thread_id == threading.get_ident()
    link = scope.link
    assert isinstance(link, HereLink)
    assert link.server.document.value == {"a": 1}


def test_the_context_tells_about_the_run() -> None:
    seen: list[Any] = []

    @task
    def work(ctx: Context) -> None:
        run = ctx.run
        seen.append(
            (
                run.id,
                run.tags,
                run.parent_id,
                run.root_id,
                run.batch_id,
                run.depth,
                run.created_at,
                run.max_attempts,
            )
        )
        seen.append((ctx.attempt.number, ctx.task.id, ctx.queue.name, ctx.batch and ctx.batch.id))

    attempt(
        work, attempt=2, tags=["a"], parent_id="run_p", root_id="run_r", batch_id="batch_b", depth=2,
        created_at=1_700_000_000_000_000, max_attempts=4, queue="q",
    )  # fmt: skip
    created_at = datetime.fromtimestamp(1_700_000_000, UTC)
    assert seen == [
        ("run_self", ["a"], "run_p", "run_r", "batch_b", 2, created_at, 4),
        (2, "work", "q", "batch_b"),
    ]


def test_ctx_run_bind_works_where_the_context_is_not_inherited_M15() -> None:
    @task
    def work(ctx: Context) -> None:
        thread = threading.Thread(target=ctx.run.bind(lambda: metadata.set("from", "thread")))
        thread.start()
        thread.join()
        assert metadata.get("from") == "thread"

    assert attempt(work) == Outcome()


def test_the_logger_writes_to_the_run_and_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no")

    @task
    def work(ctx: Context) -> None:
        ctx.logger.info("n is %d, %s", 5, "x")
        ctx.logger.debug("named %(a)s", {"a": 1})
        ctx.logger.warning("%d", "no number")
        ctx.logger.error(Unprintable())
        ctx.logger.info("lone \ud800 %")
        ctx.logger.info("x" * 100_000)
        try:
            raise KeyError("inner")
        except KeyError:
            ctx.logger.exception("failed")

    scope = scope_of(claimed(task="work"))
    with pytest.MonkeyPatch.context() as patch:
        # Python's own logging gets nothing that it cannot format.
        patch.setattr(logging.Handler, "handleError", lambda self, record: pytest.fail(str(record)))
        caplog.set_level("INFO")
        assert attempt_in(scope, work) == Outcome()
    link = scope.link
    assert isinstance(link, HereLink)
    levels = [level for level, _, _ in link.lines]
    texts = [text for _, text, _ in link.lines]
    assert levels == ["info", "debug", "warning", "error", "info", "info", "error"]
    assert texts[:2] == ["n is 5, x", "named 1"]
    assert "could not be formatted" in texts[2]
    assert "could not be formatted" in texts[3]
    assert texts[4] == "lone \\ud800 %"
    assert texts[5].endswith("x... (67,232 more characters)")
    assert texts[6].startswith("failed\nTraceback")
    record = next(record for record in caplog.records if record.msg == "n is %d, %s")
    assert (record.filename, record.funcName) == ("test_attempt.py", "work")
    assert record.__dict__["run_id"] == "run_self"


def test_typed_metadata_is_checked_inside_a_run_M76() -> None:
    class Progress(BaseModel):
        done: int = Field(default=0, ge=0)

    caught: list[str] = []

    @task(metadata=Progress)
    def work() -> None:
        for call in (
            lambda: metadata.set("done", "x"),
            lambda: metadata.decrement("done"),
            lambda: metadata.append("done", 1),
        ):
            try:
                call()
            except MetadataError as error:
                caught.append(str(error))
        metadata.set("free", "x").increment("done", 2)

    scope = scope_of(claimed(task="work"))
    attempt_in(scope, work)
    assert len(caught) == 3
    assert scope.buffer.current() == {"free": "x", "done": 2}


# --- making tasks -------------------------------------------------------------------------------------------


def test_a_plain_decorator_around_an_async_def_is_seen_through() -> None:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @task
    @decorated
    async def work(n: int) -> int:
        return n + 1

    assert work.is_async
    assert attempt(work, "5") == Outcome(output="6")


def test_an_annotation_that_only_type_checkers_see_is_named() -> None:
    @task(retry=Retry(max_attempts=3))
    def work(value: Decimal, ctx: Context) -> None: ...

    name, message = error_of(attempt(work, 1))
    assert name == "UsageError"
    assert "'Decimal'" in message
    assert "TYPE_CHECKING" in message


def test_generators_are_refused_as_tasks() -> None:
    for function in (generator, async_generator):
        with pytest.raises(UsageError, match="generator"):
            task(function)


def test_super_json_is_read_into_the_annotated_type() -> None:
    received: list[Row] = []

    @task
    def work(row: Row) -> None:
        received.append(row)

    text = '{"json":{"id":1,"e-mail":"x"}}'
    assert attempt(work, text=text, payload_type="application/super+json") == Outcome()
    assert received == [Row.model_validate({"id": 1, "e-mail": "x"})]
