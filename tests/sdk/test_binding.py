"""Carrying a run into threads and child processes (M15): every kind of function, and the moments of a fork."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.scripted import Answer, Asked, Drop, ScriptedServer, scripted
from client.test_interruptions import HANG_SECONDS, ended
from milepost import MetadataFlushError, UsageError, configure, metadata
from milepost.client import retries
from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.operations import Operation
from milepost.sdk import binding, child_process
from milepost.sdk.scope import current_scope
from sdk.here import running
from sdk.model_server import ATTEMPT, PARENT, RUN
from sdk.test_interruptions import Interruption

# Forking a process that has threads draws a warning from Python 3.12 on; it is what users do nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Documents:
    """The metadata endpoint of a server: one document per run, each request id answered once."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.documents: dict[str, Document] = {}
        self.answers: dict[str, Answer] = {}
        self.lost_replies = 0
        self.attempts: set[str] = set()
        server.answer = self

    def __call__(self, asked: Asked) -> Answer:
        assert asked.method == "PUT"
        self.attempts.add(asked.headers["x-milepost-attempt"])
        run_id = asked.path.split("/")[-2]
        document = self.documents.setdefault(run_id, Document())
        request_id = asked.headers["x-trigger-request-idempotency-key"]
        if request_id not in self.answers:
            refused: list[dict[str, Any]] = []
            for index, operation in enumerate(msgspec.convert(asked.body["operations"], list[Operation])):
                try:
                    document.apply(operation)
                except MetadataError as error:
                    refused.append(
                        {"run": run_id, "index": index, "code": error.code, "message": error.message}
                    )
            document.version += 1
            body = {"metadata": document.copy_value(), "version": document.version, "refused": refused}
            self.answers[request_id] = Answer(200, body)
            if self.lost_replies:
                self.lost_replies -= 1
                raise Drop
        return self.answers[request_id]


@pytest.fixture
def documents() -> Iterator[Documents]:
    with scripted() as server:
        configure(api_url=server.url, secret_key="key")
        yield Documents(server)
        configure()


def configure_child(url: str) -> None:
    configure(api_url=url, secret_key="key")


def work(index: int) -> Any:
    """Runs in a child process."""
    before = metadata.get("before")
    metadata.increment("n").append("log", index).parent.increment("children")
    metadata.root.increment("children")
    return before, metadata.get("n") > 0, metadata.current() is not None


def unbound() -> Any:
    metadata.set("lost", 1)
    return metadata.current(), current_scope.get() is None


def flush_in_child() -> list[str]:
    metadata.set("text", "x").run("run_uncle").increment("text")
    metadata.flush()
    metadata.run("run_uncle").set("text", "y").increment("text")
    try:
        metadata.flush()
    except MetadataFlushError as error:
        return [item.run_id for item in error.refused]
    return []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pools_take_bound_functions(documents: Documents, method: str) -> None:
    context = multiprocessing.get_context(method)
    url = documents.server.url
    documents.documents[RUN] = Document({"before": "set"})
    with running({"before": "set"}, parent_id=PARENT, root_id="run_root"):
        with ProcessPoolExecutor(2, mp_context=context, initializer=configure_child, initargs=(url,)) as pool:
            results = list(pool.map(metadata.bind(work), range(20)))
            assert pool.submit(unbound).result() == (None, True)
    assert results == [("set", True, True)] * 20
    assert documents.documents[RUN].value["n"] == 20
    assert sorted(documents.documents[RUN].value["log"]) == list(range(20))  # type: ignore[type-var, arg-type]
    assert documents.documents[PARENT].value == {"children": 20}
    assert documents.documents["run_root"].value == {"children": 20}
    # Whoever is part of a run says so, and the server holds it to the ancestors of that run.
    assert documents.attempts == {f"{RUN}:{ATTEMPT}"}


def test_a_forked_process_takes_a_bound_function_and_flushes(documents: Documents) -> None:
    with running():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(metadata.bind(flush_in_child)).result() == ["run_uncle"]
    assert documents.documents[RUN].value == {"text": "x"}
    assert documents.documents["run_uncle"].value == {"text": "y"}


def test_lost_replies_double_nothing(documents: Documents) -> None:
    documents.lost_replies = 2
    with running():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(metadata.bind(work), 1).result()
    assert documents.documents[RUN].value == {"n": 1, "log": [1], "children": 2}


def test_a_server_that_is_away_holds_nobody_up_for_ever(
    documents: Documents, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_process, "_process", child_process.Process())
    monkeypatch.setattr(child_process, "FAREWELL_SECONDS_MAX", 0.05)
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)

    def drop(asked: Asked) -> Answer:
        raise Drop

    documents.server.answer = drop
    with running() as (scope, _):
        carried = child_process.carry(scope, is_copy=False)
    # As in a child process, but here, where the log can be seen.
    binding.Bound(None, work, carried)(1)
    assert "could not be committed" in caplog.text
    documents.server.answer = documents
    monkeypatch.setattr(child_process, "FAREWELL_SECONDS_MAX", 30)
    binding.Bound(None, work, carried)(2)
    assert documents.documents[RUN].value == {"n": 2, "log": [1, 2], "children": 4}


# --- every kind of function ------------------------------------------------------------------------------


def in_a_thread(work: Callable[[], Any]) -> Any:
    """The result of the work in a plain thread, which knows of no run."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(20)


def counts(n: int = 3) -> int:
    for _ in range(n):
        metadata.increment("n")
    return n


def generates(n: int = 3) -> Generator[int, None, str]:
    for index in range(n):
        metadata.increment("n")
        yield index
    return "end"


async def counts_async(n: int = 3) -> int:
    for _ in range(n):
        metadata.increment("n")
        await asyncio.sleep(0)
    return n


async def generates_async(n: int = 3) -> AsyncIterator[int]:
    for index in range(n):
        metadata.increment("n")
        yield index
        await asyncio.sleep(0)


class Counts:
    def __call__(self, n: int = 3) -> int:
        return counts(n)

    def method(self, n: int = 3) -> Generator[int, None, str]:
        return generates(n)


class CountsAsync:
    async def __call__(self, n: int = 3) -> int:
        return await counts_async(n)


class GeneratesLater(CountsAsync):
    """Inherits what makes it a coroutine function."""


@types.coroutine
def counts_in_the_old_way(n: int = 3) -> Generator[Any, Any, int]:
    yield from counts_async(n).__await__()
    return n


def one(_: int) -> int:
    metadata.increment("n")
    return 1


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


KINDS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "function": (counts, lambda result: result),
    "object": (Counts(), lambda result: result),
    "partial": (functools.partial(counts, 3), lambda result: result),
    "lambda": (lambda: counts(), lambda result: result),
    "generator": (generates, list),
    "generator of a method": (Counts().method, list),
    "generator of a partial": (functools.partial(generates, n=3), list),
    "generator of a lambda": (lambda: (one(index) for index in range(3)), list),
    "map": (lambda: map(one, range(3)), list),
    "chain": (lambda: itertools.chain(map(one, range(2)), generates(1)), list),
    "coroutine": (counts_async, asyncio.run),
    "coroutine of a lambda": (lambda: counts_async(3), asyncio.run),
    "coroutine of a partial": (functools.partial(counts_async, n=3), asyncio.run),
    "coroutine of an object": (CountsAsync(), asyncio.run),
    "coroutine, inherited": (GeneratesLater(), asyncio.run),
    "coroutine of a generator": (counts_in_the_old_way, asyncio.run),
    "async generator": (generates_async, lambda result: asyncio.run(collected(result))),
    "async generator of a lambda": (
        lambda: generates_async(3),
        lambda result: asyncio.run(collected(result)),
    ),
}


@pytest.mark.parametrize(("function", "use"), KINDS.values(), ids=list(KINDS))
def test_every_kind_of_function_is_bound_for_a_thread(
    function: Callable[..., Any], use: Callable[[Any], Any]
) -> None:
    """The run is the current one whenever the body runs, not only during the call."""
    with running() as (scope, _):
        bound = metadata.bind(function)
        expected = in_a_thread(lambda: use(function()))
        assert scope.buffer.get("n") is None
        assert in_a_thread(lambda: use(bound())) == expected
        assert scope.buffer.get("n") == 3
        assert in_a_thread(lambda: (use(bound()), metadata.current())[1]) is None


def test_a_bound_function_says_what_it_is() -> None:
    with running():
        for function in (counts, generates, counts_async, generates_async, functools.partial(counts_async)):
            bound = metadata.bind(function)
            for asks in (
                inspect.iscoroutinefunction,
                inspect.isgeneratorfunction,
                inspect.isasyncgenfunction,
                asyncio.iscoroutinefunction,
            ):
                assert asks(bound) == asks(function)
            assert inspect.signature(bound) == inspect.signature(function)
        assert inspect.iscoroutinefunction(metadata.bind(CountsAsync()))
        assert metadata.bind(counts).__name__ == "counts"
        assert metadata.bind(print)("") is None


def test_who_iterates_over_a_bound_generator_stays_in_its_own_run() -> None:
    with running() as (outer, _):
        with running(id="run_inner", root_id="run_inner") as (inner, _):
            bound, abound = metadata.bind(generates), metadata.bind(generates_async)
        for _ in bound():
            metadata.increment("outer")
            assert current_scope.get() is outer

        async def iterate() -> None:
            async for _ in abound():
                metadata.increment("outer")
                assert current_scope.get() is outer

        asyncio.run(iterate())
        assert outer.buffer.current() == {"outer": 6}
        assert inner.buffer.current() == {"n": 6}


def echoes() -> Generator[Any, Any, Any]:
    """Does whatever it is told, so that a wrapper around it can be compared with it."""
    told: Any = "begun"
    while True:
        try:
            told = yield told
            if told == "return":
                return "returned"
            if told == "raise":
                raise LookupError("own")
        except KeyError as error:
            told = f"caught {error}"
        except GeneratorExit:
            metadata.increment("closed")
            raise


async def echoes_async() -> AsyncGenerator[Any, Any]:
    told: Any = "begun"
    while True:
        try:
            told = yield told
            if told == "return":
                return
            if told == "raise":
                raise LookupError("own")
        except KeyError as error:
            told = f"caught {error}"
        except GeneratorExit:
            metadata.increment("closed")
            raise


STEPS: list[tuple[str, Any]] = [
    ("send", None),
    ("send", "a"),
    ("throw", KeyError("k")),
    ("throw", ValueError("v")),
    ("throw", StopIteration()),
    ("send", "return"),
    ("send", "raise"),
    ("close", None),
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(STEPS), max_size=6))
def test_a_bound_generator_does_what_the_generator_does(steps: list[tuple[str, Any]]) -> None:
    def drive(generator: Any) -> list[Any]:
        seen: list[Any] = []
        for name, value in steps:
            try:
                seen.append(getattr(generator, name)(*([] if name == "close" else [value])))
            except StopIteration as stop:
                seen.append(("stop", stop.value))
            except Exception as error:
                seen.append((type(error), str(error)))
        return seen

    async def adrive(generator: Any) -> list[Any]:
        seen: list[Any] = []
        for name, value in steps:
            try:
                seen.append(await getattr(generator, f"a{name}")(*([] if name == "close" else [value])))
            except StopAsyncIteration:
                seen.append("stop")
            except Exception as error:
                seen.append((type(error), str(error)))
        return seen

    with running():
        bound, abound = metadata.bind(echoes), metadata.bind(echoes_async)
        assert in_a_thread(lambda: drive(bound())) == drive(echoes())
        assert in_a_thread(lambda: asyncio.run(adrive(abound()))) == asyncio.run(adrive(echoes_async()))
        gc.collect()


def test_a_coroutine_that_is_given_up_leaves_the_run_and_nothing_behind() -> None:
    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            metadata.increment("ended")

    async def give_up() -> None:
        task = asyncio.create_task(bound())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with running() as (scope, _):
        bound = metadata.bind(waits)
        in_a_thread(lambda: asyncio.run(give_up()))
        assert scope.buffer.get("ended") == 1


# --- child processes, once more ----------------------------------------------------------------------------


def consume(url: str, make: Callable[..., Any], connection: Connection) -> None:
    """The target of a process: it was not bound itself, but got something that was."""
    configure_child(url)
    result = make()
    if isinstance(result, AsyncGenerator):
        connection.send(asyncio.run(collected(result)))
    elif inspect.isawaitable(result):
        connection.send(asyncio.run(cast("Any", result)))
    else:
        connection.send(list(result))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("function", [generates, counts_async, generates_async, CountsAsync()])
def test_a_child_process_waits_for_the_end_of_the_body(
    documents: Documents, method: str, function: Callable[..., Any]
) -> None:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    with running():
        process = context.Process(target=consume, args=(documents.server.url, metadata.bind(function), there))
        process.start()
        assert here.poll(60)
        here.recv()
        process.join(60)
    assert process.exitcode == 0
    assert documents.documents[RUN].value == {"n": 3}


def test_what_cannot_be_pickled_says_so_itself() -> None:
    with running(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
            pool.submit(metadata.bind(lambda: None)).result(60)


@pytest.mark.parametrize("rounds", [20])
def test_a_forked_child_does_not_hang_while_other_threads_write(documents: Documents, rounds: int) -> None:
    context = multiprocessing.get_context("fork")
    is_over = threading.Event()

    def write() -> None:
        index = 0
        while not is_over.is_set():
            index += 1
            metadata.set("status", index).append("capped", "x" * 100, max_items=50).update(
                {"a": index, "b": index}
            )
            metadata.parent.increment("n")

    with running({"before": 1}, parent_id=PARENT):
        threads = [threading.Thread(target=metadata.bind(write), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            children = [context.Process(target=metadata.bind(check_in_child)) for _ in range(rounds)]
            for child in children:
                child.start()
                child.join(30)
                assert child.exitcode == 0
        finally:
            is_over.set()
        for thread in threads:
            thread.join(30)
    assert documents.documents[RUN].value == {"children": rounds}


def check_in_child() -> None:
    document = metadata.current()
    assert document is not None
    assert document["before"] == 1
    assert document.get("a") == document.get("b")
    assert len(document.get("capped", [])) <= 50
    metadata.increment("children")


def test_a_child_that_is_forked_in_the_middle_of_a_call_sees_a_whole_document(documents: Documents) -> None:
    """The thread that was in the middle is not there to end it."""
    at = 0
    while True:
        is_inside, goes_on = threading.Event(), threading.Event()

        def stop(is_inside: threading.Event = is_inside, goes_on: threading.Event = goes_on) -> None:
            is_inside.set()
            assert goes_on.wait(HANG_SECONDS)

        interruption = Interruption(at, stop)

        def write(interruption: Interruption = interruption) -> None:
            sys.settrace(interruption.begin)
            metadata.update({"a": 1, "b": 1, "list": [1]}).append("capped", 4, max_items=3)
            sys.settrace(None)

        with running({"before": 1, "a": 0, "b": 0, "capped": [1, 2, 3]}):
            thread = threading.Thread(target=metadata.bind(write), daemon=True)
            check = metadata.bind(check_whole)
            thread.start()
            while not is_inside.wait(0.01):
                if not thread.is_alive():
                    assert at > 100
                    return
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    check()
                    os._exit(0)
                os._exit(1)
            goes_on.set()
            thread.join(HANG_SECONDS)
            assert ended(child), f"forked at instruction {at}"
        at += 23


def check_whole() -> None:
    document = metadata.current()
    assert document is not None
    assert document["a"] == document["b"]
    assert document["capped"] in ([1, 2, 3], [2, 3, 4])
    assert metadata.get("before") == 1
    metadata.increment("children")


def test_a_process_of_a_pool_keeps_no_more_runs_than_it_may(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "_process", child_process.Process())
    monkeypatch.setattr(child_process, "SCOPES_KEPT_MAX", 3)
    for index in range(10):
        with running(id=f"run_{index}", root_id=f"run_{index}") as (scope, _):
            carried = child_process.carry(scope, is_copy=False)
        binding.Bound(None, counts, carried)(2)
        assert len(child_process.this_process().scopes) <= 3
    assert {run_id: document.value for run_id, document in documents.documents.items()} == {
        f"run_{index}": {"n": 2} for index in range(10)
    }


def test_a_finalizer_in_the_thread_of_the_link_waits_for_nothing(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "_process", child_process.Process())
    raised: list[BaseException] = []
    with running() as (scope, _):
        carried = child_process.carry(scope, is_copy=False)

    def work() -> None:
        metadata.increment("n")
        link = cast("Any", current_scope.get()).link
        flush, increment = metadata.bind(metadata.flush), metadata.bind(metadata.increment)

        def finalizer(*_: Any) -> None:
            try:
                increment("in_link")
                flush()
            except BaseException as error:
                raised.append(error)

        monkeypatch.setattr(
            link, "_answer_flushes", lambda answer=link._answer_flushes: (finalizer_once(finalizer), answer())
        )
        metadata.flush(20)

    called: list[int] = []

    def finalizer_once(finalizer: Callable[[], None]) -> None:
        if not called:
            called.append(1)
            finalizer()

    binding.Bound(None, work, carried)()
    assert [type(error) for error in raised] == [UsageError]
    assert documents.documents[RUN].value == {"n": 1, "in_link": 1}
