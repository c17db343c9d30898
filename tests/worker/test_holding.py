"""What an executor holds: slots given back by waits, reports in the right order, nothing said for runs that are lost."""

import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from types import FrameType
from typing import Any

import msgspec
import pytest

from milepost.errors import AttemptOverError, MetadataFlushError, RunCancelledError
from milepost.model.document import Document
from milepost.model.operations import Set
from milepost.model.run import AttemptEnd, Outcome, RunError
from milepost.protocol.metadata import MetadataChange, MetadataDelta
from milepost.protocol.work import ClaimedRun, InboxFrame, RunReply
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.worker import outbox
from milepost.worker.black_box import BlackBox
from milepost.worker.holding import ASK_AGAIN_SECONDS, Holding
from milepost.worker.lease import Lease
from milepost.worker.outbox import Entry, HeldRun, Outbox
from milepost.worker.settings import ALONE_SECONDS

INTERVAL = 0.05


class FakeHost:
    """Starts nothing: remembers what it was asked."""

    def __init__(self) -> None:
        self.started: list[HeldRun] = []
        self.stopped: list[HeldRun] = []
        self.running_on: list[HeldRun] = []
        self.interrupted: list[HeldRun] = []
        self.notices: list[str] = []

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        link: Any = None
        return HeldRun(RunScope(run, metadata_size_max, link), None)

    def start(self, runs: Sequence[HeldRun]) -> None:
        self.started += runs

    def interrupt(self, run: HeldRun) -> None:
        self.interrupted.append(run)

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

    def left(self, error: BaseException | None, *, abandoned: int) -> None: ...


class Desk:
    """A holding with its fake host, and short forms for what the link does with it."""

    def __init__(self, concurrency: int) -> None:
        self.host = FakeHost()
        self.now = 100.0
        self.lease_time = 1000.0
        self.lease = Lease(lambda: self.lease_time)
        self.box = BlackBox()
        self.holding = Holding(
            self.host,
            concurrency=concurrency,
            flush_interval_seconds=INTERVAL,
            call_later=lambda call, *arguments: call(*arguments),
            # An end of a run lies long ago at the next look: nothing is claimed ahead.
            clock=count(0, 1.0).__next__,
            lease=self.lease,
            black_box=self.box,
        )

    def admit(self, *ids: str, attempt: int = 1, **fields: Any) -> list[HeldRun]:
        before = len(self.host.started)
        runs = [ClaimedRun(id=run_id, task="t", attempt=attempt, **fields) for run_id in ids]
        self.holding.admit(runs, metadata_size_max=262_144, now=self.now)
        self.holding.advance()
        return self.host.started[before:]

    def wait(self, held: HeldRun, target_id: str) -> Future[None]:
        future: Future[None] = Future()
        self.holding.wait(held.scope, target_id, future, now=self.now, heard_at=0.0)
        self.holding.advance()
        return future

    def set(self, held: HeldRun, key: str, value: Any) -> None:
        if held.scope.buffer.add(held.scope.run.id, Set(key=key, value=value)):
            self.holding.wake(held.scope)

    def finish(self, held: HeldRun) -> None:
        self.holding.finish(held, Outcome(output="null"))
        self.holding.advance()

    def report(self) -> list[Entry]:
        return self.holding.outbox.take(self.now)

    def lines(self) -> list[str]:
        """Take and store the next lines of all logs."""
        lines: list[str] = []
        for part in list(self.holding.book.take() or []):
            lines += [msgspec.json.decode(line)["message"] for line in part.lines]
            self.holding.book.acknowledged(part)
        return lines

    def answer(self, entries: Sequence[Entry], **reply: Any) -> None:
        for entry in entries:
            self.holding.answered(entry, RunReply(id=entry.report.id, **reply))
        self.holding.advance()

    def hear(self, **frame: Any) -> None:
        self.holding.hear(InboxFrame(**frame))
        self.holding.advance()

    def pulse(self, now: float) -> None:
        self.holding.pulse(now)
        self.holding.advance()

    def asks(self) -> bool:
        """Whether some run is not let go on, for which will be asked again."""
        return bool(self.holding._not_let)

    def noted(self) -> dict[str, bool]:
        """The runs in the black box, each with whether it executes."""
        return {run.id: not run.waiting for run in self.box.begun()}

    def exchange(self) -> list[Entry]:
        entries = self.report()
        self.answer(entries)
        return entries


def test_a_waiting_run_gives_its_slot_back_and_takes_one_before_it_goes_on() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    assert desk.holding.room == 0
    future = desk.wait(parent, "run_child")
    assert desk.holding.room == 1
    [entry] = desk.exchange()
    assert entry.report.waiting is True

    [child] = desk.admit("run_child")
    desk.holding.target_ended("run_child")
    desk.holding.advance()
    assert not future.done(), "the child still holds the only slot"
    desk.finish(child)
    assert future.done()
    assert desk.holding.room == 0
    reports = {entry.report.id: entry.report for entry in desk.exchange()}
    assert reports["run_parent"].waiting is False
    assert reports["run_child"].outcome == Outcome(output="null")


def test_a_resumed_run_goes_before_claimed_ones() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    future = desk.wait(parent, "run_x")
    desk.holding.target_ended("run_x")
    assert desk.admit("run_other") == []
    assert future.done()
    desk.finish(parent)
    assert [held.scope.run.id for held in desk.host.started] == ["run_parent", "run_other"]


def test_a_run_with_several_waits_has_no_slot_before_the_last_has_ended() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    first, second = desk.wait(parent, "batch_1"), desk.wait(parent, "batch_2")
    desk.holding.target_ended("batch_1")
    desk.holding.advance()
    assert first.done()
    assert desk.holding.room == 1, "the other batch needs the slot"
    desk.holding.target_ended("batch_2")
    desk.holding.advance()
    assert second.done()
    assert desk.holding.room == 0


def test_a_wait_that_was_given_up_takes_a_slot_at_once() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    future = desk.wait(parent, "run_x")
    desk.exchange()
    assert future.cancel()
    assert desk.holding.room == 0
    assert [entry.report.waiting for entry in desk.exchange()] == [False]


def test_a_wait_and_its_end_between_two_reports_are_not_reported() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    desk.wait(parent, "run_x")
    desk.holding.target_ended("run_x")
    desk.holding.advance()
    assert desk.report() == []


def test_an_end_that_was_announced_before_the_wait_is_no_wait() -> None:
    desk = Desk(1)
    [parent] = desk.admit("run_parent")
    desk.holding.hear(InboxFrame(finished=["run_x"]))
    assert desk.wait(parent, "run_x").done()
    assert desk.holding.room == 0
    assert desk.report() == []


@pytest.mark.parametrize(("attempt", "asks"), [(1, []), (2, ["run_x"])])
def test_what_an_earlier_attempt_has_begun_is_asked_after_at_once(attempt: int, asks: list[str]) -> None:
    """It may have ended while nobody held the run, and was announced to nobody."""
    desk = Desk(1)
    [parent] = desk.admit("run_parent", attempt=attempt)
    desk.wait(parent, "run_x")
    assert desk.holding.waits.to_check(desk.now) == asks


def test_what_others_wrote_while_the_inbox_was_away_is_asked_for() -> None:
    """A run that only looks at its document would never see it otherwise: nothing else may come for as long as it runs."""
    desk = Desk(2)
    desk.admit("run_1", "run_2")
    desk.report()
    desk.hear(hello=True)
    desk.now += INTERVAL
    entries = desk.exchange()
    assert [entry.held.scope.run.id for entry in entries] == ["run_1", "run_2"]
    assert [(entry.report.metadata_version, entry.report.sequence) for entry in entries] == [(0, 0)] * 2
    desk.now += INTERVAL
    assert desk.exchange() == [], "once"


def test_the_first_change_leaves_at_once_and_later_ones_by_the_interval() -> None:
    desk = Desk(2)
    [one, other] = desk.admit("run_1", "run_2")
    desk.set(one, "a", 1)
    assert desk.holding.outbox.due_at() <= desk.now
    entries = desk.report()
    desk.set(other, "b", 1)
    assert desk.report() == [], "it is not due"
    assert desk.holding.outbox.due_at() == desk.now + INTERVAL
    desk.answer(entries)
    desk.set(one, "a", 2)
    desk.now += INTERVAL
    assert [entry.report.id for entry in desk.report()] == ["run_2", "run_1"]


@pytest.mark.parametrize(
    ("interval", "took", "pause"),
    [(0.05, 0.002, 0.004), (0.05, 3.0, 0.05), (0.001, 0.002, 0.001), (0.0, 0.002, 0.0), (30.0, 0.002, 30.0)],
)
def test_the_next_report_gathers_as_long_as_the_last_one_took(
    interval: float, took: float, pause: float
) -> None:
    """An idle server is told soon, a busy one in larger groups, and an interval that somebody has made longer is kept."""
    outbox = Outbox(interval)
    desk = Desk(1)
    [held] = desk.admit("run_1")
    outbox.add(held)
    outbox.take(10.0)
    outbox.took(took)
    outbox.add(held)
    assert outbox.due_at() == pytest.approx(10.0 + pause)


def test_an_outcome_leaves_at_once_with_its_last_operations_and_alone() -> None:
    desk = Desk(2)
    [one, other] = desk.admit("run_1", "run_2")
    desk.set(one, "a", 1)
    desk.exchange()
    desk.set(one, "a", 2)
    desk.set(other, "b", 1)
    desk.finish(one)
    [entry] = desk.report()
    assert entry.report.id == "run_1"
    assert entry.report.outcome is not None
    assert [change.run for change in entry.report.changes] == ["run_1"]


def test_what_is_added_while_a_report_is_under_way_goes_with_the_next() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    first = desk.report()
    desk.set(held, "a", 2)
    desk.finish(held)
    desk.answer(first)
    [entry] = desk.exchange()
    assert (first[0].report.sequence, entry.report.sequence) == (1, 2)
    assert entry.report.outcome is not None
    assert held.is_over
    assert len(desk.holding) == 0


def test_a_flush_ends_when_all_before_it_is_answered() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    under_way = desk.report()
    desk.set(held, "a", 2)
    future: Future[None] = Future()
    desk.holding.flush(held.scope, held.scope.buffer.mark(), future)
    desk.answer(under_way)
    assert not future.done(), "the second change has not left yet"
    entries = desk.report()
    assert entries, "a flush does not wait for the interval"
    desk.answer(entries)
    assert future.done()


def test_a_flush_with_nothing_to_send_ends() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    future: Future[None] = Future()
    desk.holding.flush(held.scope, held.scope.buffer.mark(), future)
    assert desk.report() == []
    assert future.done()


def test_a_flush_of_a_lost_run_fails_unless_everything_was_committed_before() -> None:
    """M37: a flush never says that something is committed when it is not."""
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    desk.exchange()
    desk.set(held, "a", 2)
    before: Future[None] = Future()
    desk.holding.flush(held.scope, held.scope.buffer.mark(), before)
    desk.answer(desk.report(), lost=True)
    later: Future[None] = Future()
    desk.holding.flush(held.scope, held.scope.buffer.mark(), later)
    for future in (before, later):
        with pytest.raises(MetadataFlushError, match="attempt 1 of run run_1 was given up"):
            future.result(0)


def test_the_outcome_waits_for_the_last_lines_of_the_log() -> None:
    """Who sees the end of a run finds its log whole."""
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    desk.holding.log(held.scope, "info", "hello", "test")
    desk.finish(held)
    # Operations do not wait.
    [entry] = desk.exchange()
    assert entry.report.changes
    assert entry.report.outcome is None
    assert desk.report() == []
    assert desk.lines() == ["hello"]
    desk.holding.let_go(0.0)
    [entry] = desk.exchange()
    assert entry.report.outcome is not None


def test_the_outcome_does_not_wait_long_for_the_log() -> None:
    """No log keeps a run from ending."""
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.holding.log(held.scope, "info", "hello", "test")
    desk.finish(held)
    until = desk.holding.held_back_until()
    assert until is not None
    desk.holding.let_go(until - 0.001)
    assert desk.report() == []
    desk.holding.let_go(until)
    [entry] = desk.exchange()
    assert entry.report.outcome is not None
    assert desk.holding.held_back_until() is None
    assert len(desk.holding) == 0
    # The lines are sent all the same.
    assert desk.lines() == ["hello"]


def test_what_a_full_backlog_refused_is_told_in_the_log_of_the_run() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    held.scope.buffer = Buffer("run_1", 1, Document(), backlog_bytes_max=100)
    for number in range(10):
        desk.set(held, f"key {number}", number)
    [entry] = desk.report()
    [line] = desk.lines()
    taken = sum(len(change.operations) for change in entry.report.changes)
    assert line.startswith(f"{10 - taken} metadata operations were refused")


def test_a_run_whose_thread_was_stopped_in_the_middle_of_a_call_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its updates are kept, its lines leave as ever, and the others are reported."""
    monkeypatch.setattr(outbox, "BUSY_SECONDS_MAX", 0.01)
    desk = Desk(2)
    stopped, other = desk.admit("run_1", "run_2")
    desk.set(stopped, "a", 1)
    desk.set(other, "a", 1)
    desk.holding.log(stopped.scope, "info", "hello", "test")
    is_inside, goes_on = threading.Event(), threading.Event()

    def trace(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_name == "apply" and not is_inside.is_set():
            is_inside.set()
            assert goes_on.wait(20)

    def run() -> None:
        sys.settrace(trace)
        desk.set(stopped, "b", 2)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_inside.wait(20)
    assert desk.lines() == ["hello"]
    for _ in range(3):
        entries = desk.report()
        assert [entry.held for entry in entries] == [other]
        desk.answer(entries)
        assert desk.holding.outbox.due_at() == desk.now + INTERVAL
        desk.now += INTERVAL
    goes_on.set()
    thread.join(20)
    [entry] = [entry for entry in desk.report() if entry.held is stopped]
    assert entry.report.changes[0].operations == [Set("a", 1), Set("b", 2)]


def test_a_lost_run_is_interrupted_keeps_its_slot_and_says_nothing_more() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    desk.answer(desk.report(), lost=True)
    assert desk.host.interrupted == [held]
    [notice] = desk.host.notices
    assert "run_1" in notice
    assert "given up attempt 1" in notice
    assert "1 metadata operations" in notice
    assert desk.holding.room == 0
    assert desk.holding.attempts() == {}
    desk.set(held, "a", 2)
    desk.now += INTERVAL
    assert desk.report() == []
    desk.finish(held)
    assert desk.report() == []
    assert desk.holding.room == 1
    assert len(desk.holding) == 0


def test_a_lost_run_that_waits_is_told() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    future = desk.wait(held, "run_x")
    desk.answer(desk.report(), lost=True)
    with pytest.raises(AttemptOverError, match="attempt 1 of run run_1 is over"):
        future.result(0)


def test_a_lost_run_that_has_not_started_never_starts() -> None:
    desk = Desk(1)
    [first] = desk.admit("run_1")
    assert desk.admit("run_2") == []
    # The second attempt of it was handed out because the server gave up the first.
    assert desk.admit("run_2", attempt=2) == []
    desk.finish(first)
    assert [(held.scope.run.id, held.scope.run.attempt) for held in desk.host.started] == [
        ("run_1", 1),
        ("run_2", 2),
    ]


def test_a_claim_that_is_answered_twice_starts_its_runs_once() -> None:
    desk = Desk(4)
    assert len(desk.admit("run_1")) == 1
    assert desk.admit("run_1") == []


def test_a_run_that_was_lost_and_comes_back_under_its_number_is_run_again() -> None:
    desk = Desk(4)
    [held] = desk.admit("run_1")
    desk.set(held, "a", 1)
    report = desk.report()
    # The claim's answer overtakes the one that tells of the loss.
    assert desk.admit("run_1") == []
    desk.answer(report, lost=True)
    assert [again.scope.run.id for again in desk.host.started] == ["run_1", "run_1"]
    assert desk.host.interrupted == [held]
    # And after it: the lost code still goes on.
    [third] = desk.admit("run_2")
    desk.now += 1
    desk.set(third, "a", 1)
    desk.answer(desk.report(), lost=True)
    desk.finish(held)
    assert [again.scope.run.id for again in desk.admit("run_2")] == ["run_2"]


def test_a_run_that_ends_with_open_waits_gives_back_one_slot() -> None:
    desk = Desk(2)
    [held] = desk.admit("run_1")
    futures = [desk.wait(held, "run_x"), desk.wait(held, "run_y")]
    desk.finish(held)
    assert desk.holding.room == 2
    assert all(future.done() for future in futures)
    desk.holding.target_ended("run_x")
    desk.holding.advance()
    assert desk.holding.room == 2


def test_only_waiting_is_seen() -> None:
    desk = Desk(2)
    [one, other] = desk.admit("run_1", "run_2")
    desk.wait(one, "run_x")
    assert not desk.holding.has_only_waiting()
    desk.finish(other)
    assert not desk.holding.has_only_waiting(), "an outcome has to be reported"
    desk.exchange()
    assert desk.holding.has_only_waiting()


# --- what is noted in the black box --------------------------------------------------------------------------


def test_the_black_box_has_what_was_begun_and_is_not_over() -> None:
    desk = Desk(2)
    one, two = desk.admit("run_1", "run_2", "run_in_line")
    assert desk.noted() == {"run_1": True, "run_2": True}
    future = desk.wait(one, "run_child")
    assert desk.noted() == {"run_1": False, "run_2": True, "run_in_line": True}
    desk.finish(two)
    assert desk.noted()["run_2"] is False, "its code is over, and the server has not been told"
    desk.exchange()
    assert "run_2" not in desk.noted()
    desk.hear(finished=["run_child"])
    assert future.done()
    assert desk.noted() == {"run_1": True, "run_in_line": True}


def test_a_lost_run_is_noted_until_its_code_has_ended() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    desk.set(held, "key", 1)
    desk.answer(desk.report(), lost=True)
    assert desk.noted() == {"run_1": True}
    desk.finish(held)
    assert desk.noted() == {}


def test_a_run_that_gave_up_waiting_executes() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1")
    future = desk.wait(held, "run_child")
    assert desk.noted() == {"run_1": False}
    future.cancel()
    assert desk.noted() == {"run_1": True}


# --- what has begun ------------------------------------------------------------------------------------------


def begun(entries: Sequence[Entry]) -> list[str]:
    return [entry.report.id for entry in entries if entry.report.begun]


def test_runs_that_say_nothing_are_reported_as_begun_together_and_once() -> None:
    desk = Desk(10)
    one, two, three, four = desk.admit("run_1", "run_2", "run_3", "run_4")
    desk.set(two, "key", 1)
    desk.wait(three, "run_child")
    desk.exchange()
    desk.finish(four)
    desk.exchange()
    assert desk.holding.needs_pulse
    desk.pulse(0.1)
    assert desk.report() == [], "not yet"
    desk.pulse(1000.0)
    entries = desk.exchange()
    assert begun(entries) == ["run_1"]
    assert not desk.holding.needs_pulse
    desk.pulse(2000.0)
    assert desk.report() == []
    desk.set(one, "key", 2)
    assert begun(desk.exchange()) == []


def test_a_run_that_is_lost_is_not_said_to_have_begun() -> None:
    desk = Desk(10)
    [held] = desk.admit("run_1")
    desk.holding.lose(held)
    assert not desk.holding.needs_pulse


# --- runs that are apart -------------------------------------------------------------------------------------


def test_a_run_that_is_apart_starts_alone_and_when_the_server_has_heard_so() -> None:
    desk = Desk(5)
    [other] = desk.admit("run_1")
    assert desk.admit("run_apart", is_apart=True) == []
    assert desk.holding.room == 0
    assert desk.report() == [], "another one executes"
    assert desk.admit("run_2") == []
    desk.finish(other)
    assert [held.scope.run.id for held in desk.host.started] == ["run_1"]
    entries = desk.report()
    assert begun(entries) == ["run_apart"]
    assert "run_apart" not in desk.noted()
    desk.answer(entries)
    assert [held.scope.run.id for held in desk.host.started] == ["run_1", "run_apart"]
    assert desk.noted() == {"run_apart": True}
    assert desk.holding.room == 0
    desk.pulse(1000.0)
    assert desk.report() == [], "the server knows it"
    desk.finish(desk.host.started[-1])
    assert desk.host.started[-1].scope.run.id == "run_2"
    assert desk.holding.room > 0


def test_a_run_that_is_apart_and_was_taken_away_does_not_start() -> None:
    desk = Desk(5)
    assert desk.admit("run_apart", is_apart=True) == []
    assert desk.admit("run_2") == []
    desk.answer(desk.report(), lost=True)
    assert [held.scope.run.id for held in desk.host.started] == ["run_2"]
    assert "run_apart" not in desk.holding.attempts()
    assert desk.holding.room == 4


def test_a_run_that_is_apart_is_given_back_while_the_server_is_asked() -> None:
    desk = Desk(5)
    desk.admit("run_apart", is_apart=True)
    entries = desk.report()
    desk.holding.start_no_more()
    assert desk.holding.withdraw()
    desk.answer(entries)
    assert desk.host.started == []
    assert len(desk.holding) == 0


def test_what_a_run_that_is_apart_waits_for_may_run_and_it_comes_back_alone() -> None:
    desk = Desk(5)
    desk.admit("run_apart", is_apart=True)
    desk.exchange()
    [apart] = desk.host.started
    future = desk.wait(apart, "run_child")
    assert desk.holding.room == 5
    [child, other] = desk.admit("run_child", "run_other")
    desk.finish(child)
    desk.hear(finished=["run_child"])
    assert not future.done(), "another one executes"
    assert desk.admit("run_more") == []
    desk.finish(other)
    assert future.done()
    assert desk.host.started[-1] is other, "nothing is started beside it"


@pytest.mark.parametrize("attempt", [2, 3])
def test_a_run_that_is_apart_has_company_after_a_while(attempt: int) -> None:
    """One that takes hours would keep an executor for itself. Each attempt is alone for longer, so that a late death is found too."""
    desk = Desk(5)
    desk.admit("run_apart", is_apart=True, attempt=attempt)
    desk.exchange()
    [apart] = desk.host.started
    alone_until = ALONE_SECONDS * 2 ** (attempt - 1)
    desk.pulse(alone_until - 1)
    assert desk.holding.room == 0
    assert desk.holding.needs_pulse
    desk.pulse(alone_until + 10)
    assert desk.holding.room == 4
    assert not desk.holding.needs_pulse
    assert len(desk.admit("run_1", "run_2")) == 2
    # It waits and comes back like any other.
    future = desk.wait(apart, "run_child")
    desk.hear(finished=["run_child"])
    assert future.done()
    # Another one that is apart waits until all of them are done.
    assert desk.admit("run_next", is_apart=True) == []
    for held in list(desk.host.started):
        desk.finish(held)
    assert begun(desk.exchange()) == ["run_next"]
    assert desk.holding.room == 0


# --- queues with a limit -------------------------------------------------------------------------------------


def waiting_in_full_queue(desk: Desk, run_id: str = "run_1") -> tuple[HeldRun, Future[None]]:
    """A run whose wait has ended and that the server has not let go on."""
    [held] = desk.admit(run_id, has_queue_limit=True)
    future = desk.wait(held, f"{run_id}_child")
    desk.exchange()
    desk.hear(finished=[f"{run_id}_child"])
    entries = desk.report()
    assert [entry.report.waiting for entry in entries] == [False]
    assert not future.done()
    desk.answer(entries, resumed=False)
    assert not future.done()
    return held, future


def test_a_run_of_a_limited_queue_goes_on_when_the_server_says_so() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", has_queue_limit=True)
    future = desk.wait(held, "run_child")
    desk.exchange()
    desk.hear(finished=["run_child"])
    assert not future.done()
    assert desk.noted() == {"run_1": False}
    assert desk.holding.room == 0, "it has a slot while it asks"
    desk.answer(desk.report(), resumed=True)
    assert future.done()
    assert desk.noted() == {"run_1": True}
    assert desk.report() == []


def test_a_run_that_may_not_go_on_gives_its_slot_back_and_asks_again_when_it_is_called() -> None:
    desk = Desk(1)
    _, future = waiting_in_full_queue(desk)
    assert desk.report() == [], "it keeps its place without a word"
    [other] = desk.admit("run_2")
    desk.hear(resumed=["run_1"])
    assert desk.report() == [], "there is no slot"
    desk.finish(other)
    entries = [entry for entry in desk.report() if entry.report.id == "run_1"]
    assert [entry.report.waiting for entry in entries] == [False]
    desk.answer(entries, resumed=True)
    assert future.done()


@pytest.mark.parametrize("how", ["hello", "time"])
def test_a_run_that_may_not_go_on_asks_again(how: str) -> None:
    desk = Desk(1)
    _, future = waiting_in_full_queue(desk)
    assert desk.asks()
    if how == "hello":
        desk.hear(hello=True)
    else:
        desk.pulse(1.0)
        assert desk.report() == []
        desk.pulse(1000.0 + ASK_AGAIN_SECONDS)
    entries = desk.report()
    assert [entry.report.waiting for entry in entries] == [False]
    desk.answer(entries, resumed=False)
    assert not future.done()
    desk.hear(resumed=["run_1"])
    desk.answer(desk.report(), resumed=True)
    assert future.done()
    assert not desk.asks()


def test_a_call_that_comes_before_the_answer_counts() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", has_queue_limit=True)
    future = desk.wait(held, "run_child")
    desk.exchange()
    desk.hear(finished=["run_child"])
    entries = desk.report()
    desk.hear(resumed=["run_1"])
    desk.answer(entries, resumed=False)
    entries = desk.report()
    assert [entry.report.waiting for entry in entries] == [False]
    desk.answer(entries, resumed=True)
    assert future.done()


def test_an_answer_without_a_word_is_asked_for_again() -> None:
    """The report has come twice, and the second answer does not say whether the run goes on."""
    desk = Desk(1)
    [held] = desk.admit("run_1", has_queue_limit=True)
    future = desk.wait(held, "run_child")
    desk.exchange()
    desk.set(held, "key", 1)
    desk.hear(finished=["run_child"])
    entries = desk.report()
    assert [(entry.report.waiting, entry.report.sequence) for entry in entries] == [(False, 1)]
    desk.answer(entries)
    assert not future.done()
    entries = desk.report()
    assert [(entry.report.waiting, entry.report.sequence) for entry in entries] == [(False, 0)]
    desk.answer(entries, resumed=True)
    assert future.done()


def test_a_run_that_gives_up_waiting_for_its_queue_goes_on_and_asks_until_it_may() -> None:
    desk = Desk(1)
    held, future = waiting_in_full_queue(desk)
    [other] = desk.admit("run_2")
    future.cancel()
    desk.holding.advance()
    assert desk.noted() == {"run_1": True, "run_2": True}
    assert desk.holding.room == 0
    desk.pulse(1000.0)
    entries = [entry for entry in desk.report() if entry.report.waiting is not None]
    assert [entry.report.waiting for entry in entries] == [False]
    desk.answer(entries, resumed=True)
    assert desk.report() == []
    desk.pulse(2000.0)
    assert desk.report() == []
    desk.finish(held)
    desk.finish(other)
    assert desk.holding.room == 1


def test_a_run_that_gives_up_waiting_while_the_server_is_asked_goes_on() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", has_queue_limit=True)
    future = desk.wait(held, "run_child")
    desk.exchange()
    desk.hear(finished=["run_child"])
    entries = desk.report()
    future.cancel()
    assert desk.noted() == {"run_1": True}
    desk.answer(entries, resumed=False)
    assert desk.noted() == {"run_1": True}
    again = desk.wait(held, "run_other_child")
    entries = desk.exchange()
    assert [entry.report.waiting for entry in entries] == [True], "it is in nobody's line any more"
    assert not desk.asks()
    desk.hear(finished=["run_other_child"])
    desk.answer(desk.report(), resumed=True)
    assert again.done()
    desk.finish(held)
    assert desk.holding.room == 1


@pytest.mark.parametrize("when", ["asked", "not let"])
def test_another_wait_of_the_same_run_ends_its_asking(when: str) -> None:
    desk = Desk(1)
    if when == "asked":
        [held] = desk.admit("run_1", has_queue_limit=True)
        first = desk.wait(held, "run_1_child")
        desk.exchange()
        desk.hear(finished=["run_1_child"])
        entries = desk.report()
        second = desk.wait(held, "run_child")
        assert not first.done()
        desk.answer(entries, resumed=True)
    else:
        held, first = waiting_in_full_queue(desk)
        second = desk.wait(held, "run_child")
    assert first.done(), "one task of it goes on while another one waits, which takes no slot"
    assert not second.done()
    assert desk.holding.room == 1
    assert [entry.report.waiting for entry in desk.exchange()] == [True]
    desk.hear(finished=["run_child"])
    desk.answer(desk.report(), resumed=True)
    assert second.done()
    assert desk.holding.room == 0


def test_a_run_that_is_lost_or_ends_asks_no_more() -> None:
    desk = Desk(2)
    held, future = waiting_in_full_queue(desk)
    desk.holding.lose(held)
    assert isinstance(future.exception(0), AttemptOverError)
    assert not desk.asks()
    desk.hear(resumed=["run_1"], hello=True)
    assert desk.report() == []
    assert desk.holding.room == 1, "its code executes until it has ended"
    desk.finish(held)
    other, _ = waiting_in_full_queue(desk, "run_2")
    desk.finish(other)
    assert not desk.asks()
    assert desk.holding.room == 2


def test_input_that_is_waited_for_goes_the_same_way() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", has_queue_limit=True)
    desk.holding.step_aside(held.scope)
    desk.exchange()
    future: Future[None] = Future()
    desk.holding.come_back(held.scope, future, at_once=False)
    desk.holding.advance()
    desk.answer(desk.report(), resumed=False)
    assert not future.done()
    future.cancel()
    desk.holding.advance()
    assert desk.noted() == {"run_1": True}
    desk.hear(resumed=["run_1"])
    desk.answer(desk.report(), resumed=True)
    assert desk.holding.room == 0
    desk.finish(held)
    assert desk.holding.room == 1


@pytest.mark.parametrize("seed", range(8))
def test_many_runs_of_limited_queues_keep_the_slots(seed: int) -> None:
    """Whatever happens in whatever order: no slot is lost, and no code goes on that neither gave up nor was let go on."""
    chance = random.Random(seed)
    desk = Desk(3)
    number = 0
    live: dict[HeldRun, Future[None] | None] = {}
    let: set[str] = set()
    waits_for: dict[HeldRun, str] = {}
    for _ in range(2000):
        match chance.randrange(8):
            case 0 if desk.holding.room and len(live) < 12:
                number += 1
                desk.admit(
                    f"run_{number}", has_queue_limit=chance.random() < 0.7, is_apart=chance.random() < 0.1
                )
            case 1 | 2 if free := [held for held, future in live.items() if future is None]:
                held = chance.choice(free)
                number += 1
                waits_for[held] = f"child_{number}"
                live[held] = desk.wait(held, waits_for[held])
                let.discard(held.scope.run.id)
            case 3 if free := [held for held, future in live.items() if future is None]:
                held = chance.choice(free)
                del live[held]
                desk.finish(held)
            case 4 if waits_for:
                desk.hear(finished=[waits_for.pop(chance.choice(list(waits_for)))])
            case 5 if asleep := [held for held, future in live.items() if future is not None]:
                held = chance.choice(asleep)
                future = live[held]
                assert future is not None
                if chance.random() < 0.3 and future.cancel():
                    waits_for.pop(held, None)
                    let.add(held.scope.run.id)
                else:
                    desk.hear(resumed=[held.scope.run.id])
            case 6:
                desk.pulse(chance.random() * 100_000)
            case 7:
                for entry in desk.report():
                    is_let = entry.report.waiting is False and chance.random() < 0.5
                    if is_let:
                        let.add(entry.report.id)
                    desk.answer([entry], **({"resumed": is_let} if entry.report.waiting is False else {}))
            case _:
                pass
        desk.holding.advance()
        for held in desk.host.started:
            live.setdefault(held, None)
        desk.host.started.clear()
        for held, future in live.items():
            if future is not None and future.done():
                assert held.scope.run.id in let or not held.scope.run.has_queue_limit
                live[held] = None
        executing = [held for held in live if held.holds_slot and held.comes_back is None]
        assert desk.holding._slots.held == sum(held.holds_slot for held in live) + (
            desk.holding._confirming is not None
        )
        assert desk.holding._slots._held_apart == sum(held.holds_slot and held.is_alone for held in live) + (
            desk.holding._confirming is not None
        )
        assert len(executing) <= 3 + sum(held.scope.run.id in let for held in live)
    for held in list(live):
        desk.finish(held)
    while entries := desk.report():
        desk.answer(entries, resumed=True)
        for held in desk.host.started:
            desk.finish(held)
        desk.host.started.clear()
    assert desk.holding.room == 3
    assert desk.noted() == {}
    assert number > 150


# --- after the lease was over --------------------------------------------------------------------------------


def expired(desk: Desk) -> None:
    desk.lease_time += 1000


def confirmed(desk: Desk) -> None:
    """A request was answered."""
    if desk.lease.confirm(desk.lease_time):
        desk.holding.doubt()


def test_nothing_begins_after_the_lease_until_the_server_has_said_what_it_has_taken() -> None:
    desk = Desk(1)
    desk.lease.seconds = 10.0
    [running] = desk.admit("run_1", "run_2", "run_3")
    expired(desk)
    desk.finish(running)
    assert desk.host.started == [running]
    entries = desk.report()
    assert sorted(entry.report.id for entry in entries) == ["run_1", "run_2", "run_3"]
    confirmed(desk)
    for entry in entries:
        desk.answer([entry], lost=entry.report.id == "run_2")
    desk.exchange()
    assert [held.scope.run.id for held in desk.host.started] == ["run_1", "run_3"]
    assert "run_2" not in desk.holding.attempts()


def test_an_answer_after_the_lease_is_no_leave_for_what_was_claimed_before() -> None:
    """Something else was answered first: the lease is good again, and the runs in line may be gone nevertheless."""
    desk = Desk(1)
    desk.lease.seconds = 10.0
    [running] = desk.admit("run_1", "run_2")
    expired(desk)
    confirmed(desk)
    desk.finish(running)
    assert desk.host.started == [running]
    entries = desk.report()
    desk.answer(entries, lost=True)
    assert desk.host.started == [running]
    assert desk.admit("run_3") != []


def test_an_answer_from_before_the_lease_was_over_settles_no_doubt() -> None:
    desk = Desk(1)
    desk.lease.seconds = 10.0
    [running] = desk.admit("run_1", "run_2")
    expired(desk)
    confirmed(desk)
    old = desk.report()
    expired(desk)
    confirmed(desk)
    desk.answer([entry for entry in old if entry.report.id == "run_2"])
    desk.finish(running)
    assert desk.host.started == [running]
    desk.exchange()
    assert len(desk.host.started) == 2


def test_a_claim_that_is_older_than_the_lease_is_asked_after() -> None:
    desk = Desk(1)
    desk.lease.seconds = 10.0
    confirmed(desk)
    run = ClaimedRun(id="run_1", task="t", attempt=1)
    desk.holding.admit([run], metadata_size_max=1000, now=desk.now, is_doubtful=True)
    desk.holding.advance()
    assert desk.host.started == []
    entries = desk.report()
    assert [(entry.report.id, entry.report.begun) for entry in entries] == [("run_1", False)]
    desk.answer(entries)
    assert len(desk.host.started) == 1


def test_a_run_that_is_apart_does_not_begin_by_an_answer_from_before_the_lease_was_over() -> None:
    desk = Desk(1)
    desk.lease.seconds = 10.0
    desk.admit("run_apart", is_apart=True)
    entries = desk.report()
    expired(desk)
    desk.answer(entries)
    assert desk.host.started == []
    confirmed(desk)
    entries = desk.report()
    assert begun(entries) == ["run_apart"]
    desk.answer(entries)
    desk.exchange()
    assert len(desk.host.started) == 1


# --- runs that are to end ------------------------------------------------------------------------------------


class TimedDesk(Desk):
    """As `Desk`, with a clock that stands still until it is set."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(concurrency)
        self.holding._clock = lambda: self.now
        self.holding.stop_grace_seconds = 30.0

    @property
    def slots(self) -> int:
        """How many are held."""
        return self.holding._slots.held

    def last_words(self) -> list[Entry]:
        """What is reported once the logs are stored."""
        self.lines()
        self.holding.let_go(self.now)
        return self.report()

    def end_over_its_head(self, entries: Sequence[Entry], *, is_lost: bool) -> None:
        """A run that was told to end does not: this report of it is answered by `lost`, or its grace time is over."""
        self.answer(entries, lost=is_lost)
        if not is_lost:
            self.pass_time(31)
            self.answer(self.last_words())

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.holding.deadline is not None and self.holding.deadline <= self.now:
            self.holding.look_for_deadlines(self.now)
        self.holding.advance()


def outcome_of(entries: Sequence[Entry]) -> Outcome:
    [outcome] = [entry.report.outcome for entry in entries if entry.report.outcome is not None]
    return outcome


@pytest.mark.parametrize("by_inbox", [True, False])
def test_a_run_that_is_to_end_is_told_so_once(by_inbox: bool) -> None:
    desk = TimedDesk(2)
    [run, _] = desk.admit("run_1", "run_2")
    if by_inbox:
        desk.hear(cancelled=["run_1", "run_of_others"])
    else:
        desk.set(run, "a", 1)
        desk.answer(desk.report(), cancel=True)
    assert desk.host.stopped == [run]
    assert run.scope.cancel_asked
    assert run.scope.stop is not None
    assert run.scope.stop.end is AttemptEnd.CANCELLED
    desk.hear(cancelled=["run_1"])
    assert desk.host.stopped == [run]
    assert desk.slots == 2
    desk.holding.finish(run, Outcome(error=RunError("ended"), end=AttemptEnd.CANCELLED))
    assert desk.slots == 1
    desk.pass_time(100)
    assert desk.host.interrupted == []


def test_code_that_has_not_begun_never_does() -> None:
    desk = TimedDesk(1)
    [first] = desk.admit("run_1")
    assert desk.admit("run_2", "run_3") == []
    desk.hear(cancelled=["run_2"])
    outcome = outcome_of(desk.exchange())
    assert (outcome.end, outcome.error and outcome.error.name) == (AttemptEnd.CANCELLED, "RunCancelledError")
    desk.hear(cancelled=["run_3"])
    desk.finish(first)
    assert [held.scope.run.id for held in desk.host.started] == ["run_1"]
    assert desk.slots == 0, "no slot is lost, although the server has not answered yet"
    desk.exchange()
    assert len(desk.holding) == 0
    assert desk.holding.attempts() == {}


def test_a_run_that_is_apart_and_not_confirmed_never_begins() -> None:
    desk = TimedDesk(1)
    assert desk.admit("run_1", is_apart=True) == []
    [entry] = desk.report()
    assert entry.report.begun
    desk.answer([entry], cancel=True)
    assert desk.host.started == []
    assert outcome_of(desk.exchange()).end is AttemptEnd.CANCELLED
    assert len(desk.holding) == 0
    assert desk.slots == 0


@pytest.mark.parametrize("moment", ["waits", "in line", "not let"])
def test_a_thread_that_waits_goes_on_at_once_with_the_error(moment: str) -> None:
    desk = TimedDesk(1)
    [run] = desk.admit("run_1", has_queue_limit=True)
    future = desk.wait(run, "run_child")
    desk.exchange()
    if moment == "not let":
        desk.holding.target_ended("run_child")
        desk.holding.advance()
        desk.answer(desk.report(), resumed=False)
        assert desk.asks()
    desk.hear(cancelled=["run_1"])
    if moment == "in line":
        desk.holding.target_ended("run_child")
    assert isinstance(future.exception(0), RunCancelledError)
    assert run.open_waits == 0
    assert run.holds_slot
    assert desk.slots == 1
    assert desk.noted() == {"run_1": True}
    if moment == "not let":
        assert desk.report() == [], "the server knows that it wants to go on"
    else:
        [entry] = desk.report()
        assert entry.report.waiting is False
        desk.answer([entry], resumed=True)
    desk.finish(run)
    assert desk.slots == 0


def test_code_that_does_not_end_is_given_up_and_keeps_its_slot_until_it_does() -> None:
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    desk.set(run, "done", 5)
    desk.hear(cancelled=["run_1"])
    desk.pass_time(29.9)
    assert desk.host.interrupted == []
    desk.pass_time(0.2)
    assert desk.host.interrupted == [run]
    entries = desk.last_words()
    assert [len(entry.report.changes) for entry in entries] == [1], "what it has written is stored"
    assert outcome_of(entries).end is AttemptEnd.CANCELLED
    desk.answer(entries)
    assert desk.host.running_on == [run]
    assert len(desk.holding) == 0, "nothing waits for its end"
    assert not desk.holding
    assert desk.holding.has_only_waiting()
    assert desk.slots == 1
    assert desk.noted() == {"run_1": True}, "it may still kill the process"
    [notice] = desk.host.notices
    assert "asked to end and has not within 30 s" in notice
    desk.set(run, "late", 1)
    assert desk.exchange() == []
    desk.finish(run)
    assert desk.exchange() == []
    assert desk.slots == 0
    assert desk.noted() == {}
    assert desk.holding.scopes() == []


def test_code_that_ends_just_after_it_was_given_up_says_nothing_else() -> None:
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    desk.hear(cancelled=["run_1"])
    desk.pass_time(31)
    desk.finish(run)
    assert outcome_of(desk.last_words()).end is AttemptEnd.CANCELLED
    assert desk.slots == 0


def test_code_that_is_given_up_and_lost_frees_its_slot_in_the_end() -> None:
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    desk.hear(cancelled=["run_1"])
    desk.pass_time(31)
    desk.answer(desk.last_words(), lost=True)
    assert len(desk.holding) == 0
    desk.finish(run)
    assert desk.slots == 0
    assert desk.holding.scopes() == []


@pytest.mark.parametrize("is_told", [False, True])
def test_code_that_was_given_up_waits_for_nothing_and_keeps_its_slot(is_told: bool) -> None:
    """Before the server knows that the run is over, and afterwards. What it would wait for may even have ended."""
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    desk.holding.hear(InboxFrame(finished=["run_x"]))
    desk.hear(cancelled=["run_1"])
    desk.pass_time(31)
    if is_told:
        desk.answer(desk.last_words())
    for target in ("run_x", "run_y"):
        assert isinstance(desk.wait(run, target).exception(0), AttemptOverError)
    desk.holding.step_aside(run.scope)
    back: Future[None] = Future()
    desk.holding.come_back(run.scope, back, at_once=False)
    assert back.done()
    assert desk.slots == 1
    entries = [] if is_told else desk.last_words()
    assert [entry.report.waiting for entry in entries] == ([] if is_told else [None])
    desk.finish(run)
    assert desk.slots == 0


@pytest.mark.parametrize("is_lost", [False, True])
def test_code_that_outlives_its_run_while_it_stands_in_line_takes_a_slot_until_it_ends(is_lost: bool) -> None:
    """It does not wait for a slot that it holds itself."""
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    desk.hear(cancelled=["run_1"])
    future = desk.wait(run, "run_x")
    [other] = desk.admit("run_2")
    desk.hear(finished=["run_x"])
    assert not future.done()
    desk.end_over_its_head([entry for entry in desk.report() if entry.held is run], is_lost=is_lost)
    assert isinstance(future.exception(0), AttemptOverError)
    assert desk.slots == 2
    desk.finish(other)
    assert desk.admit("run_3") == []
    desk.finish(run)
    assert [held.scope.run.id for held in desk.host.started] == ["run_1", "run_2", "run_3"]
    assert desk.slots == 1


@pytest.mark.parametrize("is_lost", [False, True])
def test_code_that_outlives_its_run_while_it_waits_takes_a_slot_until_it_ends(is_lost: bool) -> None:
    """Its wait fails, and it executes."""
    desk = TimedDesk(1)
    [run] = desk.admit("run_1")
    # Code in a thread that was told to end, and waits once more.
    desk.hear(cancelled=["run_1"])
    future = desk.wait(run, "run_x")
    entries = desk.report()
    assert desk.slots == 0
    desk.end_over_its_head(entries, is_lost=is_lost)
    assert isinstance(future.exception(0), AttemptOverError)
    assert desk.slots == 1
    assert desk.holding.room == 0
    assert desk.noted() == {"run_1": True}, "it may kill the process"
    desk.finish(run)
    assert desk.slots == 0
    assert desk.noted() == {}


def test_executing_counts_and_waiting_does_not() -> None:
    desk = TimedDesk(1)
    [run] = desk.admit("run_1", max_duration_ms=10_000)
    desk.pass_time(4)
    future = desk.wait(run, "run_child")
    desk.exchange()
    desk.pass_time(1000)
    assert run.scope.stop is None
    desk.holding.target_ended("run_child")
    desk.holding.advance()
    assert future.done()
    desk.pass_time(5.9)
    assert run.scope.stop is None
    desk.pass_time(0.2)
    assert run.scope.stop is not None
    assert run.scope.stop.end is AttemptEnd.TIMED_OUT
    assert not run.scope.cancel_asked
    assert "max_duration of 10 s" in run.scope.stop.error.message
    assert desk.host.stopped == [run]
    desk.pass_time(31)
    outcome = outcome_of(desk.last_words())
    assert (outcome.end, outcome.error and outcome.error.name) == (AttemptEnd.TIMED_OUT, "MaxDurationError")


def test_runs_that_end_in_time_leave_no_deadline_behind() -> None:
    desk = TimedDesk(1)
    for number in range(100):
        [run] = desk.admit(f"run_{number}", max_duration_ms=3_600_000)
        desk.finish(run)
        desk.exchange()
    assert desk.holding._deadlines == {}
    desk.pass_time(4000)
    assert desk.holding.deadline is None


# --- runs without a buffer ----------------------------------------------------------------------------------


def test_a_run_that_writes_nothing_has_no_buffer_and_one_report_with_its_outcome() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", metadata={"stage": 1}, metadata_version=3)
    desk.holding.finish(held, Outcome(output="1"))
    [entry] = desk.holding.outbox.take(desk.now)
    assert (entry.report.sequence, entry.report.changes, entry.report.metadata_version) == (1, [], -1)
    assert held.scope.made_buffer is None
    # It is taken once more, because a doubt came up; what was left running writes meanwhile.
    held.scope.buffer.add("run_1", Set(key="late", value=1))
    desk.holding.outbox.add(held, urgent=True)
    [again] = desk.holding.outbox.take(desk.now)
    assert again.report == entry.report, "a number that may have been sent always says the same"
    desk.holding.answered(entry, RunReply(id="run_1"))
    assert held.is_over
    assert len(desk.holding) == 0


def test_what_others_have_written_is_there_when_the_code_asks_first() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", metadata={"stage": 1}, metadata_version=3)
    change = MetadataChange(version=4, operations=[Set(key="stage", value=2)])
    desk.holding.hear(InboxFrame(deltas=[MetadataDelta("run_1", 3, 4, changes=[change])]))
    assert held.scope.buffer.get("stage") == 2
    assert held.scope.buffer.version == 4


def test_a_report_without_a_buffer_says_the_version_of_the_claim_and_takes_what_is_newer() -> None:
    desk = Desk(1)
    [held] = desk.admit("run_1", metadata={"stage": 1}, metadata_version=3)
    desk.wait(held, "run_2")
    [entry] = desk.holding.outbox.take(desk.now)
    assert (entry.report.sequence, entry.report.metadata_version, entry.report.waiting) == (0, 3, True)
    change = MetadataChange(version=4, operations=[Set(key="stage", value=2)])
    delta = MetadataDelta("run_1", 3, 4, changes=[change])
    desk.holding.answered(entry, RunReply(id="run_1", delta=delta))
    assert held.scope.buffer.get("stage") == 2


def test_threads_that_need_the_buffer_at_once_are_given_one() -> None:
    run = ClaimedRun(id="run_1", task="t", attempt=1)
    link: Any = None
    for _ in range(50):
        scope, barrier = RunScope(run, 1000, link), threading.Barrier(4)

        def ask(scope: RunScope = scope, barrier: threading.Barrier = barrier) -> Buffer:
            barrier.wait(60)
            return scope.buffer

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(ask) for _ in range(4)]
        assert len({id(future.result()) for future in futures}) == 1
