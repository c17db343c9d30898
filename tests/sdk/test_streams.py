"""Writing streams: what comes out of a task's sources, appends and writers, and what the code inside gets (M50-M59)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from milepost import (
    Retry,
    StreamChunkTooLargeError,
    StreamStoppedError,
    StreamValueError,
    UsageError,
    metadata,
    streams,
    task,
)
from milepost.errors import InvalidRequestError
from milepost.protocol.streams import CHUNK_BYTES_MAX, PartReply
from milepost.sdk import child_process, streams_outlet, streams_pipes
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope, current_scope
from sdk.here import claimed
from sdk.model_server import RUN
from support.streams import StreamLink

SECONDS_MAX = 20.0


class Here:
    """Runs one attempt after the other against a store."""

    def __init__(self) -> None:
        self.link = StreamLink()
        self.outcome: Any = None

    def scope(self, **fields: Any) -> RunScope:
        run = claimed(**fields)
        return RunScope(run, Buffer.of(run, limit=262_144), self.link)

    def run(self, function: Callable[[], Any], **fields: Any) -> Any:
        """Run a function as a task; its output as it was returned, or the error that ended it, as its name and message."""
        result: list[Any] = []

        if asyncio.iscoroutinefunction(function):

            @task(id=f"t{time.monotonic_ns()}", retry=Retry(max_attempts=1))
            async def body() -> None:
                result.append(await function())
        else:

            @task(id=f"t{time.monotonic_ns()}", retry=Retry(max_attempts=1))
            def body() -> None:
                result.append(function())

        scope = self.scope(**fields)
        if needs_loop(body):
            self.outcome = asyncio.run(run_attempt(body, scope.run, scope))
        else:
            self.outcome = run_attempt_in_thread(body, scope.run, scope)
        function = None  # type: ignore[assignment]
        self.link.finish(scope)
        if self.outcome.error is not None:
            return self.outcome.error.name, self.outcome.error.message
        return result[0]

    def values(self, key: str, run: str = RUN) -> list[Any]:
        return self.link.store.values(run, key)

    def ends(self, key: str, run: str = RUN) -> list[str | None]:
        return self.link.store.end_of(run, key)


@pytest.fixture
def here() -> Iterator[Here]:
    here = Here()
    yield here
    here.link.stop()


def count(number: int) -> Iterator[int]:
    yield from range(number)


async def acount(number: int) -> AsyncIterator[int]:
    for each in range(number):
        yield each


# --- what is read here and what readers get ------------------------------------------------------------------


def test_a_plain_source_gives_the_same_values_to_the_task_and_to_readers(here: Here) -> None:
    class Token(BaseModel):
        text: str

    tokens = [Token(text=str(number)) for number in range(1000)]

    def body() -> bool:
        captured = metadata.stream("tokens", iter(tokens))
        assert not hasattr(captured, "__aiter__")
        return all(given is token for given, token in zip(captured, tokens, strict=True))

    assert here.run(body) is True
    assert here.values("tokens") == [{"text": str(number)} for number in range(1000)]
    assert here.ends("tokens") == [None]


def test_an_async_source_gives_the_same_values_to_the_task_and_to_readers(here: Here) -> None:
    async def body() -> list[int]:
        captured = streams.pipe("n", acount(1000))
        assert not hasattr(captured, "__iter__")
        return [value async for value in captured]

    assert here.run(body) == list(range(1000))
    assert here.values("n") == list(range(1000))
    assert here.ends("n") == [None]


@pytest.mark.parametrize("read", [0, 1, 3, 10])
@pytest.mark.parametrize("leaves", ["breaks", "closes", "drops", "keeps"])
def test_what_is_not_read_here_is_captured_all_the_same_M52(here: Here, read: int, leaves: str) -> None:
    def body() -> list[int]:
        captured = metadata.stream("n", count(10))
        taken: list[int] = []
        if leaves == "breaks":
            for value in captured:
                if len(taken) == read:
                    break
                taken.append(value)
        else:
            taken += [next(captured) for _ in range(read)]
        if leaves == "closes":
            captured.close()  # type: ignore[attr-defined]
        elif leaves == "keeps":
            globals()["_kept"] = captured
        return taken

    try:
        assert here.run(body) == list(range(read))
    finally:
        globals().pop("_kept", None)
    assert here.values("n") == list(range(10))
    assert here.ends("n") == [None]


@pytest.mark.parametrize("read", [0, 1, 3, 10])
@pytest.mark.parametrize("leaves", ["breaks", "closes", "drops", "keeps"])
def test_what_is_not_read_here_is_captured_all_the_same_on_the_loop(
    here: Here, read: int, leaves: str
) -> None:
    async def body() -> list[int]:
        captured = metadata.stream("n", acount(10))
        taken: list[int] = []
        if leaves == "breaks":
            async for value in captured:
                if len(taken) == read:
                    break
                taken.append(value)
        else:
            taken += [await anext(captured) for _ in range(read)]
        if leaves == "closes":
            await captured.aclose()  # type: ignore[attr-defined]
        elif leaves == "keeps":
            globals()["_kept"] = captured
        return taken

    try:
        assert here.run(body) == list(range(read))
    finally:
        globals().pop("_kept", None)
    assert here.values("n") == list(range(10))
    assert here.ends("n") == [None]


def test_a_reader_that_comes_late_gets_everything(here: Here) -> None:
    def body() -> tuple[list[int], list[int]]:
        captured = metadata.stream("n", count(10))
        wait_until(lambda: here.values("n") == list(range(10)))
        first = [next(captured) for _ in range(3)]
        return first, list(captured)

    assert here.run(body) == ([0, 1, 2], list(range(3, 10)))
    assert here.values("n") == list(range(10))


def test_a_reader_that_comes_late_pulls_again_itself(here: Here) -> None:
    threads: list[int] = []
    more = threading.Event()

    def source() -> Iterator[int]:
        for number in range(3):
            threads.append(threading.get_ident())
            yield number
        more.wait(SECONDS_MAX)
        for number in range(3, 6):
            threads.append(threading.get_ident())
            yield number

    def body() -> list[int]:
        captured = metadata.stream("n", source())
        wait_until(lambda: len(threads) == 3)
        taken = [next(captured)]
        more.set()
        return [*taken, *captured, threading.get_ident()]

    *values, own = here.run(body)
    assert values == here.values("n") == list(range(6))
    assert own not in threads[:3]
    # The thread was on its way to one value, and gave the source back behind it.
    assert threads[4:] == [own, own]


def test_a_reader_that_stops_and_another_one_together_see_everything_once(here: Here) -> None:
    def body() -> list[int]:
        captured = metadata.stream("n", count(200))
        taken: list[int] = []
        for part in range(4):
            for value in captured:
                taken.append(value)
                if len(taken) % 50 == 0:
                    break
            time.sleep(0.08 if part % 2 else 0)
        return taken

    assert here.run(body) == list(range(200))
    assert here.values("n") == list(range(200))


def test_several_threads_read_one_source(here: Here) -> None:
    def body() -> list[int]:
        captured = metadata.stream("n", count(2000))
        taken: list[int] = []

        def read() -> None:
            for value in captured:
                taken.append(value)

        threads = [threading.Thread(target=metadata.bind(read)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS_MAX)
        return sorted(taken)

    assert here.run(body) == list(range(2000))
    assert here.values("n") == list(range(2000))


def test_a_reader_that_is_cancelled_does_not_end_the_source(here: Here) -> None:
    gate = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        async with asyncio.timeout(SECONDS_MAX):
            await gate.wait()
            yield 2
        yield 3

    async def body() -> list[int]:
        captured = metadata.stream("n", source())
        taken = [await anext(captured)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(captured), 0.02)
        gate.set()
        return taken + [value async for value in captured]

    assert here.run(body) == [1, 2, 3]
    assert here.values("n") == [1, 2, 3]


def test_a_slow_reader_slows_an_async_source(here: Here) -> None:
    pulled: list[int] = []

    async def source() -> AsyncIterator[int]:
        for number in range(1000):
            pulled.append(number)
            yield number

    async def body() -> int:
        captured = metadata.stream("n", source())
        await anext(captured)
        await asyncio.sleep(0.05)
        return len(pulled)

    assert here.run(body) <= 2 * streams_pipes.AHEAD_MAX
    assert here.values("n") == list(range(1000))


def test_a_source_sees_the_context_of_the_task(here: Here) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")

    def source() -> Iterator[str]:
        metadata.increment("pulled")
        yield name.get()

    def body() -> Any:
        name.set("set")
        metadata.stream("n", source())
        wait_until(lambda: here.values("n"))
        return metadata.get("pulled")

    assert here.run(body) == 1
    assert here.values("n") == ["set"]


def test_an_async_source_of_a_plain_task_is_read_by_any_loop_or_none(here: Here) -> None:
    def body() -> list[int]:
        streams.pipe("unread", acount(5))

        async def read(captured: AsyncIterator[int]) -> list[int]:
            return [value async for value in captured]

        return asyncio.run(read(streams.pipe("read", acount(5))))

    assert here.run(body) == here.values("read") == here.values("unread") == list(range(5))


def test_more_than_can_be_kept_is_told_to_a_reader_that_comes_too_late(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_pipes, "KEPT_VALUES_MAX", 100)

    def body() -> int:
        captured = metadata.stream("n", count(1000))
        wait_until(lambda: len(here.values("n")) == 1000)
        return next(captured)

    name, message = here.run(body)
    assert name == "UsageError"
    assert "came too late" in message
    assert here.values("n") == list(range(1000))


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1])
def test_an_error_of_the_source_is_the_readers_own_and_readers_elsewhere_get_its_message(
    here: Here, after: int
) -> None:
    class Broken(Exception):
        pass

    error = Broken("it broke")

    def source() -> Iterator[int]:
        yield from range(after)
        raise error

    async def asource() -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise error

    def body() -> bool:
        with pytest.raises(Broken) as caught:
            list(metadata.stream("plain", source()))
        return caught.value is error

    async def abody() -> bool:
        with pytest.raises(Broken) as caught:
            async for _ in metadata.stream("async", asource()):
                pass
        return caught.value is error

    assert here.run(body) is True
    assert here.run(abody) is True
    ends = list(here.link.store.ends.values())
    assert ends == ["Broken: it broke"] * 2
    assert not here.link.lines


def test_an_error_that_nobody_sees_is_in_the_log(here: Here) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    async def asource() -> AsyncIterator[int]:
        yield 1
        raise ValueError("x")

    def body() -> None:
        metadata.stream("n", source())

    async def abody() -> None:
        metadata.stream("a", asource())

    here.run(body)
    here.run(abody)
    assert here.values("n") == here.values("a") == [1]
    assert here.ends("n") == ["SystemExit: 3"]
    assert here.ends("a") == ["ValueError: x"]
    assert [(level, "its source has failed" in line) for level, line in here.link.lines] == [
        ("error", True)
    ] * 2


BAD: list[tuple[Any, type[Exception], str]] = [
    (float("nan"), StreamValueError, "NaN"),
    (lambda: 1, StreamValueError, "a function"),
    ({"a": [object()]}, StreamValueError, "chunk.a[0]"),
    ("x" * 5_000_000, StreamChunkTooLargeError, "5,000,002 bytes"),
    (b"\xff" * 1_000_000, StreamChunkTooLargeError, "1,048,576"),
    ("\ud800", StreamValueError, "surrogate"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD)
def test_a_value_that_cannot_be_a_chunk_stops_the_source(
    here: Here, bad: Any, kind: type[Exception], message: str
) -> None:
    closed: list[str] = []

    def source() -> Iterator[Any]:
        try:
            yield 1
            yield bad
            yield 2
        finally:
            closed.append("plain")

    async def asource() -> AsyncIterator[Any]:
        try:
            yield 1
            yield bad
            yield 2
        finally:
            closed.append("async")

    def body() -> str:
        with pytest.raises(kind) as caught:
            list(metadata.stream("a/b", source()))
        with pytest.raises(kind):
            streams.append("x", bad)
        with streams.writer("y") as write:
            write(1)
            with pytest.raises(kind):
                write(bad)
            write(2)
        return str(caught.value)

    async def abody() -> str:
        with pytest.raises(kind) as caught:
            async for _ in metadata.stream("a/b", asource()):
                pass
        return str(caught.value)

    for text in (here.run(body), here.run(abody)):
        assert message in text
        assert "a/b" in text
    assert closed == ["plain", "async"]
    assert here.values("a/b") == [1, 1]
    assert here.values("y") == [1, 2]
    assert all(message in str(end) for end in here.ends("a/b"))
    assert here.ends("y") == [None]


@pytest.mark.parametrize("source", ["text", b"bytes", 5, None, object(), asyncio.sleep])
def test_what_is_no_source_is_refused(here: Here, source: Any) -> None:
    def body() -> None:
        metadata.stream("n", source)

    name, message = here.run(body)
    assert name == "UsageError"
    assert message.startswith("stream 'n': ")


@pytest.mark.parametrize("key", ["", "x" * 257, "a\nb", "\ud800", 5, None])
def test_a_key_that_cannot_be_is_refused(here: Here, key: Any) -> None:
    def body() -> list[type]:
        raised: list[type] = []
        for call in (
            lambda: metadata.stream(key, count(1)),
            lambda: streams.append(key, 1),
            lambda: streams.writer(key),
            lambda: streams.define(key, int),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                call()
            assert "key of a stream" in str(caught.value)
            raised.append(caught.type)
        return raised

    assert len(here.run(body)) == 4
    assert not here.link.store.known


def test_a_key_of_256_characters_with_slashes_is_fine(here: Here) -> None:
    key = "a/ü" * 85 + "/"

    def body() -> None:
        streams.append(key, 1)

    here.run(body)
    assert here.values(key) == [1]


# --- the end of the attempt ----------------------------------------------------------------------------------


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
        time.sleep(0.001)


def test_an_attempt_that_fails_before_its_source_has_begun_ends_at_once(here: Here) -> None:
    async def body() -> None:
        metadata.stream("a", acount(5))
        raise ValueError("no more")

    began = time.monotonic()
    assert here.run(body)[0] == "ValueError"
    assert time.monotonic() - began < 4
    assert list(here.link.store.ends.values()) == ["ValueError: no more"]


@pytest.mark.parametrize("keeps", [False, True])
def test_an_attempt_that_fails_closes_its_sources_and_tells_readers_why(here: Here, keeps: bool) -> None:
    closed: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield from endless()
        finally:
            closed.append("plain")

    async def asource() -> AsyncIterator[int]:
        try:
            for number in range(10**9):
                yield number
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(0)
            closed.append("async")

    def body() -> None:
        captured = metadata.stream("n", source())
        streams.append("appended", 1)
        write = streams.writer("written")
        write(1)
        if keeps:
            next(captured)
        else:
            del captured
            wait_until(lambda: here.values("n"))
        raise ValueError("no more")

    async def abody() -> None:
        captured = metadata.stream("a", asource())
        if keeps:
            await anext(captured)
        else:
            del captured
            await asyncio.sleep(0.02)
        raise ValueError("no more")

    assert here.run(body)[0] == here.run(abody)[0] == "ValueError"
    wait_until(lambda: sorted(closed) == ["async", "plain"])
    for key in ("n", "a", "appended", "written"):
        assert here.ends(key) == ["ValueError: no more"], key


def test_a_run_that_succeeds_waits_for_its_sources_M57(here: Here) -> None:
    def slow() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.03)
            yield number

    async def aslow() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0.03)
            yield number

    def body() -> None:
        metadata.stream("n", slow())

    async def abody() -> None:
        metadata.stream("a", aslow())
        metadata.stream("n2", slow())

    here.run(body)
    here.run(abody)
    for key in ("n", "a", "n2"):
        assert here.values(key) == list(range(5))
        assert here.ends(key) == [None]


def test_a_run_that_waits_for_its_streams_says_so(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.sdk.streams_attempt.TELL_SECONDS", 0.05)
    monkeypatch.setattr("milepost.sdk.streams_attempt.LOOK_SECONDS", 0.05)
    gates = [threading.Event(), threading.Event()]

    def source(gate: threading.Event) -> Iterator[int]:
        assert gate.wait(SECONDS_MAX)
        yield 1

    def body() -> None:
        metadata.stream("n", source(gates[0]))

    async def abody() -> None:
        metadata.stream("n", source(gates[1]))

    for index, each in enumerate((body, abody)):
        running = threading.Thread(target=here.run, args=[each])
        running.start()
        wait_until(lambda index=index: len(here.link.lines) == index + 1)
        gates[index].set()
        running.join(SECONDS_MAX)
    assert all("until its streams have come to their ends: 'n'" in line for _, line in here.link.lines)


# --- bounded -------------------------------------------------------------------------------------------------


def test_while_the_server_is_away_the_source_waits_and_nothing_is_lost(here: Here) -> None:
    pulled: list[int] = []
    large = "x" * 1000

    def source() -> Iterator[str]:
        for number in range(5000):
            pulled.append(number)
            yield f"{number} {large}"

    def body() -> None:
        here.link.go_away()
        metadata.stream("n", source())
        wait_until(lambda: len(pulled) > 1000)
        time.sleep(0.2)
        assert len(pulled) < 1200, "the source was not slowed"
        here.link.come_back()

    here.run(body)
    assert [value.split()[0] for value in here.values("n")] == [str(number) for number in range(5000)]


def test_while_the_server_is_away_the_loop_goes_on(here: Here) -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(5000):
            yield f"{number} " + "x" * 1000

    async def body() -> int:
        here.link.go_away()
        metadata.stream("n", source())
        turns = 0
        began = time.monotonic()
        while time.monotonic() < began + 0.2:
            await asyncio.sleep(0.001)
            turns += 1
        here.link.come_back()
        return turns

    assert here.run(body) > 20
    assert len(here.values("n")) == 5000


def test_on_a_loop_values_are_taken_at_once_and_awaiting_waits_for_room(here: Here) -> None:
    async def body() -> list[str]:
        here.link.go_away()
        happened: list[str] = []
        room = streams.append("n", "x" * 1_000_000)
        room = streams.append("n", "y" * 1_000_000)

        async def wait() -> None:
            await room
            happened.append("room")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        happened.append("back")
        here.link.come_back()
        await waiting
        async with streams.writer("w") as write:
            for number in range(100):
                await write(number)
            write(100)
            await write.awrite(101)
        await streams.aappend("n", "z")
        return happened

    assert here.run(body) == ["back", "room"]
    assert [value[0] for value in here.values("n")] == ["x", "y", "z"]
    assert here.values("w") == list(range(102))


def test_on_a_loop_who_never_awaits_is_told_before_memory_is_full(here: Here) -> None:
    async def body() -> int:
        here.link.go_away()
        taken = 0
        message = ""
        while not message:
            try:
                streams.append("n", "x" * 1_000_000)
                taken += 1
            except UsageError as error:
                message = str(error)
        assert "await streams.append" in message
        here.link.come_back()
        return taken

    taken = here.run(body)
    assert 16 <= taken <= 18
    assert len(here.values("n")) == taken


# --- writers and appends -------------------------------------------------------------------------------------


def test_two_writers_on_one_key_keep_each_its_order(here: Here) -> None:
    def body() -> None:
        first, second = metadata.stream("n", iter("abc")), streams.pipe("n", iter("xyz"))
        for pair in zip(first, second, strict=True):
            streams.append("n", "".join(pair))

    here.run(body)
    by_writer: dict[str, list[Any]] = {}
    for writer, value in here.link.store.chunks[RUN, "n"]:
        by_writer.setdefault(writer, []).append(value)
    assert sorted(by_writer.values()) == [["a", "b", "c"], ["ax", "by", "cz"], ["x", "y", "z"]]
    assert here.ends("n") == [None] * 3


def test_threads_append_to_one_stream(here: Here) -> None:
    def body() -> None:
        def add(number: int) -> None:
            for index in range(500):
                streams.append("n", [number, index])

        threads = [threading.Thread(target=metadata.bind(add), args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS_MAX)

    here.run(body)
    for number in range(8):
        assert [index for who, index in here.values("n") if who == number] == list(range(500))


def test_a_writer_ends_with_its_block(here: Here) -> None:
    def body() -> str:
        with streams.writer("good") as write:
            write("a")
            write(b"\xc3")
            write(b"\xa9!")
        with pytest.raises(UsageError) as caught:
            write("b")
        with pytest.raises(KeyError):
            fail_in_block()
        return str(caught.value)

    def fail_in_block() -> None:
        with streams.writer("bad") as write:
            write.write(1)
            raise KeyError("k")

    assert "has been closed" in here.run(body)
    assert here.values("good") == ["a", "é!"]
    assert here.ends("good") == [None]
    assert here.ends("bad") == ["KeyError: 'k'"]


def test_targets(here: Here) -> None:
    def body() -> None:
        streams.append("n", "self")
        streams.append("n", "parent", target="parent")
        streams.append("n", "root", "root")
        streams.append("n", "other", "run_other")
        list(metadata.parent.stream("s", count(1)))
        list(metadata.root.stream("s", count(2)))
        list(metadata.run("run_other").stream("s", count(3)))
        with streams.writer("w", target="parent") as write:
            write(1)

    here.run(body, parent_id="run_parent", root_id="run_root")
    assert [here.values("n", run) for run in (RUN, "run_parent", "run_root", "run_other")] == [
        ["self"],
        ["parent"],
        ["root"],
        ["other"],
    ]
    assert [len(here.values("s", run)) for run in ("run_parent", "run_root", "run_other")] == [1, 2, 3]
    assert here.values("w", "run_parent") == [1]


def test_without_a_parent_the_target_is_the_run_itself(here: Here) -> None:
    here.run(lambda: streams.append("n", 1, target="parent") and None)
    assert here.values("n") == [1]


def test_a_typed_stream_checks_what_is_written(here: Here) -> None:
    class Step(BaseModel):
        name: str
        done: int = 0

    steps = streams.define("steps", Step)

    def body() -> str:
        steps.append(Step(name="a"))
        list(steps.pipe([Step(name="b", done=1)]))
        with steps.writer() as write:
            write(Step(name="c"))
        with pytest.raises(StreamValueError) as caught:
            steps.append({"done": "x"})  # type: ignore[arg-type]
        return str(caught.value)

    message = here.run(body)
    assert "steps" in message
    assert "name" in message
    assert here.values("steps") == [
        {"name": "a", "done": 0},
        {"name": "b", "done": 1},
        {"name": "c", "done": 0},
    ]


# --- refused by the server -----------------------------------------------------------------------------------


def test_what_the_server_does_not_take_stops_the_source_with_its_message(here: Here) -> None:
    here.link.store.answers["n"] = PartReply(code="stream_too_large", message="the stream is full")
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from endless()
        finally:
            closed.set()

    def body() -> tuple[str, str]:
        with pytest.raises(StreamStoppedError) as caught:
            list(metadata.stream("n", source()))
        return caught.value.reason, str(caught.value)

    assert here.run(body) == ("stream_too_large", "stream 'n': the stream is full")
    assert closed.is_set()


def test_a_writer_that_waits_for_room_is_told_that_the_attempt_was_given_up(here: Here) -> None:
    here.link.store.lost.add(RUN)

    def body() -> str:
        here.link.go_away()
        threading.Timer(0.1, here.link.come_back).start()
        with pytest.raises(StreamStoppedError) as caught:
            append_much()
        return caught.value.reason

    def append_much() -> None:
        for _ in range(100):
            streams.append("n", "x" * 1_000_000)

    assert here.run(body) == "lost"


# --- outside of runs -----------------------------------------------------------------------------------------


def test_outside_of_a_run_the_source_comes_back_as_it_is_M59() -> None:
    plain, other = count(3), acount(3)
    assert metadata.stream("n", plain) is plain
    assert streams.pipe("n", other) is other
    assert metadata.parent.stream("n", plain) is plain
    assert streams.define("n", int).pipe(plain) is plain
    for call in (lambda: streams.append("n", 1), lambda: streams.writer("n")):
        with pytest.raises(UsageError, match=r"metadata\.bind"):
            call()


def test_a_child_process_is_told_that_it_cannot_write(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> list[str]:
        write = streams.writer("n")
        write(1)
        monkeypatch.setattr(child_process, "_process", child_process.Process())
        monkeypatch.setattr(os, "getpid", lambda: -1)
        messages: list[str] = []
        scope = current_scope.get()
        assert scope is not None
        calls: list[Callable[[], Any]] = [lambda: write(2)]
        child, _ = child_process.scope_of(child_process.carry(scope, is_copy=False))
        token = current_scope.set(child)
        calls += [
            lambda: streams.append("n", 1),
            lambda: streams.writer("n"),
            lambda: metadata.stream("n", [1]),
        ]
        for call in calls:
            with pytest.raises(UsageError) as caught:
                call()
            messages.append(str(caught.value))
        current_scope.reset(token)
        monkeypatch.undo()
        return messages

    forked, *others = here.run(body)
    assert "was forked from" in forked
    assert all("hand the values to the task itself" in message for message in others)
    assert here.values("n") == [1]


# --- interruptions -------------------------------------------------------------------------------------------


def test_a_finalizer_that_appends_in_the_middle_of_anything_does_no_harm(here: Here) -> None:
    finalized: list[int] = []

    class Cycle:
        def __init__(self, append: Callable[[], Any]) -> None:
            self.itself = self
            self.append = append

        def __del__(self) -> None:
            self.append()
            finalized.append(1)

    def body() -> None:
        # The collector runs finalizers in whichever thread is at hand.
        append = metadata.bind(lambda: streams.append("n", "finalizer"))
        before = gc.get_threshold()
        gc.set_threshold(7)
        try:
            for number in range(2000):
                Cycle(append)
                streams.append("n", number)
        finally:
            gc.set_threshold(*before)
        # While another thread collects, this does nothing.
        wait_until(lambda: gc.collect() >= 0 and len(finalized) == 2000)

    here.run(body)
    assert [value for value in here.values("n") if value != "finalizer"] == list(range(2000))
    assert here.values("n").count("finalizer") == 2000


def test_a_run_without_streams_makes_nothing(here: Here) -> None:
    @task(id="t")
    def body() -> None:
        metadata.set("a", 1)

    scope = here.scope()
    run_attempt_in_thread(body, scope.run, scope)
    assert scope.streams is None


def test_the_bounds_are_what_the_docs_say() -> None:
    assert CHUNK_BYTES_MAX == 1024 * 1024
    assert streams_outlet.WAITING_BYTES_MAX == 1024 * 1024


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@pytest.mark.parametrize("retry_from", ["", "begin", None, 0])
def test_where_no_retry_can_begin(retry_from: Any) -> None:
    with pytest.raises(UsageError, match="'start' or 'unread'"):
        streams.input("approvals", retry_from=retry_from)
