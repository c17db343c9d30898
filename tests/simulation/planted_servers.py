"""Mistakes that only several servers on one database can make, to be put into the engine, so that the simulation can be tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import pytest

from milepost.engine import jobs, others
from milepost.engine.announcements import Announcement
from milepost.engine.documents import DocumentCache
from milepost.engine.engine import Engine
from milepost.engine.others import Gap, Learnt, Others
from milepost.engine.transaction import Transaction
from milepost.store import records
from simulation.database import SERVERS_MAX
from simulation.network import Faults
from simulation.planted import Planted, many_leases_are_lost, many_runs, queues_are_full
from simulation.simulation import Plan

TakeIn = Callable[[Learnt, Announcement], None]


# --- hearing ---------------------------------------------------------------------------------------------------


def an_engine_decides_before_it_hears(patch: pytest.MonkeyPatch) -> None:
    """What others have committed it hears of in the same transaction, but too late."""
    tell_others = Engine._tell_others

    def hear_and_tell(self: Engine, transaction: Transaction, *given: Any) -> int | None:
        self._hear(transaction.connection)
        return tell_others(self, transaction, *given)

    patch.setattr(Engine, "_hear_before", lambda self, connection: None)
    patch.setattr(Engine, "_tell_others", hear_and_tell)


def _patch_take_in(patch: pytest.MonkeyPatch, change: Callable[[Others, TakeIn], TakeIn]) -> None:
    """Change what is made of each announcement."""
    hear = Others.hear
    patch.setattr(
        Others, "hear", lambda self, connection, take_in: hear(self, connection, change(self, take_in))
    )


def some_announcements_get_lost(patch: pytest.MonkeyPatch) -> None:
    def change(self: Others, take_in: TakeIn) -> TakeIn:
        return lambda *news: None if self.number % 5 == 4 else take_in(*news)

    _patch_take_in(patch, change)


def an_announcement_is_taken_in_twice(patch: pytest.MonkeyPatch) -> None:
    def change(self: Others, take_in: TakeIn) -> TakeIn:
        def twice(*news: Any) -> None:
            take_in(*news)
            take_in(*news)

        return twice

    _patch_take_in(patch, change)


def subscribers_elsewhere_miss_a_version(patch: pytest.MonkeyPatch) -> None:
    def change(self: Others, take_in: TakeIn) -> TakeIn:
        def shortened(learnt: Learnt, announcement: Announcement) -> None:
            for changed in announcement.runs:
                if self.number % 3 == 0:
                    changed.changes = []
            take_in(learnt, announcement)

        return shortened

    _patch_take_in(patch, change)


def nobody_notices_that_announcements_are_gone(patch: pytest.MonkeyPatch) -> None:
    hear = Others.hear

    def heedless(self: Others, connection: Any, take_in: TakeIn) -> None:
        try:
            hear(self, connection, take_in)
        except Gap:
            self.begin_from(connection)

    patch.setattr(Others, "hear", heedless)


def a_clock_that_is_a_moment_ahead_is_not_followed(patch: pytest.MonkeyPatch) -> None:
    for name in ("newest_time", "told_at"):
        patch.setattr(Others, name, property(lambda self: 0, lambda self, at: None), raising=False)


# --- what is told ----------------------------------------------------------------------------------------------


def _leave_untold(patch: pytest.MonkeyPatch, **fields: Any) -> None:
    learnt = Engine._learnt
    patch.setattr(
        Engine, "_learnt", lambda self, *given: msgspec.structs.replace(learnt(self, *given), **fields)
    )


def runs_that_are_queued_elsewhere_are_offered_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """So a claim that is parked stays so."""
    _leave_untold(patch, offered=(), everything_offered=False)


def where_runs_are_queued_elsewhere_is_not_told(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, places=())


def when_a_run_becomes_due_is_not_told(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, next_due_at=None)


def that_a_run_has_to_execute_apart_is_not_told(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, has_apart=False)


def the_rules_of_tasks_are_not_told(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, tasks_changed=False)


def whom_a_server_has_heard_it_keeps_to_itself(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, heard=())


def which_claims_were_answered_is_not_told(patch: pytest.MonkeyPatch) -> None:
    _leave_untold(patch, answered_claims={})


def _patch_encode(patch: pytest.MonkeyPatch, change: Callable[[Announcement], Announcement]) -> None:
    encode = others.encode
    patch.setattr(others, "encode", lambda learnt, announcement: encode(learnt, change(announcement)))


def the_end_of_a_child_is_told_by_its_own_server_only(patch: pytest.MonkeyPatch) -> None:
    """And a worker that hangs on another one does not ask."""
    _patch_encode(patch, lambda one: msgspec.structs.replace(one, children_finished=[]))


def that_a_run_may_go_on_is_told_by_its_own_server_only(patch: pytest.MonkeyPatch) -> None:
    _patch_encode(patch, lambda one: msgspec.structs.replace(one, resumed=[]))


# --- what is kept in memory --------------------------------------------------------------------------------------


def a_cached_document_is_not_led_on(patch: pytest.MonkeyPatch) -> None:
    """It takes the number of the newest version without its steps."""

    def catch_up(self: DocumentCache, connection: Any, rows: Sequence[Any]) -> None:
        for row in rows:
            self._documents[row.id].document.version = row.metadata_version

    patch.setattr(DocumentCache, "_catch_up", catch_up)


def a_cached_document_is_taken_for_the_newest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DocumentCache, "_is_newest", lambda self, row: row.id in self._documents)
    patch.setattr(DocumentCache, "_is_behind", lambda self, row: False)


def a_limit_is_counted_by_each_server(patch: pytest.MonkeyPatch) -> None:
    counts: WeakKeyDictionary[DocumentCache, dict[str, int]] = WeakKeyDictionary()
    load_queues, queue, save_queue = Transaction.load_queues, Transaction.queue, Transaction.save_queue

    def load(self: Transaction, names: Any) -> None:
        before = set(self._queues)
        load_queues(self, names)
        for name in self._queues.keys() - before:
            row = self._queues[name]
            if row is not None:
                row.executing = counts.get(self._documents, {}).get(name, 0)

    def loaded(self: Transaction, name: str) -> Any:
        self.load_queues([name])
        return queue(self, name)

    def save(self: Transaction, row: Any) -> None:
        counts.setdefault(self._documents, {})[row.name] = row.executing
        save_queue(self, row)

    patch.setattr(Transaction, "load_queues", load)
    patch.setattr(Transaction, "queue", loaded)
    patch.setattr(Transaction, "save_queue", save)


def a_repeat_is_known_only_where_the_request_was_answered(patch: pytest.MonkeyPatch) -> None:
    """Answers are kept in the memory of a server."""
    answers: WeakKeyDictionary[DocumentCache, dict[str, bytes]] = WeakKeyDictionary()
    keep_answer, earlier_answer = Transaction.keep_answer, Transaction.earlier_answer

    def keep(self: Transaction, request_id: str | None, answer: bytes) -> None:
        if request_id is not None:
            answers.setdefault(self._documents, {})[request_id] = answer
        keep_answer(self, request_id, answer)

    def earlier(self: Transaction, request_id: str | None) -> bytes | None:
        own = answers.get(self._documents, {})
        return earlier_answer(self, request_id) or (None if request_id is None else own.get(request_id))

    patch.setattr(Transaction, "keep_answer", keep)
    patch.setattr(Transaction, "earlier_answer", earlier)
    patch.setattr(records, "save_answers", lambda connection, answers: None)


def the_upkeep_is_done_by_every_server(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jobs, "is_ours", lambda *given: True)


# --- what makes them show early ------------------------------------------------------------------------------------


def several(plan: Plan) -> None:
    plan.servers, plan.is_sticky = SERVERS_MAX, False


def hints_get_lost(plan: Plan) -> None:
    several(plan)
    plan.hint_seconds_max = 0.5
    plan.servers_troubles = ["lose_hints"] * 8


def leases_are_lost_at_several(plan: Plan) -> None:
    hints_get_lost(plan)
    many_leases_are_lost(plan)
    plan.troubles += ["part_worker"] * 6


def announcements_go(plan: Plan) -> None:
    several(plan)
    plan.servers_troubles = ["freeze_while_announcements_go"] * 6


def requests_come_again_elsewhere(plan: Plan) -> None:
    several(plan)
    many_runs(plan)
    plan.faults.repeat = plan.faults.lose_reply = 0.3


def queues_are_full_at_several(plan: Plan) -> None:
    several(plan)
    queues_are_full(plan)


def many_runs_at_several(plan: Plan) -> None:
    """On a network that loses nothing, so that nothing else wakes a claim."""
    several(plan)
    many_runs(plan)
    plan.faults, plan.troubles, plan.servers_troubles = Faults(), [], []
    plan.failure, plan.crash = 0.4, 0.0


def only_full_queues_at_several(plan: Plan) -> None:
    many_runs_at_several(plan)
    plan.workers, plan.parent_limit, plan.child_limit, plan.pause_seconds_max = 2, 1, 1, 4.0
    plan.failure = plan.crash = 0.0


def answers_get_lost_at_several(plan: Plan) -> None:
    many_runs_at_several(plan)
    plan.faults.lose_reply, plan.workers, plan.pause_seconds_max, plan.lease_seconds = 0.4, 1, 0.2, 16.0
    plan.roots, plan.runs_max, plan.request_seconds_max = 10, 24, 3.0


def clocks_are_apart(plan: Plan) -> None:
    many_runs_at_several(plan)
    plan.clocks_apart = 0.4


def processes_die_at_several(plan: Plan) -> None:
    many_runs_at_several(plan)
    plan.pause_seconds_max, plan.chaos_seconds, plan.workers = 4.0, 3.0, 1
    plan.troubles, plan.is_sticky = ["kill_worker"] * 4, True


SERVERS_PLANTS: list[Planted] = [
    Planted(an_engine_decides_before_it_hears, seed=9, adjust=hints_get_lost),
    Planted(some_announcements_get_lost, seed=0, adjust=several),
    Planted(an_announcement_is_taken_in_twice, seed=0, adjust=several),
    Planted(subscribers_elsewhere_miss_a_version, seed=0, adjust=several),
    Planted(nobody_notices_that_announcements_are_gone, seed=16, adjust=announcements_go),
    Planted(a_clock_that_is_a_moment_ahead_is_not_followed, seed=26, adjust=clocks_are_apart),
    Planted(runs_that_are_queued_elsewhere_are_offered_to_nobody, seed=16, adjust=many_runs_at_several),
    Planted(where_runs_are_queued_elsewhere_is_not_told, seed=5, adjust=many_runs_at_several),
    Planted(when_a_run_becomes_due_is_not_told, seed=13, adjust=many_runs_at_several),
    Planted(that_a_run_has_to_execute_apart_is_not_told, seed=12, adjust=processes_die_at_several),
    Planted(the_rules_of_tasks_are_not_told, seed=6, adjust=queues_are_full_at_several),
    Planted(whom_a_server_has_heard_it_keeps_to_itself, seed=1, adjust=leases_are_lost_at_several),
    Planted(which_claims_were_answered_is_not_told, seed=0, adjust=answers_get_lost_at_several),
    Planted(the_end_of_a_child_is_told_by_its_own_server_only, seed=1, adjust=many_runs_at_several),
    Planted(that_a_run_may_go_on_is_told_by_its_own_server_only, seed=5, adjust=only_full_queues_at_several),
    Planted(a_cached_document_is_not_led_on, seed=0, adjust=several),
    Planted(a_cached_document_is_taken_for_the_newest, seed=85, adjust=several),
    Planted(a_limit_is_counted_by_each_server, seed=0, adjust=queues_are_full_at_several),
    Planted(
        a_repeat_is_known_only_where_the_request_was_answered, seed=0, adjust=requests_come_again_elsewhere
    ),
    Planted(the_upkeep_is_done_by_every_server, seed=32, adjust=leases_are_lost_at_several),
]
