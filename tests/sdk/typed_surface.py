"""What type checkers in strict mode must infer of the public surface; checked by `make check`, never run."""

from datetime import datetime
from typing import Any, assert_type

from pydantic import BaseModel

from milepost import (
    BatchHandle,
    BatchItem,
    Context,
    Queue,
    Retry,
    Run,
    RunHandle,
    Task,
    TaskResult,
    hooks,
    metadata,
    runs,
    task,
    tasks,
)
from milepost.client.calls import MetadataVersion
from milepost.model.operations import Operation


class Row(BaseModel):
    id: int


class Progress(BaseModel):
    done: int = 0


@task
def plain(row: Row) -> int:
    return row.id


@task
async def in_async(row: Row) -> int:
    return row.id


@task(id="with-context", retry=Retry(max_attempts=5), queue=Queue("rows", concurrency=20))
async def with_context(row: Row, ctx: Context) -> Row:
    ctx.logger.info("run %s, attempt %d", ctx.run.id, ctx.attempt.number)
    return row


@task(metadata=Progress, queue="rows")
def context_first(ctx: Context, row: Row) -> Row:
    return row


@task
def nothing() -> None: ...


@task
async def only_context(ctx: Context) -> list[str]:
    return ctx.run.tags


@task
def optional(path: str | None) -> str:
    return path or ""


of_rows: list[Task[Row, int]] = [plain, in_async]
rows_to_rows: list[Task[Row, Row]] = [with_context, context_first]
without: Task[None, None] = nothing
only: Task[None, list[str]] = only_context
of_text: Task[str | None, str] = optional


@task
def several(a: int, b: str = "x", *, c: bool = False) -> float:
    return a


@task(id="several-async", retry=Retry(max_attempts=5, min_delay="10s", retry_on=ConnectionError))
async def several_async(a: int, b: str) -> float:
    return a


@task
def several_behind_context(ctx: Context, a: int, /, b: str = "x") -> float:
    return a


@task
def anything_second(key: str, value: object) -> str:
    return key


@task
def context_elsewhere(a: int, b: str = "x", *, ctx: Context) -> float:
    return a


@task
def anything(value: object) -> str:
    return ""


@task
def with_default(path: str = "people.csv") -> str:
    return path


assert_type(several.trigger(1), RunHandle[float])
assert_type(several.trigger(1, "y", c=True), RunHandle[float])
assert_type(several.trigger(a=1, b="y"), RunHandle[float])
assert_type(several.options(tags=["x"], queue="q").trigger(a=1, c=True), RunHandle[float])
assert_type(several.options(max_attempts=1).trigger_and_wait(1).unwrap(), float)
assert_type(several_async.trigger_and_wait(1, b="y"), TaskResult[float])
assert_type(several_async.batch_trigger([(1, "x"), {"a": 1, "b": "x"}]), BatchHandle[float])
assert_type(several_async.batch_trigger([BatchItem((1, "x"), tags="t")]), BatchHandle[float])
assert_type(several.batch_trigger([(1, "x"), {"a": 1, "c": True}]), BatchHandle[float])
assert_type(several_behind_context.trigger(1, b="y"), RunHandle[float])
assert_type(several_behind_context.batch_trigger([BatchItem((1, "x"), tags="t")]), BatchHandle[float])
assert_type(anything_second.trigger("k", [1]), RunHandle[str])
# Only pyright lets a context elsewhere go without saying; both do where it comes first.
assert_type(context_elsewhere.trigger(1, b="y"), RunHandle[float])  # type: ignore[assert-type, call-overload]
assert_type(anything.trigger([1], tags="x"), RunHandle[str])
assert_type(plain.options(tags="x").trigger(Row(id=1)), RunHandle[int])
assert_type(with_default.trigger(), RunHandle[str])
assert_type(with_default.trigger("other.csv", tags="x"), RunHandle[str])

# What must be refused: a comment that ignores nothing is an error to mypy.
several.trigger("1")  # type: ignore[call-overload]  # pyright: ignore
several.trigger(1, c="yes")  # type: ignore[call-overload]  # pyright: ignore
several.trigger(1, d=1)  # type: ignore[call-overload]  # pyright: ignore
several.trigger(1, tags="x", wrong=2)  # type: ignore[call-overload]  # pyright: ignore
several.options(tagz="x")  # type: ignore[call-arg]  # pyright: ignore
several.options(tags="x").trigger("1")  # type: ignore[arg-type]  # pyright: ignore
several_async.trigger(1)  # type: ignore[call-overload]  # pyright: ignore
several_behind_context.trigger("1")  # type: ignore[call-overload]  # pyright: ignore
plain.trigger(1)  # type: ignore[call-overload]  # pyright: ignore
plain.trigger()  # type: ignore[call-overload]  # pyright: ignore
plain.trigger(Row(id=1), tagz="x")  # type: ignore[call-overload]  # pyright: ignore
with_context.trigger(1)  # type: ignore[call-overload]  # pyright: ignore
nothing.trigger(5)  # type: ignore[call-overload]  # pyright: ignore
Retry(min_delay=[1])  # type: ignore[arg-type]  # pyright: ignore
Retry(retry_on=int)  # type: ignore[arg-type]  # pyright: ignore

row = Row(id=1)
assert_type(plain.trigger(row, metadata={"a": 1}, tags=["x"], max_attempts=1, queue="q"), RunHandle[int])
assert_type(nothing.trigger(metadata=Progress(), tags="x"), RunHandle[None])
assert_type(optional.trigger(None).result(), TaskResult[str])
assert_type(in_async.trigger_and_wait(row).unwrap(), int)
assert_type(with_context.batch_trigger([row, BatchItem(row, tags="x")]), BatchHandle[Row])
assert_type(with_context.batch_trigger_and_wait([row]), list[TaskResult[Row]])
assert_type(tasks.trigger_and_wait("by-name", row), TaskResult[Any])

for run in plain.trigger(row).subscribe():
    assert_type(run, Run)
    assert_type(run.metadata_as(Progress), Progress)
for version in runs.metadata_history("run_1", page_size=10, after=3):
    assert_type(version, MetadataVersion)
    assert_type(version.at, datetime)
    assert_type(version.operations, list[Operation])
assert_type(runs.metadata_at("run_1", version=3).value, dict[str, Any])
for run in runs.list(task="plain", status=["QUEUED"]):
    assert_type(run, Run)
assert_type(runs.metadata("run_1").set("a", 1).increment("n").send(), dict[str, Any])

assert_type(metadata.current(), dict[str, Any] | None)
assert_type(metadata.current(Progress), Progress | None)
metadata.set("a", 1).append("b", 2).increment("c").parent.increment("d").append("e", 1, max_items=5)
for item in metadata.track([1, 2]):
    assert_type(item, int)


def add(left: int, right: int = 1) -> int:
    return left + right


assert_type(metadata.bind(add)(1, right=2), int)


@hooks.on_success
@plain.on_success
def hook(output: int, ctx: Context) -> None: ...


async def main() -> None:
    assert_type(await with_context.atrigger_and_wait(row), TaskResult[Row])
    assert_type(await only_context.atrigger(), RunHandle[list[str]])
    assert_type(await with_context.abatch_trigger_and_wait([row]), list[TaskResult[Row]])
    async for state in runs.asubscribe("run_1"):
        assert_type(state, Run)
    async for listed in runs.alist():
        assert_type(listed, Run)
    assert_type(await runs.await_("run_1"), Run)
    await metadata.aflush()
