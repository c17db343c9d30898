"""Tasks for `test_live`, run by real workers."""

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field, SecretStr

from milepost import AbortTaskRun, Context, MetadataError, MetadataFlushError, Retry, hooks, metadata, task


class Row(BaseModel):
    id: int
    email: str


class Progress(BaseModel):
    done: int = 0
    at: datetime | None = None


@task
async def child(row: Row, ctx: Context) -> Row:
    for _ in range(10):
        metadata.root.increment("count")
    metadata.parent.append("children", ctx.run.id)
    metadata.root.increment("counted")
    return row


@task
async def fan_out(n: int) -> dict[str, Any]:
    metadata.set("before", True)
    seen: list[int] = []

    async def watch() -> None:
        while (count := metadata.get("counted", 0)) < n:
            seen.append(count)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    results = await child.abatch_trigger_and_wait([Row(id=index, email="x@y") for index in range(n)])
    await asyncio.wait_for(watching, 20)
    return {
        "ids": [result.unwrap().id for result in results],
        "is_typed": all(isinstance(result.output, Row) for result in results),
        "never_backwards": seen == sorted(seen),
        "count": metadata.get("count"),
    }


@task
def fan_out_blocking(n: int) -> dict[str, Any]:
    one = child.trigger_and_wait(Row(id=0, email="x@y"))
    many = child.batch_trigger_and_wait([Row(id=index, email="x@y") for index in range(1, n)])
    metadata.refresh()
    return {"ids": [result.unwrap().id for result in [one, *many]], "counted": metadata.get("counted")}


@task
def middle(n: int) -> Any:
    child.batch_trigger_and_wait([Row(id=index, email="x@y") for index in range(n)])
    return sorted(metadata.current() or {})


@task
def grandparent(n: int) -> Any:
    return [middle.trigger_and_wait(n).unwrap(), metadata.current()]


@task(retry=Retry(max_attempts=3, min_delay=0, max_delay=0))
def survives(n: int, ctx: Context) -> Any:
    metadata.increment("attempts").increment("once", n, once="step 1")
    if ctx.attempt.number < 3:
        raise ValueError(f"attempt {ctx.attempt.number}")
    return metadata.current()


@task
def flushes() -> list[str]:
    metadata.set("n", "text").remove("n", 1).root.set("ok", 1)
    codes: list[str] = []
    try:
        metadata.flush()
    except MetadataFlushError as error:
        codes += [item.code for item in error.refused]
    try:
        metadata.increment("n")
    except MetadataError as error:
        codes.append(error.code)
    return codes


@task
def counts_fast(n: int) -> int:
    for index in range(n):
        metadata.increment("n").set("last", index)
    return metadata.get("n")


def in_process(index: int) -> int:
    metadata.increment("processes").parent.append("indexes", index)
    return index


@task
def uses_processes() -> list[int]:
    metadata.set("before", 1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(metadata.bind(in_process), range(4)))


@task(metadata=Progress)
async def typed() -> Any:
    metadata.set("done", 5)
    try:
        metadata.set("done", "many")
    except MetadataError as error:
        return str(error)


class Typed(BaseModel):
    data: bytes
    secret: SecretStr
    by_number: dict[int, str] = {}
    renamed: int = Field(0, serialization_alias="Renamed", validation_alias="Old")


@task
def echo(value: Typed) -> Typed:
    return value


@task
def sends_typed_values() -> bool:
    value = Typed(data=b"\xff\xfe", secret=SecretStr("s"), by_number={7: "x"}, Old=1)  # type: ignore[call-arg]
    return echo.trigger_and_wait(value).unwrap() == value


@task(retry=Retry(max_attempts=9))
def returns_what_cannot_be_stored() -> dict[str, float]:
    return {"a": float("nan")}


@task
def writes_to_its_parent() -> list[str]:
    metadata.parent.set("done", 7).increment("done", 0.5).set("at", "soon").delete("status")
    try:
        metadata.flush()
    except MetadataFlushError as error:
        return [item.message for item in error.refused]
    return []


class Held(Progress):
    status: str


@task(metadata=Held)
def has_a_typed_parent() -> Any:
    metadata.set("status", "x")
    refused = writes_to_its_parent.trigger_and_wait().unwrap()
    return {"refused": refused, "typed": metadata.current(Held)}


@task
def logs(ctx: Context) -> None:
    ctx.logger.info("line %d", 1)
    ctx.logger.warning("odd: %s", {"a": 1})


@task
def steps(n: int) -> None:
    for index in range(n):
        metadata.set("step", index)
        metadata.flush()
        time.sleep(0.02)


@task
async def waits_for_approval() -> Any:
    metadata.set("waiting", True)
    while not metadata.get("approved"):  # noqa: ASYNC110 - what others write wakes nobody, it is simply there
        await asyncio.sleep(0.005)
    return metadata.current()


@task
def exits(kind: str) -> Any:
    if kind == "exit":
        raise SystemExit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "abort":
        raise AbortTaskRun("no more")
    if kind == "output":
        return object()
    return kind


@task
def hooked() -> None:
    metadata.append("order", "task")


@hooked.on_start
async def start() -> None:
    metadata.append("order", "start")


@hooked.on_complete
def complete() -> None:
    metadata.append("order", "complete")


@hooks.on_success
def globally(ctx: Context) -> None:
    metadata.append("hooks", ctx.task.id)
