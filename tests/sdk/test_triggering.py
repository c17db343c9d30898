"""Triggering, outside of runs and inside: what is checked before the request, what it says, and what is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, Field

from client.scripted import FINISHED, Answer, Asked, ScriptedServer, event, scripted, wire_run
from milepost import (
    BatchItem,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
    PayloadValidationError,
    Queue,
    TaskFailedError,
    UsageError,
    configure,
    metadata,
    runs,
    task,
    tasks,
)
from milepost.client.requests import OPTION_NAMES
from milepost.model.operations import Set
from milepost.model.run import Outcome
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.registry import register
from sdk.here import claimed, running, scope_of
from sdk.model_server import PARENT


class Row(BaseModel):
    id: int
    email: str = Field(alias="e-mail")
    at: datetime | None = None


@dataclass
class Api:
    """A server that knows how every run ends."""

    server: ScriptedServer
    results: dict[str, dict[str, Any]]
    limit: int | None = None

    def __call__(self, asked: Asked) -> Answer:
        parts = asked.path.split("/")
        if parts[-1] == "trigger":
            return Answer(200, {"id": "run_new", "isCached": False})
        if parts[-2:] == ["tasks", "batch"]:
            ids = [f"run_{index}" for index in range(len(asked.body["items"]))]
            return Answer(202, {"id": "batch_new", "runCount": len(ids), "runs": ids})
        if parts[-1] == "result":
            return Answer(200, self.results["run_new"])
        if parts[-1] == "results":
            return Answer(200, {"id": "batch_new", "items": list(self.results.values())})
        if parts[-1] == "health":
            return Answer(200, {"status": "ok", **({"metadataSizeMax": self.limit} if self.limit else {})})
        if parts[-1] == "metadata":
            return Answer(200, {"metadata": {"theirs": [1]}, "version": 4})
        if parts[-1] == "feed" and "batches" in parts:
            frame = {"id": "batch_new", "runCount": len(self.results), "finishedCount": len(self.results)}
            return Answer(200, chunks=iter([event("batch", frame), event("end", frame)]))
        if parts[-1] == "feed":
            frame = {"version": 0, "run": wire_run(id="run_new", **FINISHED)}
            return Answer(200, chunks=iter([event("snapshot", frame), event("end", {"version": 0})]))
        raise AssertionError(asked.path)

    @property
    def bodies(self) -> list[Any]:
        return [asked.body for asked in self.server.asked if asked.method == "POST"]


def ok(run_id: str, output: str | None, output_type: str = "application/json") -> dict[str, Any]:
    return {"ok": True, "id": run_id, "taskIdentifier": "work", "output": output, "outputType": output_type}


def failed(run_id: str) -> dict[str, Any]:
    error = {"name": "ValueError", "message": "bad"}
    return {"ok": False, "id": run_id, "taskIdentifier": "work", "error": error}


@pytest.fixture
def api() -> Iterator[Api]:
    with scripted() as server:
        api = Api(server, {"run_new": ok("run_new", '{"id":1,"e-mail":"x","at":"2026-01-01T00:00:00Z"}')})
        server.answer = api
        configure(api_url=server.url, secret_key="key")
        yield api
        configure()


@task(id="work")
def work(row: Row) -> Row:
    return row


@pytest.fixture(autouse=True)
def known_task(fresh_registries: None) -> None:
    """The task of this module is registered in every test."""
    register(work)


ROW = Row.model_validate({"id": 1, "e-mail": "x", "at": datetime(2026, 1, 1, tzinfo=UTC)})


# --- before the request -------------------------------------------------------------------------------------


def test_payloads_travel_in_the_form_that_reads_back(api: Api) -> None:
    work.trigger(ROW)
    work.trigger({"id": "1", "e-mail": "x"})  # type: ignore[call-overload]
    assert api.bodies[0]["payload"] == '{"id":1,"e-mail":"x","at":"2026-01-01T00:00:00Z"}'
    assert api.bodies[1]["payload"] == '{"id":1,"e-mail":"x","at":null}'


def test_a_bad_payload_is_refused_before_the_request_where_the_task_is_known(api: Api) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: work.trigger({"id": "x", "e-mail": "y"}),  # type: ignore[call-overload]
        lambda: tasks.trigger("work", {"id": "x", "e-mail": "y"}),
        lambda: asyncio.run(work.atrigger_and_wait({"id": "x", "e-mail": "y"})),  # type: ignore[call-overload]
    ]
    for call in calls:
        with pytest.raises(PayloadValidationError, match="'work': id: ") as caught:
            call()
        assert caught.value.field == "id"
    with pytest.raises(PayloadValidationError, match=r"item 1: .*e-mail") as caught:
        work.batch_trigger([ROW, {"id": 1}])  # type: ignore[list-item]
    assert caught.value.field == "e-mail"
    with pytest.raises(PayloadValidationError, match=r"needs a payload \(row\)"):
        work.trigger()  # type: ignore[call-overload]
    assert api.server.asked == []


def test_unknown_tasks_take_any_json(api: Api) -> None:
    tasks.trigger("elsewhere", {"at": datetime(2026, 1, 1, tzinfo=UTC), "d": Decimal("1.5")})
    assert api.bodies[0]["payload"] == '{"at":"2026-01-01T00:00:00Z","d":"1.5"}'
    with pytest.raises(PayloadValidationError, match=r"payload\.x: a function"):
        tasks.trigger("elsewhere", {"x": print})


def test_nan_is_no_payload(api: Api) -> None:
    @task(id="number")
    def number(value: float) -> None: ...

    with pytest.raises(PayloadValidationError, match="NaN"):
        number.trigger(float("nan"))


def test_tasks_without_payload_and_with_a_default(api: Api) -> None:
    @task(id="none")
    def none() -> None: ...

    @task(id="default")
    def default(path: str = "x") -> None: ...

    none.trigger()
    none.trigger(None)
    tasks.trigger("default")
    default.trigger("y")
    assert [body.get("payload") for body in api.bodies] == [None, None, None, '"y"']
    with pytest.raises(PayloadValidationError, match="takes no payload"):
        tasks.trigger("none", 5)


def test_metadata_is_checked_before_the_request_M2_M73_M76_M85(api: Api) -> None:
    class Progress(BaseModel):
        done: int = 0

    @task(id="typed", metadata=Progress)
    def typed() -> None: ...

    typed.trigger(metadata=Progress(done=3))
    typed.trigger(metadata={"done": 4, "free": "x"})
    assert [body["options"]["metadata"] for body in api.bodies] == [{"done": 3}, {"done": 4, "free": "x"}]
    with pytest.raises(MetadataValueError, match="done"):
        typed.trigger(metadata={"done": "many"})
    with pytest.raises(MetadataTypeError):
        work.trigger(ROW, metadata=[1])
    with pytest.raises(MetadataValueError, match="callback"):
        work.trigger(ROW, metadata={"callback": print})
    exact = {"a": "x" * (262_144 - len('{"a":""}'))}
    work.trigger(ROW, metadata=exact)
    with pytest.raises(MetadataTooLargeError) as caught:
        work.trigger(ROW, metadata={"a": exact["a"] + "x"})
    assert (caught.value.size, caught.value.limit) == (262_145, 262_144)
    assert len(api.bodies) == 3


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_larger_limit_is_learned_from_the_server_M86(api: Api, colour: str) -> None:
    api.limit = 300_000
    big = {"a": "x" * 262_200}
    if colour == "blocking":
        work.batch_trigger([BatchItem(ROW, metadata=big)])
        work.trigger(ROW, metadata=big)
    else:
        asyncio.run(work.abatch_trigger([BatchItem(ROW, metadata=big)]))
        asyncio.run(work.atrigger(ROW, metadata=big))
    with pytest.raises(MetadataTooLargeError):
        work.trigger(ROW, metadata={"a": "x" * 300_000})
    assert len(api.bodies) == 2


def test_options(api: Api) -> None:
    work.trigger(ROW, tags=("a", "b"), max_attempts=3, queue=Queue("rows", concurrency=2))
    assert api.bodies[0]["options"] == {
        "payloadType": "application/json",
        "tags": ["a", "b"],
        "maxAttempts": 3,
        "queue": {"name": "rows"},
    }
    with pytest.raises(TypeError, match=f"'tag'; there are {', '.join(sorted(OPTION_NAMES))}"):
        work.trigger(ROW, tag="x")  # type: ignore[call-overload]


def test_batches(api: Api) -> None:
    handle = work.batch_trigger([ROW, BatchItem(ROW, metadata={"row": 2}, tags="x")])
    assert (handle.id, [run.id for run in handle.runs]) == ("batch_new", ["run_0", "run_1"])
    [body] = api.bodies
    assert [item["task"] for item in body["items"]] == ["work", "work"]
    assert body["items"][1]["options"] == {
        "payloadType": "application/json",
        "metadata": {"row": 2},
        "tags": ["x"],
    }
    assert "parentRunId" not in body
    assert len(work.batch_trigger(ROW for _ in range(1000)).runs) == 1000
    assert [asked.path for asked in api.server.asked] == ["/api/v2/tasks/batch"] * 2


def test_a_batch_of_nothing_asks_nobody(api: Api) -> None:
    assert work.batch_trigger([]).runs == []
    assert work.batch_trigger_and_wait([]) == []
    assert asyncio.run(work.abatch_trigger_and_wait([])) == []
    assert api.server.asked == []


# --- waiting outside of a run -------------------------------------------------------------------------------


def test_results_come_in_the_annotated_type(api: Api) -> None:
    for result in (
        work.trigger_and_wait(ROW),
        asyncio.run(work.atrigger_and_wait(ROW)),
        work.trigger(ROW).result(),
    ):
        assert (result.ok, result.run_id, result.output, result.error) == (True, "run_new", ROW, None)
        assert result.unwrap() == ROW
    assert tasks.trigger_and_wait("work", ROW).output == ROW
    assert tasks.trigger_and_wait("elsewhere", 1).output == {
        "id": 1,
        "e-mail": "x",
        "at": "2026-01-01T00:00:00Z",
    }
    assert "resumeParentOnCompletion" not in str(api.bodies)


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (ok("r", '{"id":"not a number"}'), {"id": "not a number"}),
        (ok("r", "plain text", "text/plain"), "plain text"),
        (
            ok("r", '{"json":{"id":1,"e-mail":"x"}}', "application/super+json"),
            Row.model_validate({"id": 1, "e-mail": "x"}),
        ),
        (ok("r", None), None),
    ],
)
def test_an_output_that_does_not_fit_stays_plain(api: Api, result: dict[str, Any], output: object) -> None:
    api.results["run_new"] = result
    assert work.trigger_and_wait(ROW).output == output


def test_a_failed_run_raises_on_unwrap_only(api: Api) -> None:
    api.results["run_new"] = failed("run_new")
    result = work.trigger_and_wait(ROW)
    assert not result.ok
    assert result.error is not None
    assert (result.error.name, result.error.message) == ("ValueError", "bad")
    with pytest.raises(TaskFailedError) as caught:
        result.unwrap()
    assert (caught.value.run_id, caught.value.error_name) == ("run_new", "ValueError")


def test_batch_results_in_the_order_of_the_items(api: Api) -> None:
    api.results = {"run_0": ok("run_0", "null"), "run_1": failed("run_1")}
    for results in (
        work.batch_trigger_and_wait([ROW, ROW]),
        asyncio.run(work.abatch_trigger_and_wait([ROW, ROW])),
    ):
        assert [(result.run_id, result.ok) for result in results] == [("run_0", True), ("run_1", False)]


# --- inside a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_children_know_their_parent_and_come_after_its_writes(api: Api, colour: str) -> None:
    seen: list[Any] = []
    with running() as (_, link):
        api.server.answer = lambda asked: (seen.append(dict(link.server.document.value)), api(asked))[1]
        metadata.set("before", 1)
        if colour == "blocking":
            work.trigger(ROW)
            work.batch_trigger([ROW])
            tasks.trigger("elsewhere", 1)
        else:
            asyncio.run(work.atrigger(ROW))
            asyncio.run(work.abatch_trigger([ROW]))
            asyncio.run(tasks.atrigger("elsewhere", 1))
    assert seen[0] == {"before": 1}
    trigger, batch, by_name = api.bodies
    assert (
        trigger["options"]["parentRunId"]
        == by_name["options"]["parentRunId"]
        == batch["parentRunId"]
        == "run_self"
    )
    assert "resumeParentOnCompletion" not in trigger["options"]


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_waiting_inside_a_run_is_the_links_business(api: Api, colour: str) -> None:
    api.results = {"run_new": ok("run_new", "null")}
    with running() as (_, link):
        if colour == "blocking":
            assert work.trigger_and_wait(ROW).ok
            assert [result.ok for result in work.batch_trigger_and_wait([ROW])] == [True]
        else:
            assert asyncio.run(work.atrigger_and_wait(ROW)).ok
            assert [result.ok for result in asyncio.run(work.abatch_trigger_and_wait([ROW]))] == [True]
        assert link.waited_for == ["run_new", "batch_new"]
    trigger, batch = api.bodies
    assert trigger["options"]["resumeParentOnCompletion"] is True
    assert batch["resumeParentOnCompletion"] is True
    assert not any(asked.path.endswith("/feed") for asked in api.server.asked)


@pytest.mark.parametrize("colour", ["def", "async def"])
@pytest.mark.parametrize("hook_colour", ["def", "async def"])
def test_hooks_around_waits(api: Api, colour: str, hook_colour: str) -> None:
    if colour == "def":

        @task(id="parent")
        def parent() -> None:
            metadata.append("order", "before")
            work.trigger_and_wait(ROW)
            metadata.append("order", "after")
    else:

        @task(id="parent")
        async def parent() -> None:
            metadata.append("order", "before")
            await work.atrigger_and_wait(ROW)
            metadata.append("order", "after")

    for name in ("on_wait", "on_resume"):
        if hook_colour == "def":

            def hook(name: str = name) -> None:
                metadata.append("order", name)

            getattr(parent, name)(hook)
        else:

            async def hook_async(name: str = name) -> None:
                await asyncio.sleep(0)
                metadata.append("order", name)

            getattr(parent, name)(hook_async)
    scope = scope_of(claimed(task="parent"))
    if needs_loop(parent):
        outcome = asyncio.run(run_attempt(parent, scope.run, scope))
    else:
        outcome = run_attempt_in_thread(parent, scope.run, scope)
    assert outcome == Outcome()
    assert scope.buffer.current() == {"order": ["before", "on_wait", "on_resume", "after"]}


def test_blocking_forms_on_the_workers_loop_name_the_right_one(api: Api) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "await atrigger(...)": lambda: work.trigger(ROW),
        "await atrigger_and_wait(...)": lambda: tasks.trigger_and_wait("work", ROW),
        "await abatch_trigger(...)": lambda: work.batch_trigger([ROW]),
        "await abatch_trigger_and_wait(...)": lambda: work.batch_trigger_and_wait([ROW]),
        "await runs.aretrieve(...)": lambda: runs.retrieve("run_1"),
        "await runs.await_(...)": lambda: runs.wait("run_1"),
        "async for run in runs.asubscribe(...)": lambda: list(runs.subscribe("run_1")),
        "async for run in runs.alist(...)": lambda: list(runs.list()),
        "await asend(...)": lambda: runs.metadata("run_1").set("a", 1).send(),
    }

    async def main() -> None:
        with running() as (scope, _):
            scope.loop_thread_id = threading.get_ident()
            for right_form, call in calls.items():
                with pytest.raises(UsageError) as caught:
                    call()
                assert right_form in str(caught.value)
            assert api.server.asked == []
            assert (await asyncio.to_thread(work.trigger, ROW)).id == "run_new"

    asyncio.run(main())


def test_parents_are_read_from_the_server_M65(api: Api) -> None:
    with running(parent_id=PARENT) as (_, link):
        metadata.parent.set("mine", 1)
        assert metadata.parent.get("$.theirs[0]") == 1
        assert link.server.others[PARENT] == [Set("mine", 1)]
        assert asyncio.run(metadata.run("run_uncle").aget("nothing", 5)) == 5
    assert [asked.path for asked in api.server.asked] == [
        f"/api/v1/runs/{PARENT}/metadata",
        "/api/v1/runs/run_uncle/metadata",
    ]


def test_refresh_takes_the_newest_document_and_keeps_what_is_pending_M43(api: Api) -> None:
    with running() as (scope, _):
        metadata.set("mine", 1)
        assert metadata.refresh().current() == {"theirs": [1], "mine": 1}
        assert scope.buffer.version == 4
        assert scope.buffer.has_unacknowledged
        asyncio.run(metadata.arefresh())
        assert metadata.current() == {"theirs": [1], "mine": 1}


def test_refresh_waits_for_a_batch_that_is_under_way_M43(api: Api) -> None:
    with running() as (scope, link):
        metadata.set("mine", 1)
        batch = scope.buffer.next_batch()
        assert batch is not None
        for version in range(4):
            link.server.write([Set("theirs", [version])])
        metadata.refresh()
        assert not scope.buffer.has_unacknowledged
        assert metadata.current() == {"theirs": [3], "mine": 1}
