"""`metadata` as the user's code sees it: every operation, where it works, what raises, and what does nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from milepost import (
    MetadataFlushError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
    UsageError,
    metadata,
)
from milepost.model.counted import id_of, pack
from milepost.model.jsonvalue import INTEGER_MAX
from milepost.model.operations import Append, Increment, Set
from milepost.sdk.scope import current_scope
from sdk.here import running
from sdk.model_server import PARENT, RUN, deliver, effect_of


def _kind_of(value: object) -> str:
    """For the name of a test: some integers have too many digits for one."""
    return type(value).__name__


# --- operations ---------------------------------------------------------------------------------------------


def test_every_operation_and_chaining_M17_to_M28() -> None:
    with running({"old": 1}) as (_, link):
        assert (
            metadata.set("status", "reading")
            .set("a.b", 1)
            .append("log", "one")
            .append("log", ["two"])
            .extend("log", (3, 4))
            .increment("n")
            .increment("n", 2)
            .decrement("n", 5)
            .delete("old")
            .remove("log", 3)
            .update({"x": 1, "y": 2})
            is metadata
        )
        assert metadata.current() == {
            "status": "reading",
            "a.b": 1,
            "log": ["one", ["two"], 4],
            "n": -2,
            "x": 1,
            "y": 2,
        }
        metadata.flush()
        assert link.server.document.value == metadata.current()
        assert metadata.del_("x").replace({"whole": True}).current() == {"whole": True}


def test_item_access() -> None:
    with running({"a": 1, "n": None}):
        metadata["b"] = [1]
        del metadata["a"]
        assert "a" not in metadata
        assert "b" in metadata
        assert "n" in metadata
        assert metadata["b"] == [1]
        assert list(metadata) == ["n", "b"]
        with pytest.raises(KeyError):
            metadata["a"]


def test_paths_M18() -> None:
    with running({"steps": [{"done": False}, {}]}):
        metadata.set("$.steps[0].done", True).set("$.deep.er.x", 1).append("$.deep.list", 1)
        metadata.increment('$.deep["odd.name"]').delete("$.steps[-1]")
        assert metadata.current() == {
            "steps": [{"done": True}],
            "deep": {"er": {"x": 1}, "list": [1], "odd.name": 1},
        }
        assert metadata.get("$.steps.0.done") is True
        with pytest.raises(MetadataPathError) as caught:
            metadata.set("$.steps[0].done.more", 1)
        assert caught.value.segment == "done"


def test_keys_may_be_text_of_any_kind_M17() -> None:
    class Key(StrEnum):
        STATUS = "status"

    with running() as (_, link):
        metadata.set("", 1).set(Key.STATUS, "x").append(Key.STATUS, "y")
        metadata.flush()
        assert link.server.document.value == {"": 1, "status": ["x", "y"]}
        assert metadata.get(Key.STATUS) == ["x", "y"]


@pytest.mark.parametrize(
    "key", ["__proto__", "$$reserved", "$.a.__proto__", "$.", "$.a[*]", "$.constructor.x"]
)
def test_keys_that_are_refused_M27(key: str) -> None:
    with running(parent_id=PARENT) as (scope, _):
        for updater in (metadata, metadata.parent):
            with pytest.raises(MetadataPathError):
                updater.set(key, 1)
        assert not scope.buffer.has_unacknowledged


def test_a_key_that_is_no_text_is_refused() -> None:
    key: Any = 5
    with running(parent_id=PARENT):
        for updater in (metadata, metadata.parent):
            for call in (lambda u: u.set(key, 1), lambda u: u.delete(key), lambda u: u.increment(key)):
                with pytest.raises(MetadataTypeError):
                    call(updater)


def test_max_items_keeps_the_newest() -> None:
    with running() as (_, link):
        for index in range(10):
            metadata.append("log", index, max_items=3)
        assert metadata.get("log") == [7, 8, 9]
        metadata.flush()
        assert link.server.document.value == {"log": [7, 8, 9]}
        with pytest.raises(MetadataValueError):
            metadata.append("log", 1, max_items=0)


def test_increment_wants_numbers_M23() -> None:
    with running({"text": "x", "float": 0.5}, parent_id=PARENT):
        metadata.increment("n").increment("float", 1)
        assert metadata.get("n") == 1
        assert isinstance(metadata.get("n"), int)
        assert metadata.get("float") == 1.5
        with pytest.raises(MetadataTypeError):
            metadata.increment("text")
        bad: list[Any] = [True, "1", None, [1]]
        for by in bad:
            for updater in (metadata, metadata.parent, metadata.root):
                with pytest.raises(MetadataTypeError):
                    updater.increment("n", by)
                with pytest.raises(MetadataTypeError):
                    updater.decrement("n", by)
        for updater in (metadata, metadata.parent):
            with pytest.raises(MetadataValueError):
                updater.increment("n", float("nan"))


@pytest.mark.parametrize(
    "by", [10**400, -(10**400), 10**5000, float("inf"), float("nan"), INTEGER_MAX + 1], ids=_kind_of
)
def test_a_number_beyond_every_document_is_refused_at_the_call_M23(by: Any) -> None:
    with running({"f": 0.5, "n": 1}, parent_id=PARENT) as (scope, _):
        for updater in (metadata, metadata.parent, metadata.root, metadata.run(PARENT)):
            for key in ("f", "n", "new", "$.deep.n"):
                for call in (updater.increment, updater.decrement):
                    with pytest.raises(MetadataValueError):
                        call(key, by)
                with pytest.raises(MetadataValueError):
                    updater.set(key, by)
        assert metadata.current() == {"f": 0.5, "n": 1}
        assert scope.buffer.next_batch() is None


@pytest.mark.parametrize("cap", [0, -1, True, 1.5, "3", 10**5000, -(10**5000), 1_000_000_001], ids=_kind_of)
def test_a_cap_that_is_none_is_refused_at_the_call(cap: Any) -> None:
    with running(parent_id=PARENT) as (scope, _):
        for updater in (metadata, metadata.parent):
            with pytest.raises(
                MetadataValueError, match="max_items is a whole number from 1 to 1,000,000,000"
            ):
                updater.append("l", 1, max_items=cap)
        assert scope.buffer.next_batch() is None


@pytest.mark.parametrize("key", [5, None, ["a"], {"a": 1}, b"a", object()], ids=_kind_of)
def test_a_key_that_is_no_text_is_refused_at_the_call(key: Any) -> None:
    """Whatever else is wrong."""
    with running(parent_id=PARENT):
        for updater in (metadata, metadata.parent):
            for method in ("set", "append", "remove", "increment", "decrement"):
                with pytest.raises(MetadataTypeError, match="a metadata key is text"):
                    getattr(updater, method)(key, {"a": object()})
            with pytest.raises(MetadataTypeError, match="a metadata key is text"):
                updater.delete(key)
            with pytest.raises(MetadataTypeError, match="a metadata key is text"):
                updater.extend(key, [1])
        with pytest.raises(MetadataTypeError, match="a metadata key is text"):
            metadata.get(key)


def test_a_key_whose_own_methods_raise_is_a_key() -> None:
    class Odd(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise RuntimeError("no hash")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        def __str__(self) -> str:
            raise RuntimeError("no text")

    with running():
        metadata.set(Odd("a"), 1).increment(Odd("$.a"), 1).append(Odd("l"), 1).extend(Odd("l"), [2])
        assert (metadata.current(), metadata.get(Odd("$.l[0]"))) == ({"a": 2, "l": [1, 2]}, 1)
        with pytest.raises(MetadataValueError, match=r"^a: a function"):
            metadata.set(Odd("a"), len)


@pytest.mark.parametrize("values", [5, None, object(), len], ids=_kind_of)
def test_extend_wants_an_iterable(values: Any) -> None:
    with running() as (scope, _):
        with pytest.raises(MetadataTypeError, match="'l': extend by an iterable, not by"):
            metadata.extend("l", values)
        assert scope.buffer.next_batch() is None


def test_increment_once_counts_an_id_once_per_run_M46() -> None:
    with running({"n": 1}, counted=pack([id_of("n", "row 1")])):
        metadata.increment("n", once="row 1").increment("n", once="row 2").increment("$.n", once="row 2")
        metadata.increment("bytes", 5, once="row 1").append("rows", 1, once="row 1")
        assert metadata.current() == {"n": 2, "bytes": 5, "rows": [1]}
        with pytest.raises(MetadataValueError):
            metadata.increment("n", once="")


def test_replace_and_update_want_mappings_M20_M73() -> None:
    with running({"a": 1}, parent_id=PARENT):
        for bad in ([1], "text", 5, None):
            for updater in (metadata, metadata.parent):
                for call in (updater.replace, updater.update):
                    with pytest.raises(TypeError):
                        call(bad)
        assert metadata.current() == {"a": 1}


def test_update_is_all_or_nothing() -> None:
    with running({"a": 1}, limit=60, parent_id=PARENT):
        with pytest.raises(MetadataTooLargeError):
            metadata.update({"a": 2, "b": "x" * 100})
        with pytest.raises(MetadataPathError):
            metadata.update({"a": 2, "__proto__": 1})
        with pytest.raises(MetadataPathError):
            metadata.parent.update({"a": 2, "__proto__": 1})
        with pytest.raises(MetadataValueError):
            metadata.extend("log", [1, object()])
        assert metadata.current() == {"a": 1}


# --- values -------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: tuple[int, ...]


class Model(BaseModel):
    name: str
    at: datetime


def test_values_become_json_when_the_call_is_made_M72_M75() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    mutable = [1, 2]
    with running() as (_, link):
        metadata.set("mutable", mutable).set("at", at).set("set", {3, 1, 2}).set("point", Point(1, (2, 3)))
        metadata.set("model", Model(name="m", at=at)).append("deque", deque([1])).set("range", range(3))
        metadata.set("id", UUID(int=1)).set("span", timedelta(days=1, seconds=2))
        mutable.append(3)
        before = metadata.current()
        assert before == {
            "mutable": [1, 2],
            "at": "2026-01-02T03:04:05.000006Z",
            "set": [1, 2, 3],
            "point": {"x": 1, "y": [2, 3]},
            "model": {"name": "m", "at": "2026-01-02T03:04:05.000006Z"},
            "deque": [[1]],
            "range": [0, 1, 2],
            "id": "00000000-0000-0000-0000-000000000001",
            "span": "P1DT2S",
        }
        metadata.flush()
        assert metadata.current() == before == link.server.document.value


def test_what_is_returned_is_a_copy_M3() -> None:
    with running({"list": [1]}):
        whole = metadata.current()
        assert whole is not None
        whole["list"].append(2)
        metadata.get("list").append(3)
        assert metadata.current() == {"list": [1]}


def test_bad_values_are_refused_with_their_place_M74() -> None:
    def function() -> None: ...

    with running(parent_id=PARENT):
        for updater in (metadata, metadata.parent):
            with pytest.raises(MetadataValueError, match=r"user\.callback: a function cannot be stored"):
                updater.set("user", {"callback": function})
            with pytest.raises(MetadataValueError, match=r"rows\[1\]\.x: NaN"):
                updater.append("rows", [{}, {"x": float("nan")}])
            with pytest.raises(MetadataValueError, match=r"log\[2\]"):
                updater.extend("log", [1, 2, float("inf")])
        assert metadata.current() == {}


def test_over_the_limit_raises_and_leaves_the_document_M85_fault_13() -> None:
    with running({"a": "x" * 80}, limit=100):
        with pytest.raises(MetadataTooLargeError) as caught:
            metadata.set("b", "y" * 50)
        error = caught.value
        assert (error.limit, error.key, error.largest_keys) == (100, "b", [("a", 82)])
        assert error.size > 100
        assert metadata.current() == {"a": "x" * 80}


# --- reading ------------------------------------------------------------------------------------------------


def test_get_and_defaults_M4() -> None:
    with running({"a": None}):
        assert metadata.get("a", 1) is None
        assert metadata.get("b") is None
        assert metadata.get("b", 1) == 1
        assert metadata.get("$.x.y", 2) == 2
        assert metadata.current() == {"a": None}
    with running():
        assert metadata.current() == {}


def test_own_writes_and_those_of_others_are_seen_M42_M66() -> None:
    with running() as (scope, link):
        metadata.set("mine", 1)
        link.server.write([Set("theirs", 1), Increment("n", 1)])
        scope.buffer.apply_delta(link.server.delta(0))  # pyright: ignore[reportArgumentType]
        metadata.increment("n")
        assert metadata.current() == {"mine": 1, "theirs": 1, "n": 2}
        metadata.flush()
        assert metadata.current() == {"mine": 1, "theirs": 1, "n": 2} == link.server.document.value


# --- outside a run ------------------------------------------------------------------------------------------


def test_outside_a_run_nothing_happens_M9_M10_M11_fault_10() -> None:
    assert metadata.current() is None
    assert metadata.current(Model) is None
    assert metadata.get("a") is None
    assert metadata.get("a", 5) == 5
    bad: Any = object()
    for updater in (metadata, metadata.parent, metadata.root, metadata.run("run_x")):
        chained = (
            updater.set("__proto__", bad)
            .append("a", bad)
            .extend("a", bad)
            .increment(bad, bad)
            .decrement(bad, bad)
            .remove("a", bad)
            .delete(bad)
            .del_(bad)
            .replace(bad)
            .update(bad)
        )
        assert chained is updater
        updater["a"] = bad
        del updater["a"]
    assert metadata.parent.get("a", 5) == 5
    assert "a" not in metadata
    assert metadata["a"] is None
    assert list(metadata) == []
    metadata.flush()
    assert metadata.refresh() is metadata
    items = [1, 2]
    assert metadata.track(items) is items
    assert metadata.bind(len) is len

    async def in_async() -> None:
        assert await metadata.parent.aget("a", 5) == 5
        await metadata.aflush()
        assert await metadata.arefresh() is metadata
        metadata.flush()

    asyncio.run(in_async())


def test_after_the_end_of_the_run_nothing_happens() -> None:
    with running() as (scope, link):
        scope.is_over = True
        metadata.set("a", object()).parent.set("a", 1)
        assert metadata.current() is None
        metadata.flush()
        assert link.woken == 0
        assert not scope.buffer.has_unacknowledged


# --- where it works -----------------------------------------------------------------------------------------


def test_callees_tasks_and_threads_M7_M8() -> None:
    async def child(name: str) -> None:
        await asyncio.sleep(0)
        metadata.increment("n").append("names", name)

    def numbers() -> Any:
        for index in range(3):
            metadata.increment("generated")
            yield index

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(child(name))
        await asyncio.create_task(child("d"))
        await asyncio.to_thread(metadata.set, "thread", True)
        assert list(numbers()) == [0, 1, 2]

    with running():
        asyncio.run(main())
        document = metadata.current()
        assert document is not None
        assert sorted(document.pop("names")) == ["a", "b", "c", "d"]
        assert document == {"n": 4, "thread": True, "generated": 3}


def test_bind_carries_the_run_into_threads_and_executors_M15() -> None:
    def work(name: str) -> str:
        metadata.append("names", name)
        return name

    async def work_async() -> None:
        metadata.set("async", True)

    with running():
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(metadata.bind(work), "abcd")) == list("abcd")
            assert pool.submit(work, "lost").result() == "lost"
            bound = metadata.bind(work_async)
            pool.submit(asyncio.run, bound()).result()
        assert sorted(metadata.get("names")) == list("abcd")
        assert metadata.get("async") is True
    assert current_scope.get() is None


def test_runs_in_one_process_do_not_see_each_other_M16() -> None:
    documents: dict[str, Any] = {}

    async def one(name: str) -> None:
        with running():
            for index in range(20):
                metadata.set("name", name).increment("n")
                await asyncio.sleep(0)
                assert metadata.get("name") == name
                assert metadata.get("n") == index + 1
            documents[name] = metadata.current()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(20):
                group.create_task(one(f"run {index}"))

    asyncio.run(main())
    assert documents == {f"run {index}": {"name": f"run {index}", "n": 20} for index in range(20)}


def test_calls_are_thread_safe_M15() -> None:
    def work() -> None:
        for _ in range(500):
            metadata.increment("n")
            metadata.parent.increment("n")

    with running(parent_id=PARENT) as (scope, link):
        threads = [threading.Thread(target=metadata.bind(work)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            deliver(scope.buffer, link.server)
        deliver(scope.buffer, link.server)
        assert metadata.get("n") == 4000
        assert link.server.document.value == {"n": 4000}
        assert effect_of(link.server.others[PARENT]) == {"n": 4000}


# --- delivery -----------------------------------------------------------------------------------------------


def test_the_link_is_woken_once_until_a_batch_is_taken() -> None:
    with running(parent_id=PARENT) as (scope, link):
        for _ in range(100):
            metadata.set("a", 1).parent.set("a", 1)
            metadata.update({"b": 1})
        assert link.woken == 1
        scope.buffer.next_batch()
        metadata.set("a", 2)
        assert link.woken == 2


def test_flush_raises_what_was_refused_since_the_last_one_M37() -> None:
    with running({"n": 1}) as (_, link):
        metadata.remove("n", 1).set("a", 1)
        with pytest.raises(MetadataFlushError) as caught:
            metadata.flush()
        [refused] = caught.value.refused
        assert refused.code == MetadataTypeError.code
        assert link.server.document.value == {"n": 1, "a": 1}
        metadata.flush()
        metadata.remove("n", 1)

        async def main() -> None:
            with pytest.raises(MetadataFlushError):
                await metadata.aflush()
            await metadata.aflush()

        asyncio.run(main())


def test_flush_gives_up_after_its_timeout_and_keeps_everything() -> None:
    with running() as (scope, link):
        link.is_down = True
        metadata.set("a", 1)
        with pytest.raises(TimeoutError, match="stays on its way"):
            metadata.flush(timeout=0.01)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await metadata.aflush(timeout=0.01)
            assert not link.flushes[-1].cancelled()

        asyncio.run(main())
        assert scope.buffer.has_unacknowledged
        link.is_down = False
        metadata.flush()
        assert link.server.document.value == {"a": 1}


def test_flush_with_nothing_to_send_asks_nobody() -> None:
    with running() as (_, link):
        link.is_down = True
        metadata.flush()
        asyncio.run(metadata.aflush())
        assert link.flushes == []


def test_blocking_forms_on_the_workers_loop_name_the_right_one() -> None:
    async def main() -> None:
        with running(parent_id=PARENT) as (scope, _):
            scope.loop_thread_id = threading.get_ident()
            with pytest.raises(UsageError, match=r"await metadata\.aflush"):
                metadata.flush()
            with pytest.raises(UsageError, match=r"await metadata\.arefresh"):
                metadata.refresh()
            with pytest.raises(UsageError, match="aget"):
                metadata.parent.get("a")
            # In another thread they are fine, also when that thread has a loop of its own.
            await asyncio.to_thread(metadata.flush)
            await asyncio.to_thread(lambda: asyncio.run(_flush_in_own_loop()))

    async def _flush_in_own_loop() -> None:
        metadata.set("a", 1)
        metadata.flush()

    asyncio.run(main())


def test_an_error_of_the_link_reaches_the_one_who_waits() -> None:
    with running() as (_, link):
        failed: Future[None] = Future()
        failed.set_exception(RuntimeError("the run is lost"))
        link.flush = lambda scope: failed  # type: ignore[method-assign]
        metadata.set("a", 1)
        with pytest.raises(RuntimeError, match="lost"):
            metadata.flush()


# --- parent and root ----------------------------------------------------------------------------------------


def test_parent_root_and_run_write_to_their_documents_M60_to_M63() -> None:
    with running(parent_id=PARENT, root_id="run_root") as (_, link):
        metadata.parent.set("status", "x").increment("n").append("log", 1).decrement("n", 3)
        metadata.root.increment("n")
        metadata.run("run_uncle").set("a", 1)
        metadata.set("own", 1)
        metadata.flush()
        assert effect_of(link.server.others[PARENT]) == {"status": "x", "n": -2, "log": [1]}
        assert link.server.others["run_root"] == [Increment("n", 1)]
        assert link.server.others["run_uncle"] == [Set("a", 1)]
        assert link.server.document.value == {"own": 1}


def test_without_a_parent_they_are_the_run_itself_M64() -> None:
    with running(parent_id=None, root_id=""):
        metadata.parent.set("a", 1)
        metadata.root.increment("n")
        metadata.run(RUN).set("b", 2)
        assert metadata.current() == {"a": 1, "n": 1, "b": 2}
        assert metadata.parent.get("a") == 1
        assert asyncio.run(metadata.root.aget("n")) == 1


def test_parent_is_resolved_at_each_call_M60() -> None:
    parent = metadata.parent
    for name in ("run_one", "run_two"):
        with running(parent_id=name) as (_, link):
            parent.set("a", 1)
            metadata.flush()
            assert link.server.others == {name: [Set("a", 1)]}


def test_what_no_document_can_hold_is_reported_and_not_sent_M85() -> None:
    with running(limit=100, parent_id=PARENT) as (_, link):
        metadata.parent.set("big", "x" * 200).set("small", 1).append("big", ["x" * 200])
        with pytest.raises(MetadataFlushError) as caught:
            metadata.flush()
        assert [item.code for item in caught.value.refused] == [MetadataTooLargeError.code] * 2
        assert caught.value.refused[0].run_id == PARENT
        assert link.server.others == {PARENT: [Set("small", 1)]}
        assert [level for level, _, _ in link.lines] == ["error", "error"]
        assert PARENT in link.lines[0][1]


# --- track --------------------------------------------------------------------------------------------------


def test_track_counts_finished_items() -> None:
    with running():
        seen: list[Any] = []
        for item in metadata.track(["a", "b"]):
            seen.append((item, metadata.get("progress")))
        assert seen == [("a", {"done": 0, "total": 2}), ("b", {"done": 1, "total": 2})]
        assert metadata.get("progress") == {"done": 2, "total": 2}
        assert list(metadata.track((x for x in range(3)), key="$.deep.count")) == [0, 1, 2]
        assert metadata.get("$.deep.count") == {"done": 3, "total": None}


def test_track_stops_where_the_loop_stops() -> None:
    with running():
        for item in metadata.track(range(10)):
            if item == 3:
                break
        assert metadata.get("progress") == {"done": 3, "total": 10}


def test_track_takes_async_iterables() -> None:
    async def numbers() -> AsyncIterator[int]:
        for index in range(3):
            yield index

    async def main() -> None:
        with running():
            assert [item async for item in metadata.track(numbers())] == [0, 1, 2]
            assert metadata.get("progress") == {"done": 3, "total": None}

    asyncio.run(main())


def test_appends_of_many_items_stay_apart() -> None:
    with running() as (_, link):
        for index in range(100):
            metadata.append("log", index)
        metadata.flush()
        assert link.server.steps[0].operations == [Append("log", index) for index in range(100)]
