"""Idempotency keys as the SDK sends them, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from client.scripted import Answer, Asked, ScriptedServer, scripted
from milepost import BatchItem, IdempotencyKey, UsageError, configure, task, tasks
from milepost.client.idempotency import Caller, hash_key, key_fields
from milepost.protocol.triggering import IdempotencyKeyOptions


class Api:
    """Answers triggers, and keeps what they said."""

    def __init__(self, server: ScriptedServer) -> None:
        self.asked: list[Asked] = []
        self.is_cached = False
        self.status = 200
        server.answer = self

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if asked.path == "/api/v2/tasks/batch":
            runs = [f"run_{place}" for place in range(len(asked.body["items"]))]
            return Answer(202, {"id": "batch_1", "runCount": len(runs), "runs": runs, "cached": [1]})
        if asked.path.startswith("/api/v1/idempotencyKeys/"):
            return Answer(
                self.status, {"id": "key"} if self.status == 200 else {"error": "none", "code": "not_found"}
            )
        if asked.path == "/api/v3/batches":
            return Answer(202, {"id": "batch_1", "runCount": 3, "isCached": self.is_cached})
        if asked.path == "/api/v2/batches/batch_1":
            times = {"createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z"}
            counts = {"runCount": 2, "finishedCount": 0, "processing": {"errors": []}}
            return Answer(
                200, {"id": "batch_1", "status": "PROCESSING", "runs": ["run_a", "run_b"], **times, **counts}
            )
        return Answer(200, {"id": "run_1", "isCached": self.is_cached})

    def options(self, place: int = 0) -> list[dict[str, Any]]:
        """The options of the items of a batch."""
        return [item["options"] for item in self.asked[place].body["items"]]


@pytest.fixture
def api() -> Iterator[Api]:
    with scripted() as server:
        configure(api_url=server.url, secret_key="key")
        yield Api(server)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


CALLER = Caller("run_7", 2)


@pytest.mark.parametrize(
    ("key", "caller", "hashed", "scope"),
    [
        # As in a recorded request of the official client.
        (IdempotencyKey("order-1"), None, "0bafe22156d2698c143b86040446d366ead863ba600d5c924f3d15c786ef4057", "global"),
        (IdempotencyKey("k", "global"), None, sha("k"), "global"),
        (IdempotencyKey("k", "global"), CALLER, sha("k"), "global"),
        (IdempotencyKey("k"), CALLER, sha("k-run_7"), "run"),
        (IdempotencyKey("k", "run"), CALLER, sha("k-run_7"), "run"),
        (IdempotencyKey("k", "attempt"), CALLER, sha("k-run_7-2"), "attempt"),
        (IdempotencyKey("0a" * 32), CALLER, "0a" * 32, "global"),
        (IdempotencyKey("x" * 64), CALLER, sha("x" * 64 + "-run_7"), "run"),
    ],
)  # fmt: skip
def test_how_a_key_travels(key: IdempotencyKey, caller: Caller | None, hashed: str, scope: str) -> None:
    assert hash_key(key, caller) == (hashed, scope)


@pytest.mark.parametrize("scope", ["run", "attempt"])
def test_a_scope_that_there_is_not_here_is_refused(scope: Any) -> None:
    with pytest.raises(UsageError, match="belongs to a run, and nothing runs here"):
        hash_key(IdempotencyKey("k", scope), None)


@pytest.mark.parametrize("key", ["", 5, b"k", ["a"]])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(UsageError, match="an idempotency key is a text"):
        key_fields({"idempotency_key": key}, None)
    with pytest.raises(UsageError, match="scope"):
        IdempotencyKey("k", "world")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("ttl", "sent"),
    [(timedelta(minutes=10), "600s"), ("1h30m", "5400s"), (60, "60s"), (0.2, "1s"), ("2d", "172800s")],
)
def test_how_a_time_to_live_travels(ttl: Any, sent: str) -> None:
    assert (
        key_fields({"idempotency_key": "k", "idempotency_key_ttl": ttl}, None)["idempotency_key_ttl"] == sent
    )


@pytest.mark.parametrize("ttl", ["", "soon", 0, -5, timedelta(0), True, float("nan")])
def test_a_time_to_live_that_is_none_is_refused(ttl: Any) -> None:
    with pytest.raises(UsageError, match="idempotency_key_ttl"):
        key_fields({"idempotency_key": "k", "idempotency_key_ttl": ttl}, None)


def test_none_means_a_new_run_and_only_inside_of_one() -> None:
    assert key_fields({"idempotency_key": None}, CALLER) == {"always_new": True}
    assert key_fields({"idempotency_key": None}, None) == key_fields({}, CALLER) == {}
    with pytest.raises(UsageError, match="there is none"):
        key_fields({"idempotency_key_ttl": 5}, None)


def test_what_was_said_travels_along() -> None:
    fields = key_fields({"idempotency_key": "k"}, CALLER)
    assert fields["idempotency_key_options"] == IdempotencyKeyOptions("k", "run")


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_handle_says_whether_its_run_was_there_before(api: Api, is_cached: bool) -> None:
    api.is_cached = is_cached
    handle = tasks.trigger("work", 1, idempotency_key="order-1", idempotency_key_ttl="10m")
    assert handle.is_cached is is_cached
    options = api.asked[0].body["options"]
    assert options["idempotencyKey"] == sha("order-1")
    assert options["idempotencyKeyTTL"] == "600s"
    assert options["idempotencyKeyOptions"] == {"key": "order-1", "scope": "global"}


def test_a_batch_makes_a_key_of_each_item(api: Api) -> None:
    @task
    def work(number: int) -> None: ...

    items = [1, BatchItem(2), BatchItem(3, idempotency_key="own"), 4]
    handle = work.batch_trigger(
        items, key=lambda number: None if number == 4 else f"k{number}", idempotency_key_ttl=60
    )
    assert [run.is_cached for run in handle.runs] == [False, True, False, False]
    assert handle.is_cached is False
    keys = [options.get("idempotencyKey") for options in api.options()]
    assert keys == [sha("k1"), sha("k2"), sha("own"), None]
    assert [options.get("idempotencyKeyTTL") for options in api.options()] == ["60s", "60s", None, None]
    assert "idempotencyKey" not in api.asked[0].body


def test_the_key_of_a_whole_batch_is_its_own(api: Api) -> None:
    asyncio.run(tasks.abatch_trigger("work", [1, 2], idempotency_key="all", idempotency_key_ttl=60))
    body = api.asked[0].body
    assert (body["idempotencyKey"], body["idempotencyKeyTTL"]) == (sha("all"), "60s")
    assert all("idempotencyKey" not in options for options in api.options())


def test_a_long_batch_that_is_there_is_not_sent(api: Api) -> None:
    api.is_cached = True
    handle = tasks.batch_trigger("work", range(2500), idempotency_key="all")
    assert ([run.id for run in handle.runs], handle.is_cached) == (["run_a", "run_b"], True)
    assert all(run.is_cached for run in handle.runs)
    assert [asked.path for asked in api.asked] == ["/api/v3/batches", "/api/v2/batches/batch_1"]


def test_options_that_there_are_not_are_refused(api: Api) -> None:
    with pytest.raises(TypeError, match="no option 'keys' of a batch"):
        tasks.batch_trigger("work", [1], keys=str)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match="there is none"):
        tasks.batch_trigger("work", [1], idempotency_key_ttl=5)
    assert api.asked == []


def test_a_key_is_reset(api: Api) -> None:
    assert tasks.reset_idempotency_key("work", "order-1") is True
    [asked] = api.asked
    assert asked.path == f"/api/v1/idempotencyKeys/{sha('order-1')}/reset"
    assert asked.body == {"taskIdentifier": "work"}
    api.status = 404
    assert (
        asyncio.run(tasks.areset_idempotency_key(None, IdempotencyKey("k", "run"), run_id="run_7")) is False
    )
    assert api.asked[1].path == f"/api/v1/idempotencyKeys/{sha('k-run_7')}/reset"
    assert api.asked[1].body == {}
    with pytest.raises(UsageError, match="say which"):
        tasks.reset_idempotency_key("work", IdempotencyKey("k", "attempt"), run_id="run_7")
