"""One call of the buffer in the middle of another one of the same thread (M15), at every instruction; and threads that wait for one
another through it.

What a finalizer, a signal handler or a trace function does at any moment a trace function does here at each moment in turn.
"""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import milepost
from milepost.errors import MetadataError, MetadataTypeError
from milepost.model.document import Document
from milepost.model.jsonvalue import encode
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.protocol.metadata import MetadataDelta
from milepost.sdk import buffer as buffer_module
from milepost.sdk.buffer import Buffer, BufferBusy
from sdk.model_server import ATTEMPT, PARENT, RUN, ModelServer, deliver

SOURCES = Path(milepost.__file__).parent
# In these files somebody may be in the middle of a change.
FILES = {
    str(SOURCES / "sdk/buffer.py"),
    str(SOURCES / "model/document.py"),
    str(SOURCES / "model/operations.py"),
}
HANG_SECONDS = 30.0
CHECKPOINTS = {"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}
START: dict[str, Any] = {"n": 1, "list": [1, 2, 3], "text": "x", "deep": {"a": {"b": 1}}}

Work = Callable[[Buffer, ModelServer], object]


@pytest.fixture(autouse=True)
def traces_are_not_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a trace function stands for others, which cannot be put out."""
    monkeypatch.setattr(Buffer, "_catch_up", Buffer._catch_up_unseen)  # pyright: ignore[reportPrivateUsage]


class House:
    """A buffer in the middle of its life, and the server that it belongs to."""

    def __init__(self) -> None:
        self.server = ModelServer(START, limit=4000)
        document = Document(self.server.document.value, limit=self.server.document.limit)
        self.buffer = Buffer(RUN, ATTEMPT, document)
        self.buffer.add(RUN, Set("sent", 1))
        batch = self.buffer.next_batch()
        assert batch is not None
        self.server.receive(batch)
        self.server.write([Append("list", "foreign")])
        for index in range(6):
            self.buffer.add(RUN, Append("capped", index, 3))
        self.buffer.add(RUN, Increment("n", 1))
        self.buffer.add(PARENT, Set("p", 1))


@dataclass
class Interruption:
    """Calls `interrupt` before the instruction with this number, once.

    With `signals` only those instructions count before which Python looks for signals: those after a call or a jump backwards, and
    the first one of a function. Nowhere else can an error come in.
    """

    at: int
    interrupt: Callable[[], object]
    signals: bool = False
    count: int = 0
    is_over: bool = False
    before: str = "RESUME"

    def begin(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            before, self.before = self.before, dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if self.signals and before not in CHECKPOINTS:
                return self.step
            if self.count == self.at and not self.is_over:
                self.is_over = True
                self.interrupt()
            self.count += 1
        return self.step


@dataclass
class Outcome:
    house: House
    raised: BaseException | None
    found: list[Any] = field(default_factory=list[Any])


def at_every_moment(
    work: Work, interrupt: Work, *, every: int = 1, signals: bool = False
) -> Iterator[Outcome]:
    """Do the work again and again, interrupted one instruction later each time, until it is over before it is interrupted."""
    at = 0
    while True:
        outcome = _interrupted_at(at, work, interrupt, signals)
        if outcome is None:
            assert at > 5, "the work was never interrupted"
            return
        yield outcome
        at += every


def _interrupted_at(at: int, work: Work, interrupt: Work, signals: bool) -> Outcome | None:
    house = House()
    outcome = Outcome(house, None)
    interruption = Interruption(
        at, lambda: outcome.found.append(interrupt(house.buffer, house.server)), signals
    )

    def run() -> None:
        sys.settrace(interruption.begin)
        try:
            work(house.buffer, house.server)
        except BaseException as error:
            outcome.raised = error
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive(), f"interrupted at instruction {at} it hangs"
    return outcome if interruption.is_over else None


def settle(house: House) -> dict[str, Any]:
    """Deliver everything; what the server has then, which is what the buffer shows, with the size that it really has."""
    deliver(house.buffer, house.server)
    house.buffer.apply_delta(house.server.snapshot())
    assert not house.buffer.has_unacknowledged
    shown = house.buffer.current()
    assert shown == house.server.document.value
    view: Document = house.buffer._view  # pyright: ignore[reportPrivateUsage]
    assert view.size == len(encode(view.value))
    return shown


def acknowledge(buffer: Buffer, server: ModelServer) -> None:
    buffer.acknowledged(1, delta=server.delta(buffer.version))


def add(operation: Operation, run_id: str = RUN) -> Work:
    return lambda buffer, server: buffer.add(run_id, operation)


WORKS: dict[str, Work] = {
    "set": add(Set("text", {"some": ["value"]})),
    "set path": add(Set("$.deep.a.c", 5)),
    "increment": add(Increment("n", 1)),
    "increment once": add(Increment("m", 1, "id")),
    "append capped": add(Append("capped", 9, 3)),
    "remove": add(Remove("list", 2)),
    "delete": add(Delete("text")),
    "replace": add(Update({"n": 7, "list": []})),
    "several": lambda buffer, server: buffer.add_all(RUN, [Set("x", 1), Set("y", 1), Append("list", 4)]),
    "parent": add(Append("p", 1), PARENT),
    "get": lambda buffer, server: buffer.get("$.deep.a.b"),
    "current": lambda buffer, server: buffer.current(),
    "mark": lambda buffer, server: buffer.mark(),
    "acknowledged": acknowledge,
    "acknowledged, next": lambda buffer, server: (acknowledge(buffer, server), buffer.next_batch()),
    "delta": lambda buffer, server: buffer.apply_delta(
        MetadataDelta(RUN, 0, 2, changes=(delta := server.delta(0)) and delta.changes)
    ),
    "adopt": lambda buffer, server: buffer.adopt(server.document.copy_value(), 2, holds_until=1),
    "refused": lambda buffer, server: buffer.add(RUN, Set("text", "x" * 5000)),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=list(WORKS))
def test_an_update_in_the_middle_of_a_call_is_taken_once(work: Work) -> None:
    def interrupt(buffer: Buffer, server: ModelServer) -> None:
        buffer.add(RUN, Increment("interrupted", 1))
        buffer.add_all(RUN, [Append("both", 1), Append("both", 2)])
        buffer.add(PARENT, Increment("interrupted", 1))
        buffer.add(RUN, Increment("interrupted", 10))

    for outcome in at_every_moment(work, interrupt):
        assert outcome.raised is None or isinstance(outcome.raised, MetadataError)
        shown = settle(outcome.house)
        if work is not WORKS["replace"]:
            assert (shown["interrupted"], shown["both"]) == (11, [1, 2])
            assert shown["sent"] == 1
        else:
            assert shown.get("interrupted", 11) == 11
        assert Increment("interrupted", 1) in outcome.house.server.others[PARENT]


def test_the_order_is_that_of_the_calls_M31() -> None:
    def work(buffer: Buffer, server: ModelServer) -> None:
        for index in range(4):
            buffer.add(RUN, Append("order", index))

    def interrupt(buffer: Buffer, server: ModelServer) -> None:
        for letter in "abc":
            buffer.add(RUN, Append("order", letter))

    for outcome in at_every_moment(work, interrupt, every=3):
        order: list[Any] = settle(outcome.house)["order"]
        assert [item for item in order if isinstance(item, int)] == [0, 1, 2, 3]
        place = order.index("a")
        assert order[place : place + 3] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name", ["several", "append capped", "delta", "acknowledged", "adopt", "replace", "set path"]
)
def test_what_is_read_in_the_middle_of_a_call_is_whole(name: str) -> None:
    """Either the state before the call or the one after it; and always with what the interrupting code has written itself."""
    before = House().buffer.current()
    after = House()
    WORKS[name](after.buffer, after.server)
    allowed = [before, after.buffer.current()]

    def interrupt(buffer: Buffer, server: ModelServer) -> Any:
        first = buffer.current()
        buffer.add(RUN, Increment("own", 2))
        own = buffer.get("own")
        buffer.add(RUN, Append("own_list", "a"))
        return first, own, buffer.contains("own_list"), buffer.current()["own_list"], buffer.get("capped")

    for outcome in at_every_moment(WORKS[name], interrupt):
        [(first, *own, capped)] = outcome.found
        assert first in allowed
        assert own == [2, True, ["a"]]
        assert capped == first.get("capped")
        settle(outcome.house)


@pytest.mark.parametrize("name", ["set", "increment", "several", "get", "acknowledged"])
def test_a_mistake_in_the_middle_of_a_call_is_raised_to_who_made_it(name: str) -> None:
    def interrupt(buffer: Buffer, server: ModelServer) -> Any:
        with pytest.raises(MetadataError):
            buffer.add(RUN, Increment("list", 1))
        with pytest.raises(MetadataError):
            buffer.add_all(RUN, [Set("half", 1), Increment("list", 1)])
        buffer.add(RUN, Remove("n", 1))

    for outcome in at_every_moment(WORKS[name], interrupt):
        assert outcome.raised is None
        shown = settle(outcome.house)
        assert "half" not in shown
        # From what is no array it is the server that refuses to remove.
        assert [change.code for change in outcome.house.buffer.take_refused()] == ["wrong_metadata_type"]


def test_what_turns_out_to_be_wrong_later_is_told_by_flush() -> None:
    """The interrupting call could not know: the call that it interrupts makes a text of the number."""
    told = 0

    def interrupt(buffer: Buffer, server: ModelServer) -> None:
        with contextlib.suppress(MetadataError):
            buffer.add(RUN, Increment("n", 1))

    for outcome in at_every_moment(add(Set("n", "text")), interrupt):
        shown = settle(outcome.house)
        refused = outcome.house.buffer.take_refused()
        if shown["n"] == "text" and refused:
            told += 1
            assert [change.code for change in refused] == ["wrong_metadata_type"]
    assert told > 10


@pytest.mark.parametrize("work", WORKS.values(), ids=list(WORKS))
def test_asking_the_link_s_questions_in_the_middle_of_a_call_waits_for_nothing(work: Work) -> None:
    def interrupt(buffer: Buffer, server: ModelServer) -> Any:
        interrupted = buffer.is_interrupted_here
        mark = buffer.mark()
        assert buffer.has_unacknowledged
        return interrupted, mark, buffer.needs_refresh, buffer.unacknowledged_count, buffer.take_remarks()

    interrupted: set[bool] = set()
    for outcome in at_every_moment(work, interrupt, every=2):
        [(is_interrupted, mark, *_)] = outcome.found
        interrupted.add(is_interrupted)
        settle(outcome.house)
        assert outcome.house.buffer.reached(mark)
    assert interrupted == {True, False}


class Stop(BaseException):
    """As a signal handler raises it, for example to end a call that takes too long."""


@pytest.mark.parametrize("error", [Stop, MetadataTypeError])
# What the link does is done in its thread, which no signal handler interrupts.
@pytest.mark.parametrize(
    "name", [name for name in WORKS if name not in ("acknowledged", "acknowledged, next", "delta", "adopt")]
)
def test_an_error_of_others_in_the_middle_of_a_call_leaves_nothing_half_done(
    name: str, error: type[BaseException]
) -> None:
    def interrupt(buffer: Buffer, server: ModelServer) -> None:
        raise error("not yours")

    before = House()
    pending_before = settle(before)
    after = House()
    with contextlib.suppress(MetadataError):
        WORKS[name](after.buffer, after.server)
    allowed = [pending_before, settle(after)]
    for outcome in at_every_moment(WORKS[name], interrupt, signals=True):
        assert isinstance(outcome.raised, error)
        buffer = outcome.house.buffer
        buffer.add(RUN, Increment("later", 1))
        shown = settle(outcome.house)
        assert shown.pop("later") == 1
        lost = [change for change in buffer.take_refused() if change.code == "metadata_interrupted"]
        assert shown in allowed or lost, "neither done nor left undone, and nobody is told"


def test_the_end_of_the_stack_leaves_nothing_half_done() -> None:
    for spare in range(1, 12):
        house = House()
        before = house.buffer.current()

        def dive(depth: int, house: House = house) -> None:
            if depth:
                dive(depth - 1)
            else:
                house.buffer.add_all(
                    RUN, [Set("x", {"y": 1}), Append("list", {"z": 1}), Append("capped", 8, 3)]
                )

        limit = sys.getrecursionlimit()
        depth = len_of_stack() + 100
        sys.setrecursionlimit(depth + 1 + spare)
        try:
            with contextlib.suppress(RecursionError):
                dive(depth - len_of_stack())
        finally:
            sys.setrecursionlimit(limit)
        shown = house.buffer.current()
        assert shown == before or shown["capped"][-1] == 8
        settle(house)


def len_of_stack() -> int:
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    length = 0
    while frame is not None:
        length, frame = length + 1, frame.f_back
    return length


# --- threads that wait for one another -------------------------------------------------------------------


def inside(buffer: Buffer, work: Callable[[], None]) -> threading.Thread:
    """Start a thread that is interrupted in the middle of a call, by code that does this work."""

    def run() -> None:
        interruption = Interruption(60, work)
        sys.settrace(interruption.begin)
        try:
            for _ in range(10):
                buffer.add(RUN, Increment("outer", 1))
        finally:
            sys.settrace(None)
        assert interruption.is_over

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "PATIENCE_SECONDS", 0.05)


@pytest.mark.usefixtures("short_patience")
def test_a_finalizer_and_a_logging_handler_do_not_wait_for_one_another_for_ever() -> None:
    """One thread has the buffer and wants the handler's lock, the other one has the handler's lock and wants the buffer."""
    house = House()
    handler = threading.Lock()
    handler_is_taken, buffer_is_taken = threading.Event(), threading.Event()

    def finalizer() -> None:
        buffer_is_taken.set()
        assert handler_is_taken.wait(HANG_SECONDS)
        with handler:
            house.buffer.add(RUN, Increment("finalizer", 1))

    def emit() -> None:
        with handler:
            handler_is_taken.set()
            assert buffer_is_taken.wait(HANG_SECONDS)
            assert house.buffer.get("n") == 2
            house.buffer.add(RUN, Increment("handler", 1))
            house.buffer.add_all(RUN, [Set("one", 1), Set("two", 2)])
            house.buffer.mark()

    threads = [threading.Thread(target=emit, daemon=True), inside(house.buffer, finalizer)]
    threads[0].start()
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
    shown = settle(house)
    assert {key: shown[key] for key in ("outer", "finalizer", "handler", "one", "two")} == {
        "outer": 10,
        "finalizer": 1,
        "handler": 1,
        "one": 1,
        "two": 2,
    }


@pytest.mark.usefixtures("short_patience")
def test_finalizers_of_two_runs_do_not_wait_for_one_another_for_ever() -> None:
    houses = House(), House()
    both = threading.Barrier(2, timeout=HANG_SECONDS)

    def finalizer(other: Buffer) -> None:
        both.wait()
        other.add(RUN, Increment("finalizer", 1))
        other.get("n")

    threads = [
        inside(houses[index].buffer, lambda other=houses[1 - index].buffer: finalizer(other))
        for index in (0, 1)
    ]
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
    for house in houses:
        shown = settle(house)
        assert (shown["outer"], shown["finalizer"]) == (10, 1)


def test_the_link_does_not_wait_for_a_thread_that_was_stopped_in_the_middle() -> None:
    """What the server has said meanwhile is taken in as soon as the thread goes on."""
    house = House()
    is_inside, goes_on = threading.Event(), threading.Event()

    def stop() -> None:
        is_inside.set()
        assert goes_on.wait(HANG_SECONDS)

    thread = inside(house.buffer, stop)
    assert is_inside.wait(HANG_SECONDS)
    with pytest.raises(BufferBusy):
        house.buffer.next_batch(patience_seconds=0.01)
    acknowledge(house.buffer, house.server)
    house.server.write([Set("foreign", 1)])
    house.buffer.apply_delta(house.server.snapshot())
    assert house.buffer.has_unacknowledged
    goes_on.set()
    thread.join(HANG_SECONDS)
    shown = settle(house)
    assert (shown["foreign"], shown["outer"], shown["sent"]) == (1, 10, 1)


def test_a_million_finalizers_in_the_middle_of_one_call_are_counted() -> None:
    house = House()

    def collect() -> None:
        for index in range(100_000):
            house.buffer.add(RUN, Increment("freed", 1))
            house.buffer.add(PARENT, Increment("freed", 2))
            if index % 10_000 == 0:
                house.buffer.add(RUN, Append("steps", index))
        assert house.buffer.get("freed") == 100_000

    inside(house.buffer, collect).join(HANG_SECONDS)
    assert house.buffer.take_remarks() == []
    shown = settle(house)
    assert (shown["freed"], len(shown["steps"])) == (100_000, 10)
    assert sum(op.value for op in house.server.others[PARENT] if isinstance(op, Increment)) == 200_000


def test_the_cost_of_a_call_in_the_middle_of_another_one_does_not_follow_the_document() -> None:
    """A signal handler that comes more often than it can be served would bring the run to a halt."""
    seconds: list[float] = []
    for size in (1_000, 2_000_000):
        document = Document({"n": 1, "big": ["x" * 100] * (size // 100)}, limit=10**9)
        buffer = Buffer(RUN, ATTEMPT, document)
        best: list[float] = []

        def interrupt(buffer: Buffer = buffer, best: list[float] = best) -> None:
            for index in range(20):
                began = time.perf_counter()
                buffer.add(RUN, Set("a", index))
                buffer.get("n")
                best.append(time.perf_counter() - began)

        inside(buffer, interrupt).join(HANG_SECONDS)
        seconds.append(min(best))
    assert seconds[1] < 20 * seconds[0]


@pytest.mark.parametrize("install", [sys.settrace, sys.setprofile])
def test_a_trace_function_that_counts_each_event_makes_no_end_of_work(
    install: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees also the work that its own calls have left, and calls again for each line of that."""
    monkeypatch.undo()
    house = House()
    expected = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal expected
        if "milepost" in frame.f_code.co_filename:
            expected += 1
            house.buffer.add(RUN, Increment("events", 1))
            house.buffer.add(RUN, Set("last", expected))
        return trace

    def run() -> None:
        install(trace)
        for _ in range(50):
            house.buffer.add(RUN, Increment("outer", 1))
        install(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()
    shown = settle(house)
    assert (shown["outer"], shown["events"], shown["last"]) == (50, expected, expected)
    assert expected > 500


def test_what_is_put_in_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "LINE_MAX", 5)
    house = House()

    def storm() -> None:
        for index in range(20):
            house.buffer.add(RUN, Append("storm", index))

    inside(house.buffer, storm).join(HANG_SECONDS)
    refused = house.buffer.take_refused()
    assert settle(house)["storm"] == list(range(5))
    assert [change.operation["value"] for change in refused] == list(range(5, 20))
    assert {change.code for change in refused} == {"metadata_backlog_full"}
    [remark] = house.buffer.take_remarks()
    assert "15 metadata operations were refused" in remark
