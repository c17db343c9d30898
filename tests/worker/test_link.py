"""The link over a bad network: nothing is dropped, nothing is done twice, and whoever waits is woken."""

import asyncio
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import msgspec
import pytest
import uvloop
from fake_server import FakeServer, Fault

from milepost.errors import MetadataFlushError, UsageError
from milepost.model.document import Document
from milepost.model.operations import Increment, Set
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome, RunError
from milepost.protocol.metadata import MetadataChange, MetadataDelta
from milepost.protocol.work import (
    BegunRun,
    ClaimedRun,
    ClaimRequest,
    RegisterRequest,
    ReportRequest,
    RunReply,
    RunReport,
    WorkerTask,
)
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.worker import claiming, holding
from milepost.worker.black_box import BlackBox
from milepost.worker.channel import Refused, Unreachable
from milepost.worker.control import Order
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.outbox import HeldRun

Body = Callable[["Run"], str | None]


class Run:
    """What a test's task can do."""

    def __init__(self, held: HeldRun) -> None:
        self.id = held.scope.run.id
        self.scope = held.scope
        self.link = held.scope.link

    def set(self, key: str, value: Any) -> None:
        if self.scope.buffer.add(self.id, Set(key=key, value=value)):
            self.link.wake(self.scope)

    def increment(self, key: str) -> None:
        if self.scope.buffer.add(self.id, Increment(key=key, value=1)):
            self.link.wake(self.scope)

    def flush(self) -> None:
        self.link.flush(self.scope).result(20)

    def wait_for(self, target_id: str) -> Future[None]:
        return self.link.wait_for(self.scope, target_id)


class ThreadHost:
    """Runs the body that a test gives, in threads."""

    def __init__(self, server: FakeServer, body: Body, **options: Any) -> None:
        self.body = body
        self.notices: list[str] = []
        self.stopped: list[HeldRun] = []
        self.running_on: list[HeldRun] = []
        self.interrupted: list[str] = []
        self.left_to_finish: list[int] = []
        self.abandoned = 0
        self.error: BaseException | None = None
        self.has_left = threading.Event()
        self._threads = ThreadPoolExecutor(50)
        given: dict[str, Any] = {
            "concurrency": 10,
            "flush_interval_seconds": 0.05,
            "grace_seconds": 10.0,
            **options,
        }
        parts = {name: given.pop(name) for name in ("clock", "black_box") if name in given}
        loop_factory = given.pop("loop_factory", asyncio.new_event_loop)
        task = WorkerTask(id="t", queue="t", retry=RetryRule())
        self.link = WorkerLink(
            LinkOptions(
                api_url=server.url, secret_key="key", worker_id="worker_1", name="test", tasks=[task], **given
            ),
            self,
            loop_factory,
            **parts,
        )
        self.link.start()

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        return HeldRun(RunScope(run, metadata_size_max, self.link), None)

    def start(self, runs: Sequence[HeldRun]) -> None:
        for held in runs:
            self._threads.submit(self._run, held)

    def _run(self, held: HeldRun) -> None:
        self.link.finished(held, Outcome(output=self.body(Run(held))))

    def interrupt(self, run: HeldRun) -> None:
        self.interrupted.append(run.scope.run.id)

    def stop(self, run: HeldRun) -> None:
        self.stopped.append(run)

    def left_running(self, run: HeldRun) -> None:
        self.running_on.append(run)

    def waits(self, *, waits: bool) -> None: ...

    def registered(self) -> None: ...

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def server_is_away(self, reason: str) -> None:
        self.notices.append(f"away: {reason}")

    def server_is_back(self, away_seconds: float) -> None:
        self.notices.append(f"back after {away_seconds:.1f} s")

    def finishing(self, runs: int) -> None:
        self.left_to_finish.append(runs)

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        self.error = error
        self.abandoned = abandoned
        self.has_left.set()

    def end(self) -> None:
        self.link.order(Order.STOP)
        assert self.has_left.wait(20)
        self._threads.shutdown(wait=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def host(server: FakeServer) -> Iterator[Callable[..., ThreadHost]]:
    hosts: list[ThreadHost] = []

    def start(body: Body = lambda run: '"done"', **options: Any) -> ThreadHost:
        hosts.append(ThreadHost(server, body, **options))
        return hosts[-1]

    yield start
    for each in hosts:
        each.end()


def run_of(number: int) -> ClaimedRun:
    return ClaimedRun(id=f"run_{number}", task="t", attempt=1)


def claims(server: FakeServer) -> list[ClaimRequest]:
    return [msgspec.json.decode(body, type=ClaimRequest) for body in server.bodies("claim_runs")]


def test_a_claim_whose_answer_is_lost_is_asked_again_under_its_number(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.faults["claim_runs"] = deque([Fault(loses_reply=True)] * 3 + [Fault(status=503)])
    started: list[str] = []
    host(lambda run: started.append(run.id))
    server.queue(run_of(1), run_of(2))
    server.until(lambda: len(server.outcomes()) == 2)
    assert sorted(started) == ["run_1", "run_2"]
    assert [claim.sequence for claim in claims(server)][:5] == [1, 1, 1, 1, 1]


def test_what_was_claimed_starts_and_short_runs_are_reported_before_the_next_claim(
    server: FakeServer, host: Callable[..., ThreadHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "START_SECONDS_MAX", 20.0)
    claimed: list[int] = []

    def body(run: Run) -> str:
        time.sleep(0.05)
        claimed.append(len(claims(server)))
        return "1"

    host(body)
    for number in range(1, 4):
        server.queue(run_of(number))
        server.until(lambda: len(server.outcomes()) == len(claims(server)) - 1 == number)  # noqa: B023
    assert claimed == [1, 2, 3]


def test_a_run_that_goes_on_does_not_keep_the_next_ones_from_being_claimed(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate = threading.Event()

    def body(run: Run) -> str:
        if run.id == "run_1":
            gate.wait(20)
        return "1"

    host(body)
    for number in range(1, 6):
        server.queue(run_of(number))
        server.until(lambda: len(server.outcomes()) == number - 1)  # noqa: B023
    gate.set()
    server.until(lambda: len(server.outcomes()) == 5)


def test_an_order_to_end_finds_no_claim_under_way_that_was_not_sent_yet(
    server: FakeServer, host: Callable[..., ThreadHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "START_SECONDS_MAX", 20.0)
    began, gate = threading.Event(), threading.Event()

    def body(run: Run) -> str:
        began.set()
        gate.wait(20)
        return "1"

    worker = host(body)
    server.queue(run_of(1))
    assert began.wait(60)
    worker.link.order(Order.DRAIN)
    gate.set()
    assert worker.has_left.wait(60)
    assert list(server.outcomes()) == ["run_1"]
    assert len(claims(server)) == 1


def test_a_report_is_repeated_unchanged_until_it_is_answered(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.faults["report"] = deque([Fault(status=503), Fault(loses_reply=True), Fault(status=502)] * 2)

    def body(run: Run) -> str:
        for _ in range(100):
            run.increment("count")
            run.flush()
        return "1"

    host(body)
    server.queue(run_of(1))
    server.until(server.outcomes, 30)
    operations = [
        operation for report in server.reports for change in report.changes for operation in change.operations
    ]
    assert operations == [Increment(key="count", value=1)] * 100
    sequences = [report.sequence for report in server.reports if report.sequence]
    assert sequences == list(range(1, len(sequences) + 1))
    bodies = server.bodies("report")
    assert bodies[0] == bodies[1] == bodies[2]


def test_updates_of_a_server_that_is_away_arrive_in_order_when_it_is_back(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.faults["report"] = deque([Fault(status=503)] * 4)

    def body(run: Run) -> str:
        for number in range(50):
            run.set("number", number)
        run.set("last", True)
        return "1"

    host(body)
    server.queue(run_of(1), run_of(2))
    server.until(lambda: len(server.outcomes()) == 2, 30)
    for run_id in ("run_1", "run_2"):
        written: dict[str, Any] = {}
        for report in server.reports:
            for change in report.changes:
                if change.run == run_id:
                    written |= {
                        operation.key: operation.value
                        for operation in change.operations
                        if isinstance(operation, Set)
                    }
        assert written == {"number": 49, "last": True}


def waits_for(gate: threading.Event) -> Body:
    """Code that says that it has begun, and ends when the gate is opened."""

    def body(run: Run) -> str:
        run.set("began", True)
        gate.wait(20)
        return "1"

    return body


def test_a_server_that_has_forgotten_the_worker_learns_it_anew_with_what_it_holds(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate = threading.Event()
    host(waits_for(gate))
    server.queue(run_of(1))
    server.until(lambda: server.reports)
    server.forget_worker()
    gate.set()
    server.until(server.outcomes)
    assert server.registered[0].holding == []
    assert server.registered[1].holding == ["run_1"]
    server.queue(run_of(2))
    server.until(lambda: len(server.outcomes()) == 2)


@pytest.mark.parametrize("concurrency", [1, 2], ids=["none under way", "one under way"])
def test_a_registration_tells_the_claim_under_way_or_the_next_one(
    server: FakeServer, host: Callable[..., ThreadHost], concurrency: int
) -> None:
    """A claim that was answered may come again, delayed on its way: what it brought then nobody would hear of."""
    gate = threading.Event()
    host(waits_for(gate), concurrency=concurrency)
    server.queue(run_of(1))
    server.until(lambda: server.reports)
    server.until(lambda: len(claims(server)) == concurrency)
    server.forget_worker()
    gate.set()
    server.until(lambda: len(server.registered) == 2)
    answered = claims(server)[0].sequence
    assert [registered.claims for registered in server.registered] == [1, answered + 1]


def test_a_quiet_worker_sends_heartbeats(server: FakeServer, host: Callable[..., ThreadHost]) -> None:
    server.heartbeat_seconds = 0.05
    host()
    server.until(lambda: server.bodies("report").count(b"{}") >= 3)


def test_updates_in_a_loop_are_few_reports(server: FakeServer, host: Callable[..., ThreadHost]) -> None:
    gate = threading.Event()

    def body(run: Run) -> str:
        for number in range(20_000):
            run.set("number", number)
        gate.wait(20)
        return "1"

    host(body, flush_interval_seconds=0.2)
    server.queue(run_of(1))
    server.until(lambda: any(b"19999" in body for body in server.bodies("report")))
    gate.set()
    server.until(server.outcomes)
    times = [seen.at for seen in server.seen if seen.name == "report"]
    # One for each interval, however long the loop takes on this machine, the first, and the outcome, which leaves at once.
    assert len(times) <= (times[-1] - times[0]) / 0.2 + 3


def test_a_wait_ends_with_the_announcement(server: FakeServer, host: Callable[..., ThreadHost]) -> None:
    def body(run: Run) -> str:
        run.set("before", True)
        run.wait_for("run_x").result(20)
        return "1"

    host(body)
    server.queue(run_of(1))
    server.until(lambda: any(report.waiting for report in server.reports))
    assert server.reports[-1].changes or server.reports[0].changes, "it was flushed first"
    server.say(finished=["run_x"])
    server.until(server.outcomes)


def test_an_announcement_that_was_missed_is_asked_for_after_the_inbox_is_back(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    def body(run: Run) -> str:
        run.wait_for("run_x").result(20)
        return "1"

    host(body)
    server.queue(run_of(1))
    server.until(lambda: any(report.waiting for report in server.reports))
    assert "run_result" not in server.names(), "the inbox has been heard all the time"
    server.ended.add("run_x")
    server.break_inbox()
    server.until(server.outcomes)
    assert "run_result" in server.names()


def test_what_has_ended_before_the_inbox_was_heard_is_asked_for(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    began, gate = threading.Event(), threading.Event()

    def body(run: Run) -> str:
        began.set()
        gate.wait(20)
        run.wait_for("run_x").result(20)
        return "1"

    host(body)
    server.queue(run_of(1))
    assert began.wait(60)
    heard = server.names().count("inbox")
    server.ended.add("run_x")
    server.break_inbox()
    server.until(lambda: server.names().count("inbox") > heard)
    gate.set()
    server.until(server.outcomes)


def test_what_others_wrote_is_seen_without_writing(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    ready, seen = threading.Event(), list[Any]()

    def body(run: Run) -> str:
        run.set("own", 1)
        run.flush()
        ready.set()
        while run.scope.buffer.get("other") is None:
            pass
        seen.append(run.scope.buffer.current())
        return "1"

    host(body)
    server.queue(run_of(1))
    assert ready.wait(60)
    theirs = MetadataChange(2, [Set(key="other", value=2)])
    server.say(deltas=[MetadataDelta("run_1", 1, 2, [theirs])])
    server.until(server.outcomes)
    assert seen == [{"own": 1, "other": 2}]


def test_an_output_that_the_server_does_not_take_fails_its_own_run_only(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.accepts = lambda report: report.outcome is None or len(report.outcome.output or "") < 1000
    gate = threading.Event()

    def body(run: Run) -> str:
        gate.wait(20)
        return '"' + "x" * (2000 if run.id == "run_3" else 5) + '"'

    worker = host(body)
    server.queue(*map(run_of, range(8)))
    gate.set()
    outcomes = server.until(lambda: len(server.outcomes()) == 8 and server.outcomes())
    assert [run_id for run_id, outcome in outcomes.items() if outcome.error] == ["run_3"]
    assert outcomes["run_3"].error.name == "ReportRefusedError"
    assert any("run_3" in notice for notice in worker.notices)


def test_operations_of_a_report_that_the_server_does_not_take_are_told_as_refused(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """M37: a flush that returns means that everything is committed."""
    server.accepts = lambda report: not report.changes
    told: list[str] = []

    def body(run: Run) -> str:
        run.set("a", 1)
        run.flush()
        told.extend(f"{one.run_id} {one.code}" for one in run.scope.buffer.take_refused())
        assert run.scope.buffer.current() == {}
        return "1"

    host(body)
    server.queue(run_of(1))
    server.until(server.outcomes)
    assert told == ["run_1 report_refused"]
    [line] = server.until(lambda: server.log["run_1"])
    assert "does not take an operation on the metadata of run_1" in line


def test_a_lost_run_is_interrupted_and_the_others_go_on(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate = threading.Event()
    told: list[str] = []

    def body(run: Run) -> str:
        run.set("began", True)
        try:
            run.flush()
        except MetadataFlushError as error:
            told.append(error.message)
        gate.wait(20)
        return "1"

    server.replies["run_1"].append(RunReply(id="run_1", lost=True))
    worker = host(body)
    server.queue(run_of(1), run_of(2))
    server.until(lambda: len(server.reports) == 2 and told)
    server.until(lambda: worker.interrupted)
    gate.set()
    server.until(server.outcomes)
    assert worker.interrupted == ["run_1"]
    assert list(server.outcomes()) == ["run_2"]
    [message] = told
    assert "attempt 1 of run run_1 was given up" in message


@pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_deadlines_that_have_nearly_come_break_no_callback(
    server: FakeServer,
    host: Callable[..., ThreadHost],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def body(run: Run) -> str:
        for _ in range(5):
            run.set("key", "value")
            time.sleep(0.001)
        return "1"

    at_work = host(body, loop_factory=loop_factory, concurrency=20, flush_interval_seconds=0.001)
    runs = [ClaimedRun(id=f"run_{number}", task="t", attempt=1, max_duration_ms=1) for number in range(100)]
    server.queue(*runs)
    server.until(lambda: len(server.outcomes()) == len(runs))
    assert at_work.stopped
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("order", [Order.DRAIN, Order.STOP])
def test_the_end_finishes_what_runs_and_leaves(
    server: FakeServer, host: Callable[..., ThreadHost], order: Order
) -> None:
    began, gate = threading.Semaphore(0), threading.Event()

    def body(run: Run) -> str:
        began.release()
        gate.wait(20)
        run.set("last", "words")
        return "1"

    worker = host(body)
    server.queue(run_of(1), run_of(2))
    for _ in range(2):
        assert began.acquire(timeout=60)
    server.until(lambda: claims(server)[-1].slots == 8)
    worker.link.order(order)
    server.until(lambda: claims(server)[-1].wait_seconds == 0)
    gate.set()
    assert worker.has_left.wait(60)
    assert worker.error is None
    assert sorted(server.outcomes()) == ["run_1", "run_2"]
    assert msgspec.json.decode(server.bodies("report")[-1], type=ReportRequest).leaving
    last, before = claims(server)[-1], claims(server)[-2]
    assert last.sequence == before.sequence, "what the claim under way has brought is not lost"


def test_runs_may_finish_without_a_limit_of_time_until_a_later_order_sets_one(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    began, gates = threading.Semaphore(0), {"run_1": threading.Event(), "run_2": threading.Event()}

    def body(run: Run) -> str:
        began.release()
        gates[run.id].wait(60)
        return "1"

    worker = host(body, grace_seconds=0.1)
    server.queue(run_of(1), run_of(2))
    for _ in range(2):
        assert began.acquire(timeout=60)
    worker.link.order(Order.FINISH)
    server.until(lambda: bool(worker.left_to_finish))
    claimed = len(claims(server))
    assert not worker.has_left.wait(0.5), "the grace time does not count"
    gates["run_1"].set()
    server.until(lambda: "run_1" in server.outcomes())
    assert not worker.has_left.is_set()
    worker.link.order(Order.DRAIN)
    assert worker.has_left.wait(20)
    assert (worker.error, worker.abandoned, worker.left_to_finish) == (None, 1, [2])
    assert list(server.outcomes()) == ["run_1"]
    assert len(claims(server)) == claimed, "nothing more is claimed"
    gates["run_2"].set()


class Queue:
    """Many short runs, among which one blocks: those behind it have been claimed ahead and stand in line."""

    def __init__(self, server: FakeServer, host: Callable[..., ThreadHost]) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.started: list[str] = []
        self.host = host(self._body, concurrency=1)
        server.queue(*map(run_of, range(300)))

    def _body(self, run: Run) -> str:
        self.started.append(run.id)
        if run.id == "run_150":
            self.began.set()
            self.gate.wait(20)
        return "1"


def holds_none_after(run_id: str, request: RegisterRequest) -> bool:
    """The worker keeps what has begun; the ends of earlier runs may be on their way still."""
    return run_id in request.holding and request.holding[-1] == run_id


def test_runs_that_stand_in_line_for_long_are_given_back(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    queue = Queue(server, host)
    server.until(lambda: any(holds_none_after("run_150", request) for request in server.registered))
    assert len(queue.started) == 151
    queue.gate.set()
    server.until(lambda: len(server.outcomes()) == 300)
    assert len(queue.started) == len(set(queue.started)) == 300


def test_runs_that_have_not_started_are_given_back_at_the_end(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    queue = Queue(server, host)
    assert queue.began.wait(60)
    queue.host.link.order(Order.DRAIN)
    server.until(lambda: any(holds_none_after("run_150", request) for request in server.registered))
    queue.gate.set()
    assert queue.host.has_left.wait(60)
    assert len(queue.started) == len(server.outcomes()) == 151
    assert server.has_left


def test_runs_that_only_wait_are_not_waited_for_when_everything_stops(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    def body(run: Run) -> str:
        run.wait_for("run_x").result(20)
        return "1"

    worker = host(body, grace_seconds=60.0)
    server.queue(run_of(1))
    server.until(lambda: any(report.waiting for report in server.reports))
    worker.link.order(Order.STOP)
    assert worker.has_left.wait(60)
    assert server.has_left


def test_a_run_that_does_not_end_in_time_is_left_with_its_last_words(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    began, gate = threading.Event(), threading.Event()

    def body(run: Run) -> str:
        run.set("a", 1)
        run.flush()
        run.set("b", 2)
        began.set()
        gate.wait(20)
        return "1"

    worker = host(body, grace_seconds=0.1, flush_interval_seconds=30.0)
    server.queue(run_of(1))
    assert began.wait(60)
    worker.link.order(Order.DRAIN)
    assert worker.has_left.wait(60)
    gate.set()
    keys = [
        operation.key
        for report in server.reports
        for change in report.changes
        for operation in change.operations
    ]
    assert keys == ["a", "b"]
    assert server.has_left
    assert not server.outcomes()


def test_a_worker_that_the_server_refuses_ends_with_the_reason(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.faults["register_worker"] = deque([Fault(status=503), Fault(status=401)])
    worker = host()
    assert worker.has_left.wait(60)
    assert isinstance(worker.error, Refused)
    assert worker.error.status == 401


def test_the_end_comes_also_while_the_server_is_away(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.faults["register_worker"] = deque([Fault(status=503)] * 1000)
    worker = host()
    server.until(lambda: server.names().count("register_worker") >= 2)
    worker.link.order(Order.DRAIN)
    assert worker.has_left.wait(60)
    assert worker.error is None


def document(server: FakeServer, run_id: str) -> dict[str, Any]:
    """What a run has reported, applied."""
    found = Document()
    for report in server.reports:
        for change in report.changes:
            if change.run == run_id:
                found.apply_all(change.operations)
    return found.value


# --- calls at any moment, in any thread ------------------------------------------------------------------


def test_a_thread_that_is_stopped_in_the_middle_of_a_call_holds_up_no_other_run(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """By a slow finalizer, or a debugger. Reports and heartbeats of the others go on, and its own word comes when it goes on."""
    is_inside, goes_on = threading.Event(), threading.Event()

    def trace(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_name == "apply" and not is_inside.is_set():
            is_inside.set()
            assert goes_on.wait(20)

    def body(run: Run) -> str:
        if run.id == "run_0":
            sys.settrace(trace)
            run.set("a", 1)
            sys.settrace(None)
        else:
            assert is_inside.wait(20)
            for number in range(20):
                run.set("n", number)
                run.flush()
        return '"done"'

    server.heartbeat_seconds = 0.2
    started = host(body)
    server.queue(*map(run_of, range(4)))
    # The link is told that the stopped run has something to send, too.
    assert is_inside.wait(20)
    started.link.wake(started.link.scopes()[0])
    server.until(lambda: len(server.outcomes()) == 3)
    assert all(outcome.output == '"done"' for outcome in server.outcomes().values())
    beats = server.bodies("report").count(b"{}")
    server.until(lambda: server.bodies("report").count(b"{}") > beats + 2)
    goes_on.set()
    server.until(lambda: len(server.outcomes()) == 4)
    assert document(server, "run_0") == {"a": 1}


def test_finalizers_run_by_the_collector_in_the_thread_of_the_link_do_not_hang_it(
    server: FakeServer, host: Callable[..., ThreadHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they call: updates are taken, and what would wait for the link itself fails."""
    raised: list[BaseException] = []

    def body(run: Run) -> str:
        def finalizer(original: Callable[..., Any] = Buffer._begin_batch) -> Callable[..., Any]:  # pyright: ignore[reportPrivateUsage]
            # In the middle of taking a batch of this very run.
            def begin_batch(buffer: Buffer, anyway: bool) -> Any:
                monkeypatch.undo()
                run.increment("finalized")
                run.link.log(run.scope, "info", "from a finalizer", "test")
                for call in (run.flush, lambda: run.wait_for("run_9").result(20)):
                    try:
                        call()
                    except BaseException as error:
                        raised.append(error)
                return original(buffer, anyway)

            return begin_batch

        monkeypatch.setattr(Buffer, "_begin_batch", finalizer())
        run.set("a", 1)
        run.flush()
        return '"done"'

    host(body)
    server.queue(run_of(0))
    server.until(server.outcomes)
    assert [type(error) for error in raised] == [UsageError, UsageError]
    assert document(server, "run_0") == {"a": 1, "finalized": 1}


def test_a_flush_in_the_middle_of_a_call_of_its_own_thread_does_not_hang(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    flushed: list[str] = []

    def body(run: Run) -> str:
        def trace(frame: FrameType, event: str, _: object) -> None:
            if frame.f_code.co_name in ("apply", "add", "_takes") and "milepost" in frame.f_code.co_filename:
                run.increment("interrupting")
                run.flush()
                flushed.append(frame.f_code.co_name)

        sys.settrace(trace)
        run.set("a", 1)
        sys.settrace(None)
        run.flush()
        return '"done"'

    host(body)
    server.queue(run_of(0))
    server.until(server.outcomes)
    assert {"apply", "_takes"} <= set(flushed)
    assert document(server, "run_0") == {"a": 1, "interrupting": len(flushed)}


def test_an_error_that_comes_while_the_link_is_rung_leaves_it_to_be_rung_again(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """As a signal handler may raise it."""

    def body(run: Run) -> str:
        loop: Any = run.link._loop  # type: ignore[attr-defined]

        class Raises:
            def call_soon_threadsafe(self, *_: Any) -> None:
                run.link._loop = loop  # type: ignore[attr-defined]
                raise LookupError("from a signal handler")

        run.link._loop = Raises()  # type: ignore[attr-defined]
        with pytest.raises(LookupError):
            run.set("a", 1)
        run.flush()
        return '"done"'

    host(body)
    server.queue(run_of(0))
    server.until(server.outcomes)
    assert document(server, "run_0") == {"a": 1}


def test_a_server_that_is_away_is_told_once_and_so_is_its_return(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate = threading.Event()

    def body(run: Run) -> str:
        run.set("a", 1)
        gate.wait(60)
        return "1"

    worker = host(body)
    server.queue(run_of(1))
    server.until(lambda: server.reports)
    server.is_away = True
    gate.set()
    server.until(lambda: any("away" in notice for notice in worker.notices))
    seen = len(server.seen)
    # It goes on trying, and says nothing more.
    server.until(lambda: len(server.seen) > seen + 2)
    server.is_away = False
    server.until(server.outcomes)
    server.until(lambda: len(worker.notices) == 2)
    away, back = worker.notices
    assert away.startswith("away: the server answered with status 503")
    assert re.fullmatch(r"back after [\d.]+ s", back)


def test_a_request_that_fails_once_is_no_news(server: FakeServer, host: Callable[..., ThreadHost]) -> None:
    worker = host(lambda run: "1")
    for number in range(3):
        server.faults["report"].append(Fault(status=503))
        server.queue(run_of(number))
        server.until(lambda number=number: len(server.outcomes()) == number + 1)
    assert worker.notices == []


def test_the_log_arrives_before_the_end_and_once(server: FakeServer, host: Callable[..., ThreadHost]) -> None:
    ended_with: dict[str, list[str]] = {}
    server.accepts = lambda report: (
        report.outcome is None or bool(ended_with.setdefault(report.id, list(server.log[report.id])) or True)
    )

    def body(run: Run) -> str:
        for number in range(50):
            run.link.log(run.scope, "info", f"line {number}", "test")
        return "1"

    for loss in range(2):
        server.faults["report_log"].append(Fault(loses_reply=loss == 0, status=503 if loss else 0))
    host(body)
    server.queue(*map(run_of, range(5)))
    server.until(lambda: len(server.outcomes()) == 5)
    for number in range(5):
        assert ended_with[f"run_{number}"] == [f"line {line}" for line in range(50)]


def test_a_log_that_the_server_does_not_take_keeps_no_run_from_ending(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.accepts_lines = lambda part: False

    def body(run: Run) -> str:
        run.link.log(run.scope, "info", "line", "test")
        run.set("a", 1)
        return "1"

    worker = host(body)
    server.queue(*map(run_of, range(4)))
    outcomes = server.until(lambda: len(server.outcomes()) == 4 and server.outcomes())
    assert all(outcome.error is None for outcome in outcomes.values())
    assert any("a line of the log of run run_" in notice for notice in worker.notices)


@pytest.mark.parametrize("body_bytes_max", [600, 2000, 100_000])
def test_a_report_over_any_limit_loses_only_what_is_over_it(
    body_bytes_max: int, server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """Operations of a run are divided until they pass; one that never does is refused alone, and its run goes on and succeeds."""
    server.body_bytes_max = body_bytes_max
    told: dict[str, list[str]] = {}

    def body(run: Run) -> str:
        for number in range(30):
            run.set(f"key {number}", "x" * (50_000 if run.id == "run_1" and number == 17 else 100))
        run.flush()
        told[run.id] = [
            str((one.operation or {}).get("key", one.code)) for one in run.scope.buffer.take_refused()
        ]
        run.set("last", True)
        return '"the output"'

    host(body)
    server.queue(*map(run_of, range(3)))
    outcomes = server.until(lambda: len(server.outcomes()) == 3 and server.outcomes(), 120)
    assert all(outcome.output == '"the output"' for outcome in outcomes.values())
    for run_id, refused in told.items():
        is_over = run_id == "run_1" and body_bytes_max < 50_000
        assert len(refused) == is_over
        keys = [
            operation.key
            for report in server.reports
            for change in report.changes
            if change.run == run_id
            for operation in change.operations
        ]
        assert keys == [f"key {number}" for number in range(30) if number != 17 or not is_over] + ["last"]


def test_what_cannot_be_encoded_takes_nothing_along(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """Lone surrogates: in an operation, in an output, in an error. The neighbours and the link do not notice."""

    def body(run: Run) -> str:
        run.set("good", 1)
        if run.id == "run_1":
            # The call itself refuses it; so this gets in behind its back.
            value: list[Any] = ["fine"]
            run.scope.buffer.add("run_parent", Set(key="bad", value=value))
            value[0] = "\ud800"
        run.set("later", 2)
        return "\ud800" if run.id == "run_2" else "1"

    host(body)
    server.queue(*map(run_of, range(4)))
    outcomes = server.until(lambda: len(server.outcomes()) == 4 and server.outcomes())
    assert [run_id for run_id, outcome in sorted(outcomes.items()) if outcome.error] == ["run_2"]
    for number in range(4):
        keys = [
            operation.key
            for report in server.reports
            for change in report.changes
            if change.run == f"run_{number}"
            for operation in change.operations
        ]
        assert keys == ["good", "later"]


def test_an_error_that_the_server_does_not_take_is_told_in_short(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    server.accepts = lambda report: (
        report.outcome is None or report.outcome.error is None or not report.outcome.error.stack_trace
    )
    error = RunError(name="ValueError", message="größer " * 1000, stack_trace="Traceback")

    class FailingHost(ThreadHost):
        def _run(self, held: HeldRun) -> None:
            self.link.finished(held, Outcome(error=error, retry_after_ms=10))

    worker = FailingHost(server, lambda run: None)
    try:
        server.queue(run_of(1))
        [outcome] = server.until(lambda: list(server.outcomes().values()))
        assert outcome.error.name == "ValueError"
        assert outcome.error.message.startswith("gr\\xf6\\xdfer")
        assert len(outcome.error.message) <= 1000
        # It is still the error of an attempt that is tried again.
        assert outcome.retry_after_ms == 10
    finally:
        worker.end()


def test_a_run_stopped_in_the_middle_of_a_call_does_not_hold_up_the_division_of_others(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """A thread of the run is stopped inside of its buffer just when its report turns out to be too large."""
    is_refused, is_inside, others_have_ended = threading.Event(), threading.Event(), threading.Event()

    def accepts(report: RunReport) -> bool:
        if report.id == "run_1" and sum(len(change.operations) for change in report.changes) > 1:
            is_refused.set()
            return is_inside.wait(30) and False
        return True

    server.accepts = accepts

    def stand_still() -> None:
        is_inside.set()
        others_have_ended.wait(60)

    def body(run: Run) -> str:
        if run.id == "run_1":
            for number in range(10):
                run.set(f"key {number}", number)
            assert is_refused.wait(30)
            run.scope.buffer._do(stand_still, 10)
        return "1"

    host(body)
    server.queue(run_of(1))
    assert is_refused.wait(30)
    server.queue(run_of(2), run_of(3))
    server.until(lambda: {"run_2", "run_3"} <= server.outcomes().keys())
    assert "run_1" not in server.outcomes()
    others_have_ended.set()
    server.until(lambda: "run_1" in server.outcomes())
    keys = [
        operation.key
        for report in server.reports
        for change in report.changes
        if change.run == "run_1"
        for operation in change.operations
    ]
    assert keys == [f"key {number}" for number in range(10)]


def test_the_end_of_the_log_of_a_lost_run_is_sent_too(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """Nothing else is waited for, and what an attempt said before it was given up is worth reading."""
    server.log_bytes_max = 4096
    server.replies["run_1"].append(RunReply(id="run_1", lost=True))
    is_lost = threading.Event()

    def body(run: Run) -> str:
        for number in range(100):
            run.link.log(run.scope, "info", f"line {number} {'x' * 100}", "test")
        run.set("a", 1)
        assert is_lost.wait(30)
        run.link.log(run.scope, "info", "the last line", "test")
        return "1"

    worker = host(body)
    server.queue(run_of(1))
    server.until(lambda: worker.interrupted)
    is_lost.set()
    lines = server.until(lambda: server.log["run_1"][-1:] == ["the last line"] and server.log["run_1"])
    assert any("were left out here" in line for line in lines)


# --- what has begun, and for how long the lease is good -------------------------------------------------------


def reports_in(server: FakeServer) -> list[ReportRequest]:
    return [msgspec.json.decode(body, type=ReportRequest) for body in server.bodies("report")]


def test_runs_that_say_nothing_for_a_second_are_reported_as_begun_in_one_report(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate = threading.Event()

    def body(run: Run) -> str:
        if run.id == "run_3":
            run.set("a", 1)
        if run.id != "run_4":
            assert gate.wait(30)
        return "1"

    host(body)
    server.queue(*map(run_of, (1, 2, 3, 4)))
    server.until(lambda: any(report.begun for report in server.reports))
    begun = [[run.id for run in request.runs if run.begun] for request in reports_in(server)]
    assert list(filter(None, begun)) == [["run_1", "run_2"]]
    gate.set()
    server.until(lambda: len(server.outcomes()) == 4)
    assert sum(report.begun for report in server.reports) == 2


def test_short_runs_cause_no_report_beside_their_outcomes(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    host()
    for number in range(20):
        server.queue(run_of(number))
        server.until(lambda number=number: len(server.outcomes()) == number + 1)
    assert server.names().count("report") == 20
    assert not any(report.begun for report in server.reports)


class LeaseTime:
    """The clock of leases, which a test moves."""

    def __init__(self) -> None:
        self.slept = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.slept


def test_a_run_in_line_does_not_start_after_the_lease_when_the_server_has_taken_it(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    """The machine was asleep while one run was under way and others stood in line behind it."""
    clock, gate, started = LeaseTime(), threading.Event(), list[str]()

    def body(run: Run) -> str:
        started.append(run.id)
        if len(started) == 200:
            blocked.set()
            assert gate.wait(30)
        return "1"

    blocked = threading.Event()
    host(body, concurrency=1, clock=clock)
    server.queue(*map(run_of, range(1000)))
    assert blocked.wait(30)
    clock.slept += 3600
    # All that has been claimed and not begun.
    server.taken |= set(server._handed_out) - set(started)
    assert server.taken
    gate.set()
    server.until(lambda: len(server.outcomes()) == 1000 - len(server.taken))
    assert [run_id for run_id in started if run_id in server.taken] == []


@pytest.mark.parametrize("is_taken", [False, True])
def test_the_answer_to_a_claim_that_comes_after_the_lease_is_asked_after(
    server: FakeServer, host: Callable[..., ThreadHost], is_taken: bool
) -> None:
    """The answer lay there while the machine was asleep."""
    clock, started = LeaseTime(), list[str]()
    worker = host(lambda run: started.append(run.id), clock=clock)
    server.until(lambda: "claim_runs" in server.names())
    clock.slept += 3600
    if is_taken:
        server.taken.add("run_1")
    server.queue(run_of(1))
    server.until(lambda: "report" in server.names())
    if is_taken:
        server.until(lambda: "run_1" in worker.interrupted)
        assert started == []
    else:
        server.until(lambda: "run_1" in server.outcomes())
        first = reports_in(server)[0].runs[0]
        assert (first.id, first.begun, first.outcome) == ("run_1", False, None), "asked before it began"


def test_nothing_begins_after_the_lease_while_the_server_is_away(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    clock, gate, started = LeaseTime(), threading.Event(), list[str]()
    blocked = threading.Event()

    def body(run: Run) -> str:
        started.append(run.id)
        if len(started) == 200:
            blocked.set()
            assert gate.wait(30)
        return "1"

    host(body, concurrency=1, clock=clock)
    server.queue(*map(run_of, range(1000)))
    assert blocked.wait(30)
    server.is_away = True
    clock.slept += 3600
    gate.set()
    failed = server.names().count("report")
    server.until(lambda: server.names().count("report") > failed + 3)
    assert len(started) == 200
    server.is_away = False
    server.until(lambda: len(server.outcomes()) == 1000)
    assert len(started) == len(set(started)) == 1000


def test_the_black_box_shows_what_has_begun_and_when_the_server_has_answered(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    box, gate = BlackBox(), threading.Event()
    began = time.monotonic()

    def body(run: Run) -> str:
        if run.id == "run_2":
            run.wait_for("run_x").result(30)
        assert gate.wait(30)
        return "1"

    server.lease_seconds, server.heartbeat_seconds = 6.0, 0.1
    host(body, black_box=box, clock=time.monotonic)
    server.until(lambda: box.lease_seconds == 6.0)
    first = box.answered_at
    assert began <= first <= time.monotonic()
    server.until(lambda: box.answered_at > first)
    server.queue(run_of(1), run_of(2))
    expected = [BegunRun(id="run_1", attempt=1), BegunRun(id="run_2", attempt=1, waiting=True)]
    server.until(lambda: box.begun() == expected)
    gate.set()
    server.say(finished=["run_x"])
    server.until(lambda: not box.begun())


# --- runs that are apart, and queues that are full -----------------------------------------------------------


def test_a_run_that_is_apart_runs_alone_and_begins_when_the_server_has_heard_so(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    lock, now, beside = threading.Lock(), set[str](), list[set[str]]()
    heard: dict[str, int] = {}

    def body(run: Run) -> str:
        with lock:
            now.add(run.id)
            if run.id.startswith("run_apart"):
                heard[run.id] = sum(report.begun and report.id == run.id for report in server.reports)
        time.sleep(0.05)
        with lock:
            if any(run_id.startswith("run_apart") for run_id in now):
                beside.append(set(now))
            now.discard(run.id)
        return "1"

    server.faults["report"] = deque([Fault(status=503), Fault(loses_reply=True)] * 5)
    host(body, concurrency=4)
    for number in range(30):
        server.queue(run_of(number))
        if number % 10 == 5:
            server.queue(ClaimedRun(id=f"run_apart_{number}", task="t", attempt=3, is_apart=True))
    server.until(lambda: len(server.outcomes()) == 33)
    assert sorted(map(sorted, beside)) == [["run_apart_15"], ["run_apart_25"], ["run_apart_5"]]
    assert set(heard.values()) == {1}


def test_a_run_that_is_apart_may_wait_for_a_run_of_the_same_executor(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    def body(run: Run) -> str:
        if run.id == "run_apart":
            server.queue(ClaimedRun(id="run_child", task="t", attempt=1))
            run.wait_for("run_child").result(30)
        else:
            threading.Timer(0.1, lambda: server.say(finished=["run_child"])).start()
        return "1"

    host(body, concurrency=1)
    server.queue(ClaimedRun(id="run_apart", task="t", attempt=2, is_apart=True))
    server.until(lambda: len(server.outcomes()) == 2)


@pytest.mark.parametrize("how", ["called", "inbox breaks"])
def test_a_run_whose_queue_is_full_goes_on_when_it_is_let(
    server: FakeServer, host: Callable[..., ThreadHost], how: str
) -> None:
    has_gone_on = threading.Event()

    def body(run: Run) -> str:
        run.wait_for("run_x" if run.id == "run_1" else "run_y").result(30)
        has_gone_on.set()
        return "1"

    host(body, concurrency=1)
    server.full.add("run_1")
    server.queue(ClaimedRun(id="run_1", task="t", attempt=1, has_queue_limit=True))
    server.until(lambda: any(report.waiting for report in server.reports))
    server.say(finished=["run_x"])
    server.until(lambda: any(report.waiting is False for report in server.reports))
    server.queue(ClaimedRun(id="run_other", task="t", attempt=1))
    server.until(lambda: [report.id for report in server.reports if report.waiting] == ["run_1", "run_other"])
    assert not has_gone_on.is_set()
    server.full.clear()
    if how == "called":
        server.say(resumed=["run_1"])
    else:
        server.break_inbox()
    assert has_gone_on.wait(4), "earlier than it would have asked by itself"
    server.until(lambda: "run_1" in server.outcomes())
    server.say(finished=["run_y"])


def test_a_run_whose_queue_is_full_asks_again_by_itself(
    server: FakeServer, host: Callable[..., ThreadHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "ASK_AGAIN_SECONDS", 0.3)

    def body(run: Run) -> str:
        run.wait_for("run_x").result(30)
        return "1"

    host(body)
    server.full.add("run_1")
    server.queue(ClaimedRun(id="run_1", task="t", attempt=1, has_queue_limit=True))
    server.until(lambda: any(report.waiting for report in server.reports))
    server.say(finished=["run_x"])
    server.until(lambda: sum(report.waiting is False for report in server.reports) == 2)
    server.full.clear()
    server.until(lambda: "run_1" in server.outcomes())


# --- the end -------------------------------------------------------------------------------------------------


def test_a_worker_whose_goodbye_was_not_answered_says_so(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    gate, began = threading.Event(), threading.Event()

    def body(run: Run) -> str:
        began.set()
        gate.wait(30)
        return "1"

    worker = host(body, grace_seconds=0.1)
    server.queue(run_of(1))
    assert began.wait(60)
    server.is_away = True
    worker.link.order(Order.DRAIN)
    assert worker.has_left.wait(20)
    gate.set()
    assert isinstance(worker.error, Unreachable)
    assert worker.abandoned == 1


def test_what_has_not_begun_is_given_back_when_the_server_returns_after_the_order_to_finish(
    server: FakeServer, host: Callable[..., ThreadHost]
) -> None:
    queue = Queue(server, host)
    assert queue.began.wait(60)
    server.is_away = True
    queue.host.link.order(Order.FINISH)
    [left] = server.until(lambda: queue.host.left_to_finish)
    assert left < 50, "what stood in line is not waited for"
    server.is_away = False
    server.until(lambda: any(holds_none_after("run_150", request) for request in server.registered))
    queue.gate.set()
    assert queue.host.has_left.wait(30)
    assert queue.host.error is None
    assert len(queue.started) == len(server.outcomes()) == 151
