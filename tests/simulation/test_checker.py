"""The checker is checked: mistakes that were made before, here or elsewhere, are put into the code, and the simulation finds each."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from milepost.engine import documents, working
from milepost.engine.transaction import Transaction
from milepost.feed.steps import RunNews
from milepost.model.operations import Operation, Pending, Set
from milepost.protocol import endpoints
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.work import ReportRequest, ReportResponse, RunReply
from milepost.sdk.buffer import Buffer
from milepost.store import documents as document_store
from milepost.store.database import Store
from milepost.worker import outbox
from milepost.worker.channel import Channel, Unreachable
from milepost.worker.holding import Holding
from model import planted
from simulation.network import Network
from simulation.running import empty_store, simulate
from simulation.simulation import Failed, Plan

SEEDS_MAX = 150
Plant = Callable[[pytest.MonkeyPatch], None]


def a_repeated_report_is_applied_again(patch: pytest.MonkeyPatch) -> None:
    applied = working._report_run

    def report_run(item: Any, worker_id: str, transaction: Transaction, state: Any) -> RunReply:
        row = transaction.run(item.id)
        if row is not None and item.sequence:
            row.report_sequence = 0
        return applied(item, worker_id, transaction, state)

    patch.setattr(working, "_report_run", report_run)


def a_repeated_request_is_applied_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transaction, "earlier_answer", lambda self, request_id: None)


def a_failed_report_is_taken_for_sent(patch: pytest.MonkeyPatch) -> None:
    call = Channel.call

    async def call_once(self: Channel, endpoint: Endpoint, body: Any = None, **given: Any) -> Any:
        try:
            return await call(self, endpoint, body, **given)
        except Unreachable:
            if endpoint is not endpoints.REPORT:
                raise
            runs = msgspec.json.decode(body, type=ReportRequest).runs
            return ReportResponse([RunReply(id=item.id) for item in runs])

    patch.setattr(Channel, "call", call_once)


def announcements_are_lost_and_nothing_heals_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Network, "cut_all", lambda self: None)


def a_gap_in_what_is_announced_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunNews, "newer_than", _joined)


def _joined(news: RunNews, version: int) -> list[Any]:
    return [change for change in news._steps if change.version > version]


def sets_are_moved_behind_everything_else(patch: pytest.MonkeyPatch) -> None:
    take = Pending.take

    def moved(self: Pending) -> list[Operation]:
        return sorted(take(self), key=lambda operation: isinstance(operation, Set))

    patch.setattr(Pending, "take", moved)


def a_failed_transaction_leaves_its_mark_on_the_documents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(documents.DocumentCache, "forget", lambda self, run_ids: None)


def a_flush_returns_when_the_run_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox, "fail", lambda future, error: outbox.resolve(future))


def a_reply_hides_what_was_written_meanwhile(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Buffer, "_own_unacknowledged", lambda self: [])


def a_flush_returns_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Buffer, "reached", lambda self, mark: True)


def a_step_is_left_out_of_the_log(patch: pytest.MonkeyPatch) -> None:
    append_changes = document_store.append_changes
    patch.setattr(
        document_store, "append_changes", lambda connection, rows: append_changes(connection, rows[:1])
    )


def an_id_is_counted_anew_in_each_group(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(document_store, "load_counted", lambda connection, run_id, ids: set[bytes]())
    patch.setattr(document_store, "save_counted", lambda connection, rows: None)


def an_id_is_counted_over_all_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(documents, "id_of", lambda key, once: once.encode())


def the_word_of_a_lost_attempt_counts(patch: pytest.MonkeyPatch) -> None:
    applied = working._report_run

    def report_run(item: Any, worker_id: str, transaction: Transaction, state: Any) -> RunReply:
        row = transaction.run(item.id)
        if row is not None and row.worker_id is not None and row.attempt > item.attempt:
            item = msgspec.structs.replace(item, attempt=row.attempt)
            worker_id = row.worker_id
        return applied(item, worker_id, transaction, state)

    patch.setattr(working, "_report_run", report_run)


def an_end_is_announced_to_nobody_and_nobody_asks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holding, "target_ended", lambda self, target_id: None)


def all_kinds_of_writes(plan: Plan) -> None:
    plan.wild, plan.size_max, plan.portion_bytes_max = True, 262_144, 4 * 1024 * 1024


def many_replies_are_lost(plan: Plan) -> None:
    plan.faults.lose_reply = 0.3
    plan.writers = 3


def workers_die(plan: Plan) -> None:
    plan.troubles += ["kill_worker"] * 6
    plan.faults.lose_request = plan.faults.lose_reply = 0.2
    plan.chaos_seconds = 8.0


def leases_are_lost(plan: Plan) -> None:
    plan.lease_seconds, plan.chaos_seconds, plan.request_seconds_max = 4.0, 10.0, 3.0
    plan.workers, plan.in_thread = 2, 1.0
    plan.troubles += ["part_worker"] * 4


def statements_fail(plan: Plan) -> None:
    plan.troubles += ["fail_statement"] * 6


def announcements_are_lost(plan: Plan) -> None:
    plan.troubles += ["lose_announcements"] * 6
    plan.faults.cut, plan.chaos_seconds = 0.0, 8.0


def only_additions(plan: Plan) -> None:
    plan.wild, plan.size_max = False, 262_144


def as_drawn(plan: Plan) -> None:
    """The seed decides everything."""


# Each with what makes it show early.
PLANTS: list[tuple[Plant, Callable[[Plan], None]]] = [
    (a_repeated_report_is_applied_again, many_replies_are_lost),
    (a_repeated_request_is_applied_again, many_replies_are_lost),
    (a_failed_report_is_taken_for_sent, many_replies_are_lost),
    (announcements_are_lost_and_nothing_heals_it, announcements_are_lost),
    (a_gap_in_what_is_announced_is_not_noticed, announcements_are_lost),
    (sets_are_moved_behind_everything_else, as_drawn),
    (a_failed_transaction_leaves_its_mark_on_the_documents, statements_fail),
    (a_flush_returns_when_the_run_is_lost, leases_are_lost),
    (a_reply_hides_what_was_written_meanwhile, only_additions),
    (a_flush_returns_early, workers_die),
    (a_step_is_left_out_of_the_log, as_drawn),
    (the_word_of_a_lost_attempt_counts, leases_are_lost),
    (an_end_is_announced_to_nobody_and_nobody_asks, as_drawn),
    (planted.a_full_window_is_written_over_what_replaced_it, all_kinds_of_writes),
    (planted.a_name_of_digits_is_a_position_if_one_from_the_end_follows, all_kinds_of_writes),
    (planted.a_position_from_the_end_is_a_place_of_its_own, all_kinds_of_writes),
    (planted.what_lies_around_a_place_does_not_touch_it, all_kinds_of_writes),
    (an_id_is_counted_anew_in_each_group, only_additions),
    (an_id_is_counted_over_all_keys, only_additions),
]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with empty_store() as store:
        yield store


@pytest.mark.parametrize(("plant", "adjust"), PLANTS, ids=lambda given: given.__name__)
def test_the_simulation_finds(
    plant: Plant, adjust: Callable[[Plan], None], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            simulate(seed, store, adjust=adjust)
        except Failed as found:
            print(f"after {seed + 1} seeds: {found}")
            return
    pytest.fail(f"{SEEDS_MAX} seeds did not find it")
