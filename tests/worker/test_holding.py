"""What an executor holds: slots given back by waits, reports in the right order, nothing said for runs that are lost."""

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from types import FrameType
from typing import Any

import msgspec
import pytest

from milepost.errors import MetadataFlushError, UsageError
from milepost.model.document import Document
from milepost.model.operations import Set
from milepost.model.run import Outcome
from milepost.protocol.work import ClaimedRun, InboxFrame, RunReply
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.worker import outbox
from milepost.worker.holding import Holding
from milepost.worker.outbox import Entry, HeldRun

INTERVAL = 0.05


class FakeHost:
    """Starts nothing: remembers what it was asked."""

    def __init__(self) -> None:
        self.started: list[HeldRun] = []
        self.interrupted: list[HeldRun] = []
        self.notices: list[str] = []

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        link: Any = None
        return HeldRun(RunScope(run, Buffer.of(run, limit=metadata_size_max), link), None)

    def start(self, runs: Sequence[HeldRun]) -> None:
        self.started += runs

    def interrupt(self, run: HeldRun) -> None:
        self.interrupted.append(run)

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
        self.holding = Holding(
            self.host,
            concurrency=concurrency,
            flush_interval_seconds=INTERVAL,
            call_later=lambda call, *arguments: call(*arguments),
            # An end of a run lies long ago at the next look: nothing is claimed ahead.
            clock=count(0, 1.0).__next__,
        )

    def admit(self, *ids: str, attempt: int = 1) -> list[HeldRun]:
        before = len(self.host.started)
        runs = [ClaimedRun(id=run_id, task="t", attempt=attempt) for run_id in ids]
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
    with pytest.raises(UsageError):
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
