"""`milepost.testing.context`: a `Context` for functions that take one, without a server."""

import logging

import pytest

from milepost import Context, UsageError, metadata, task
from milepost.testing import LocalContext, context


def report(rows: int, ctx: Context) -> str:
    ctx.logger.info("%d rows for %s", rows, ",".join(ctx.run.tags))
    metadata.set("rows", rows).increment("calls")
    metadata.parent.set("child", ctx.run.id)
    return f"{ctx.run.id}/{ctx.attempt.number}"


@task
def as_task(rows: int, ctx: Context) -> str:
    return report(rows, ctx)


def test_what_is_given_is_there() -> None:
    ctx = context(
        run_id="run_1",
        task_id="t",
        attempt=3,
        tags=["a"],
        parent_id="run_0",
        batch_id="batch_1",
        is_replay=True,
    )
    assert isinstance(ctx, Context)
    assert (ctx.run.id, ctx.run.tags, ctx.run.parent_id, ctx.run.root_id) == (
        "run_1",
        ["a"],
        "run_0",
        "run_0",
    )
    assert (ctx.task.id, ctx.attempt.number, ctx.queue.name) == ("t", 3, "task/t")
    assert ctx.batch is not None
    assert ctx.batch.id == "batch_1"
    assert ctx.run.is_replay


def test_nothing_needs_to_be_given() -> None:
    one, other = context(), context()
    assert one.run.id != other.run.id
    assert (one.run.root_id, one.run.parent_id, one.batch, one.run.is_replay) == (
        one.run.id,
        None,
        None,
        False,
    )


def test_logger_and_metadata_work(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with context(run_id="run_1", tags=["a", "b"], metadata={"calls": 1}) as ctx:
        assert as_task(5, ctx) == "run_1/1"
        assert metadata.get("rows") == 5
    # Without a parent, `metadata.parent` is the run itself.
    assert ctx.metadata == {"rows": 5, "calls": 2, "child": "run_1"}
    assert [(line.level, line.message) for line in ctx.logs] == [("info", "5 rows for a,b")]
    assert "5 rows for a,b" in caplog.text
    assert metadata.get("rows") is None


def test_metadata_of_a_parent_is_not_the_runs_own() -> None:
    with context(run_id="run_1", parent_id="run_0") as ctx:
        report(1, ctx)
    assert ctx.metadata == {"rows": 1, "calls": 1}


def test_the_logger_needs_no_block() -> None:
    ctx = context()
    ctx.logger.warning("careful")
    assert [(line.level, line.message) for line in ctx.logs] == [("warning", "careful")]


def test_what_needs_a_server_says_so() -> None:
    with context(), pytest.raises(UsageError, match="run_task"):
        metadata.stream("key", ["chunk"])


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(UsageError, match="attempt=0"):
        context(attempt=0)


def test_the_fixture(milepost_context: LocalContext) -> None:
    milepost_context.logger.info("seen")
    assert milepost_context.logs[0].message == "seen"
