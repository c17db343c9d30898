"""Deciding on claims: which due runs a worker is given. Queue limits and rates hold over all workers.

Runs without a concurrency key are given oldest first. Those with one come by turns: each task and queue has a line of keys, a key
whose run was claimed goes to its end, and within a key the oldest comes first. So nobody's thousands of runs hold up somebody else's
one, and a claim looks at about as many keys as it has slots, however many there are.
"""

import random
from collections.abc import Container, Sequence
from itertools import groupby

import msgspec
from sqlalchemy import Connection

from milepost.engine import queues
from milepost.engine.commands import Claim
from milepost.engine.metadata import has_typed_ancestor
from milepost.engine.queues import Room
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.engine.workers import worker_of
from milepost.errors import NotFoundError
from milepost.model import jsonvalue
from milepost.model.counted import pack
from milepost.model.lifecycle import Move
from milepost.model.run import Closing, asked_of
from milepost.protocol.work import ClaimedRun
from milepost.store import key_places
from milepost.store import queues as queue_store
from milepost.store import runs as run_store
from milepost.store import waitpoints as waitpoint_store
from milepost.store.key_places import KeyPlace
from milepost.store.runs import RunRecord, RunRow

SLOTS_MAX = 1000
# What the large payloads and documents of one answer come to, about; what is left for the next claim stays first in line.
CLAIM_CHARACTERS_MAX = 8 * 1024 * 1024
# A run that has to execute apart goes to a worker that has nothing else to do. After so long any worker is given it, which then
# lets its other runs end first.
APART_WAIT_MICROSECONDS = 10_000_000
# Tasks and queues that are looked at together; of more, the oldest run of all need not come first.
PLACES_MAX = run_store.DUE_PLACES
EMPTY_LOOKS = 8
_CLOSING = msgspec.json.Decoder(Closing)
# Keys that are looked at together.
KEYS_MAX = 128


def claim_runs(
    command: Claim, transaction: Transaction, state: EngineState, among: Container[str] | None = None
) -> list[ClaimedRun]:
    """Lease due runs to the worker, oldest first; none when none is due. A claim that comes again is answered with the same runs.

    Raises NotFoundError for a worker that has to register first.

    Args:
        among: where it is known that of other tasks than these no run is due.
    """
    worker = worker_of(command.worker_id, transaction)
    if command.sequence <= worker.answered_claim:
        return claimed_before(command, transaction)
    if worker.answered_claim < 0 and (before := claimed_before(command, transaction)):
        # It was answered before the server has started anew.
        return before
    if worker.is_restored:
        # Another claim may have been answered since, and what an old one brings nobody executes.
        raise NotFoundError(
            f"this server has started anew, and does not know the claims of worker {worker.id!r}: register it first"
        )
    tasks = worker.tasks if among is None else tuple(task for task in worker.tasks if task in among)
    if not tasks or command.slots < 1:
        return []
    slots = min(command.slots, SLOTS_MAX)
    apart: list[tuple[str, str, str | None]] = []
    is_idle = state.may_have_apart and not run_store.holds_any(transaction.connection, worker.id)
    if state.may_have_apart:
        apart = _due_apart(worker.id, tasks, is_idle, transaction, state)
    records: list[RunRecord] = []
    if not (apart and is_idle):
        taken = [(queue, key) for _, queue, key in apart]
        records = _due_within_limits(tasks, slots - len(apart), taken, transaction, state)
    if apart:
        records += _records([run_id for run_id, _, _ in apart], transaction)
    has_begun: set[str] = set()
    for (queue, key), same in groupby(records, _queue_and_key):
        transaction.starts.append((queue, key, sum(1 for _ in same)))
    for record in records:
        transaction.adopt(record.row)
        if record.row.started_at is not None:
            has_begun.add(record.row.id)
        _lease(record.row, worker.id, command.sequence, transaction)
    return _claimed(records, has_begun, transaction)


def _queue_and_key(record: RunRecord) -> tuple[str, str | None]:
    return record.row.queue, record.row.concurrency_key


def _records(ids: Sequence[str], transaction: Transaction) -> list[RunRecord]:
    found = run_store.load_records(
        transaction.connection, ids, values=True, characters_max=CLAIM_CHARACTERS_MAX
    )
    left = [run_id for run_id in ids if run_id not in found]
    if left:
        _put_back(left, transaction)
    return list(found.values())


def _put_back(ids: Sequence[str], transaction: Transaction) -> None:
    """There was no room for these in the answer. They are still queued, and those with a concurrency key have to be in its line."""
    rows = run_store.load_rows(transaction.connection, ids).values()
    for row in rows:
        transaction.offer(row.task, row.queue, row.concurrency_key, row.due_at)
    keys = {(row.queue, row.concurrency_key) for row in rows if row.concurrency_key is not None}
    key_places.open_keys(transaction.connection, sorted(keys), now=transaction.now)


def _lease(row: RunRow, worker_id: str, sequence: int, transaction: Transaction) -> None:
    put_forward = asked_of(row.options).priority * 1_000_000
    transaction.claim_waits.append(max(0, transaction.now - row.due_at - put_forward))
    queues.change_status(row, Move.CLAIM, transaction)
    if row.expires_at is not None:
        row.expires_at = None
        transaction.save_run(row)
    row.attempt += 1
    row.worker_id, row.claim_sequence = worker_id, sequence
    # The reports of each attempt are counted from 1.
    row.report_sequence, row.begun_at = 0, None
    # By these two one sees whether an earlier attempt has begun, also where a clock stands still.
    row.claimed_at = max(transaction.now, (row.started_at or 0) + 1)
    if row.started_at is None:
        row.started_at = row.claimed_at


def claimed_before(command: Claim, transaction: Transaction) -> list[ClaimedRun]:
    """What the same claim has brought, as far as the worker still holds it."""
    ids = run_store.held_ids(transaction.connection, command.worker_id, claim=command.sequence)
    records = run_store.load_records(transaction.connection, ids, values=True)
    for record in records.values():
        # As this group leaves it, where it has been loaded.
        record.row = transaction.run(record.row.id) or record.row
    held = [records[run_id] for run_id in ids if records[run_id].row.is_held]
    # Any but the first attempt may have begun: the marks of the earlier ones are as the claim has found them.
    has_begun = {record.row.id for record in held if record.row.started_at != record.row.claimed_at}
    return _claimed(held, has_begun, transaction)


def _due_apart(
    worker_id: str, tasks: Sequence[str], is_idle: bool, transaction: Transaction, state: EngineState
) -> list[tuple[str, str, str | None]]:
    """The run that this worker is to execute apart, if any, with its queue and concurrency key."""
    due = run_store.apart_due(transaction.connection, tasks, now=transaction.now)
    if not due:
        state.may_have_apart = run_store.has_apart(transaction.connection)
        return []
    room = Room((queue for _, queue, _, _ in due), transaction)
    for run_id, queue, key, due_at in due:
        if not is_idle and due_at > transaction.now - APART_WAIT_MICROSECONDS:
            # They come in the order of this time.
            transaction.look_again_at(due_at + APART_WAIT_MICROSECONDS)
            break
        if room.has(queue, key):
            return [(run_id, queue, key)]
    return []


def offer_apart(transaction: Transaction, state: EngineState) -> None:
    """A worker may have nothing else to do now: what has to execute apart is offered to it."""
    if state.may_have_apart:
        tasks = run_store.apart_tasks(transaction.connection, now=transaction.now)
        transaction.offered_tasks.update(tasks)
        if not tasks:
            state.may_have_apart = run_store.has_apart(transaction.connection)


def _due_within_limits(
    tasks: Sequence[str],
    limit: int,
    taken: Sequence[tuple[str, str | None]],
    transaction: Transaction,
    state: EngineState,
) -> list[RunRecord]:
    """Due runs that may execute now. Runs in full queues are not looked at.

    Args:
        taken: the queues and concurrency keys of runs that this claim is given beside these.
    """
    if limit < 1:
        return []
    places = dict.fromkeys(state.places.of(tasks))
    places.update(dict.fromkeys(place for place in transaction.places if place[0] in tasks))
    pairs = dict.fromkeys(state.keyed.of(tasks))
    if transaction.keyed:
        pairs.update(dict.fromkeys(pair for pair in transaction.keyed if pair[0] in tasks))
    room = Room({queue for _, queue in (*places, *pairs)}, transaction)
    for queue, key in taken:
        room.take(queue, key)
    open_places = [place for place in places if room.has(place[1])]
    if not pairs:
        if len(open_places) == 1:
            [(task, queue)] = open_places
            count = int(min(limit, room.of(queue)))
            return run_store.due_records(
                transaction.connection,
                task,
                queue,
                limit=count,
                now=transaction.now,
                characters_max=CLAIM_CHARACTERS_MAX,
            )
        chosen = [run_id for run_id, _ in _oldest(open_places, limit, room, transaction)]
        return _records(chosen, transaction) if chosen else []
    oldest = _oldest(open_places, limit, room, transaction)
    # Where there are runs of both kinds, each gets half of the slots; who gets the odd one is left to chance.
    own = min(len(oldest), (limit + random.randrange(2)) // 2)
    for _, queue in oldest[own:]:
        room.give_back(queue)
    chosen = [run_id for run_id, _ in oldest[:own]]
    chosen += _by_turns(list(pairs), limit - own, room, transaction, state)
    for run_id, queue in oldest[own:]:
        if len(chosen) < limit and room.has(queue):
            room.take(queue)
            chosen.append(run_id)
    return _records(chosen, transaction) if chosen else []


def _oldest(
    places: list[tuple[str, str]], limit: int, room: Room, transaction: Transaction
) -> list[tuple[str, str]]:
    """The oldest due runs without a concurrency key, each with its queue."""
    if len(places) > PLACES_MAX:
        _look_for_empty(places, transaction)
        # Each claim begins somewhere else, so that none of very many queues has to wait for the others.
        start = random.randrange(len(places))
        places = [*places[start:], *places[:start]]
    chosen: list[tuple[str, str]] = []
    for start in range(0, len(places), PLACES_MAX):
        some = places[start : start + PLACES_MAX]
        for _, run_id, queue in run_store.due_ids(
            transaction.connection, some, limit=limit - len(chosen), now=transaction.now
        ):
            if len(chosen) < limit and room.has(queue):
                room.take(queue)
                chosen.append((run_id, queue))
        if len(chosen) == limit:
            break
    return chosen


def _by_turns(
    pairs: Sequence[tuple[str, str]], limit: int, room: Room, transaction: Transaction, state: EngineState
) -> list[str]:
    """Due runs that have a concurrency key, one of each key in the line, and then the next one of each."""
    if len(pairs) > PLACES_MAX:
        for pair in random.sample(pairs, EMPTY_LOOKS):
            if pair not in transaction.keyed and not key_places.has_places(transaction.connection, *pair):
                transaction.empty_keyed.add(pair)
    chosen: list[str] = []
    while len(chosen) < limit:
        open_pairs = [pair for pair in pairs if room.of_queue(pair[1]) > 0]
        if not open_pairs:
            break
        if len(open_pairs) > PLACES_MAX:
            open_pairs = random.sample(open_pairs, PLACES_MAX)
        wanted = min(KEYS_MAX, limit - len(chosen))
        line = key_places.first_in_line(transaction.connection, open_pairs, limit=wanted, now=transaction.now)
        if not line:
            if len(open_pairs) == len(pairs):
                break
            pairs = [pair for pair in pairs if pair not in set(open_pairs)]
            continue
        taken = _take_turns(line, limit - len(chosen), room, transaction, state)
        chosen += taken
    return chosen


class _Turn:
    """A place of the line while a claim is served: how many of its runs the claim gets, and the first ones behind them, as
    (due_at, id); None where nobody has looked."""

    __slots__ = ("place", "rest", "taken")

    def __init__(self, place: KeyPlace) -> None:
        self.place = place
        self.taken = 0
        self.rest: list[tuple[int, str]] | None = None

    def can_go(self, room: Room, now: int) -> bool:
        """Whether its next run may be claimed."""
        return bool(self.rest) and self.rest[0][0] <= now and room.has(self.place.queue, self.place.key)


def _take_turns(
    line: Sequence[KeyPlace], limit: int, room: Room, transaction: Transaction, state: EngineState
) -> list[str]:
    """Due runs of these places by turns. Each place then has its new place in the line, or has left it."""
    now = transaction.now
    by_queue: dict[str, list[str]] = {}
    for place in line:
        by_queue.setdefault(place.queue, []).append(place.key)
    for queue, keys in by_queue.items():
        if transaction.queue(queue) is not None:
            transaction.load_queue_keys(queue, keys)
    turns = [_Turn(place) for place in line]
    live = [turn for turn in turns if room.has(turn.place.queue, turn.place.key)]
    chosen: list[str] = []
    while live and len(chosen) < limit:
        each = -(-(limit - len(chosen)) // len(live))
        # What was taken before is still queued as far as the store knows.
        before = max(turn.taken for turn in live)
        found = run_store.first_of_keys(
            transaction.connection, [turn.place for turn in live], limit=before + each + 1
        )
        for turn in live:
            turn.rest = found[turn.place][turn.taken :]
        for turn in live * each:
            if len(chosen) < limit and turn.can_go(room, now):
                assert turn.rest is not None, "it can go"
                chosen.append(turn.rest.pop(0)[1])
                room.take(turn.place.queue, turn.place.key)
                turn.taken += 1
        live = [turn for turn in live if turn.can_go(room, now)]
    _leave_line(turns, room, transaction, state)
    return chosen


def _leave_line(turns: Sequence[_Turn], room: Room, transaction: Transaction, state: EngineState) -> None:
    """Write down where each place stands now."""
    later: list[tuple[KeyPlace, int | None, int]] = []
    empty: list[KeyPlace] = []
    for turn in turns:
        place = turn.place
        if turn.rest == []:
            empty.append(place)
        elif room.of_key(place.queue, place.key) <= 0:
            later.append((place, None, 0))
        elif turn.rest and turn.rest[0][0] > transaction.now:
            later.append((place, turn.rest[0][0], 0))
            # Before now the place stood for an earlier run, and this time was behind it.
            transaction.look_again_at(turn.rest[0][0])
        elif turn.taken:
            later.append((place, transaction.now, state.next_turn()))
    key_places.look_later(transaction.connection, later)
    key_places.forget(transaction.connection, empty)


def next_due_at(connection: Connection, after: int, state: EngineState) -> int | None:
    """When there may next be a run for a claim that is none at `after`: one becomes due, or a rate lets one start."""
    places, pairs = state.places.all(), state.keyed.all()
    times = [run_store.next_due_at_after(connection, after, places)]
    if pairs:
        times.append(key_places.next_look_at(connection, after, pairs))
    if state.catalog.queue_rates:
        for queue in queue_store.rated_queues(connection):
            rate = queue.rate_rule()
            times.append(None if rate is None else rate.next_at(queue.rate_starts(), after))
    return min((at for at in times if at is not None), default=None)


def shift_times(connection: Connection, microseconds: int, *, now: int) -> None:
    """The clock was set by that much, to `now`: whatever waits for its time moves along."""
    run_store.shift_due(connection, microseconds, now=now)
    waitpoint_store.shift(connection, microseconds)
    key_places.shift_looks(connection, microseconds, now=now)
    queues = queue_store.rated_queues(connection)
    for queue in queues:
        starts = [(at + microseconds, count) for at, count in queue.rate_starts()]
        queue.starts = msgspec.json.encode(starts).decode()
    queue_store.save_queues(connection, queues)


def newest_reckoned(connection: Connection, now: int) -> int | None:
    """The newest time from which anything reckons that waits for its time, by the clock that was then; None when nothing does."""
    times = [
        run_store.newest_of_delayed(connection, now),
        waitpoint_store.newest_of_relative(connection, now),
        *(at for queue in queue_store.rated_queues(connection) for at, _ in queue.rate_starts()),
    ]
    return max((at for at in times if at is not None), default=None)


def _look_for_empty(places: Sequence[tuple[str, str]], transaction: Transaction) -> None:
    """Of very many places a few are looked at, and forgotten where nothing is queued."""
    for task, queue in random.sample(places, EMPTY_LOOKS):
        if (task, queue) not in transaction.places and not run_store.has_queued(
            transaction.connection, task, queue
        ):
            transaction.empty_places.add((task, queue))


def _claimed(
    records: Sequence[RunRecord], has_begun: Container[str], transaction: Transaction
) -> list[ClaimedRun]:
    written = [record.row for record in records if record.row.metadata_version]
    documents = transaction.documents(written) if written else {}
    claimed: list[ClaimedRun] = []
    ruled = transaction.catalog.ruled_queues
    for record in records:
        row = record.row
        asked = asked_of(row.options)
        run = ClaimedRun(
            id=row.id,
            task=row.task,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            charged=row.charged,
            has_begun=row.id in has_begun,
            is_apart=bool(row.is_apart),
            has_queue_limit=row.queue in ruled and queues.has_limit(row.queue, transaction),
            payload=record.payload,
            payload_type=record.payload_type,
            tags=record.tags,
            queue=row.queue,
            parent_id=row.parent_id,
            root_id=row.root_id,
            has_typed_ancestor=has_typed_ancestor(row, transaction),
            batch_id=row.batch_id,
            depth=row.depth,
            created_at=row.created_at,
            concurrency_key=row.concurrency_key,
            priority=asked.priority,
            max_duration_ms=asked.max_duration_ms,
            replay_of=asked.replay_of,
            retry=asked.retry,
            closing=None if row.closing is None else _CLOSING.decode(row.closing),
        )
        hot = documents.get(row.id)
        # Raw, because another thread sends it while this one may write on.
        if hot is not None:
            run.metadata = msgspec.Raw(jsonvalue.encode(hot.document.value))  # pyright: ignore[reportAttributeAccessIssue]
            run.metadata_version = hot.document.version
            run.counted = pack(transaction.known_ids(row.id))
        elif record.trigger_metadata:
            run.metadata = msgspec.Raw(record.trigger_metadata)  # pyright: ignore[reportAttributeAccessIssue]
        claimed.append(run)
    return claimed
