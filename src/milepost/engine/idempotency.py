"""The same trigger, said again: which run it means that is there already.

By its **idempotency key**, whoever says it. Or without a word, as a child: an attempt of a run that is not the first is given the
children of the attempts before it, each once: one of the same task with the same payload. What has failed for good is passed over
either way, so it is done anew.

All of it is decided in the transaction, so concurrent triggers at any server agree. A first attempt costs nothing but the number that
each child keeps; what a later one may find is read once, when it triggers for the first time, and is a hint: the row of a run says
whether it is still to be had.
"""

from collections.abc import Iterable, Sequence

import msgspec

from milepost.engine.children import EarlierChildren, RememberedChildren, kind_of, type_of
from milepost.engine.commands import AttemptRef, BatchKey, ResetKey, TriggerItem
from milepost.engine.transaction import Transaction
from milepost.errors import InvalidRequestError, NotFoundError
from milepost.model.durations import parse_duration
from milepost.model.names import check_name
from milepost.protocol.triggering import TriggerOptions
from milepost.store import batches as batch_store
from milepost.store import idempotency as store
from milepost.store.batches import BatchRow
from milepost.store.idempotency import KeyRow
from milepost.store.runs import NewRun, RunRow

KEY_CHARACTERS_MAX = 2048
TTL_DAYS = 30
TTL_DAYS_MAX = 3650
_DAY_MICROSECONDS = 86_400 * 1_000_000
BATCH = ""
"""Stands for the task of a key that stands for a whole batch."""


# --- keys --------------------------------------------------------------------------------------------------


def expiry(ttl: str | int | float | None, now: int, *, place: str) -> int:
    """When a key is forgotten that is used now, in microseconds. Raises InvalidRequestError."""
    if ttl is None:
        return now + TTL_DAYS * _DAY_MICROSECONDS
    field = f"{place}idempotencyKeyTTL"
    try:
        seconds = parse_duration(ttl).total_seconds()
    except ValueError as error:
        raise InvalidRequestError(f"idempotencyKeyTTL: {error}", field=field) from None
    if not 0 < seconds <= TTL_DAYS_MAX * 86_400:
        raise InvalidRequestError(
            f"idempotencyKeyTTL is more than nothing and at most {TTL_DAYS_MAX:,} days, not {ttl!r}",
            field=field,
            limit=TTL_DAYS_MAX,
        )
    return now + int(seconds * 1_000_000)


def check_key(key: str, *, place: str) -> None:
    """Raises InvalidRequestError for a text that can be no key."""
    check_name(key, "an idempotency key", field=f"{place}idempotencyKey", characters_max=KEY_CHARACTERS_MAX)


def reset(command: ResetKey, transaction: Transaction) -> None:
    """Let a key stand for nothing. Raises NotFoundError where it does so already."""
    if _target(command.key, command.task, transaction) is None:
        of = "a batch" if command.task == BATCH else f"task {command.task!r:.100}"
        raise NotFoundError(f"{command.key!r:.100} is no idempotency key of {of}", field="key")
    transaction.forget_key(command.key, command.task)


def batch_of(key: BatchKey | None, transaction: Transaction) -> BatchRow | None:
    """The batch that a key stands for."""
    if key is None:
        return None
    check_key(key.key, place="")
    expiry(key.ttl, 0, place="")
    batch_id = _target(key.key, BATCH, transaction)
    return None if batch_id is None else transaction.batch(batch_id)


def keep_batch(key: BatchKey | None, batch: BatchRow, transaction: Transaction) -> None:
    """A key stands for this batch from now on."""
    if key is not None:
        transaction.save_key(KeyRow(key.key, BATCH, batch.id, expiry(key.ttl, transaction.age_now, place="")))


def shown_key(options: TriggerOptions) -> str | None:
    """The key as readers are shown it: what the user has given, where the request says so."""
    given = None if options.idempotency_key_options is None else options.idempotency_key_options.key
    key = options.idempotency_key if given is None else given if isinstance(given, str) else "-".join(given)
    return key if key is None else key[:KEY_CHARACTERS_MAX]


def keys_of(items: Iterable[TriggerItem]) -> Iterable[str]:
    """The keys that some triggers name, to be loaded in one go; those by which they put off one another included."""
    keys = [item.options.idempotency_key for item in items if item.options.idempotency_key is not None]
    return keys + [item.options.debounce.key for item in items if item.options.debounce is not None]


def _target(key: str, task: str, transaction: Transaction) -> str | None:
    row = transaction.key(key, task)
    return None if row is None or row.expires_at <= transaction.age_now else row.target_id


# --- finding -----------------------------------------------------------------------------------------------


class Finding:
    """Which runs the triggers of one command mean. Nothing is changed before `keep`, because the command may still be refused."""

    def __init__(
        self, attempt: AttemptRef | None, children: RememberedChildren, transaction: Transaction
    ) -> None:
        self._attempt = attempt
        self._children = children
        self._transaction = transaction
        self._positions: dict[tuple[str, bytes], int] = {}
        self._keys: dict[tuple[str, str], KeyRow] = {}
        self._made: set[str] = set()
        self._again: list[RunRow] = []

    def load(self, items: Sequence[TriggerItem]) -> None:
        """Load in one go the children that these triggers will probably be given."""
        attempt = self._attempt
        if attempt is None or attempt.number < 2:
            return
        children = self._children.of(attempt, self._transaction.connection)
        counts: dict[bytes, int] = {}
        ids: list[str] = []
        for item in items:
            if item.options.idempotency_key is None and not item.options.always_new:
                kind = kind_of(item.task, item.payload, type_of(item))
                position = self._position(children, kind) + counts.get(kind, 0)
                counts[kind] = counts.get(kind, 0) + 1
                child_id = children.child(item, kind, position, self._transaction.connection)
                if child_id is not None:
                    ids.append(child_id)
        self._transaction.load_runs(ids)

    def find(
        self, item: TriggerItem, run: NewRun, *, place: str, by_attempt: bool = True
    ) -> RunRow | str | None:
        """The run that a trigger means: its row, or the id of one that this command makes; None where `run` is to be made.

        Args:
            by_attempt: children are looked for, and made so that they are found.
        """
        key = item.options.idempotency_key
        if key is not None:
            place = f"{place}options."
            check_key(key, place=place)
            row = KeyRow(
                key, item.task, run.id, expiry(item.options.idempotency_key_ttl, self._transaction.age_now, place=place)
            )  # fmt: skip
            return self._by_key(row)
        attempt = self._attempt
        if attempt is None or not by_attempt or item.options.always_new or run.parent_id != attempt.run:
            return None
        found = self._by_child(item, attempt) if attempt.number > 1 else None
        if found is None:
            run.parent_attempt = attempt.number
        return found

    def means_instead(self, run_id: str) -> None:
        """The run that was to be made is another one, which is there: the keys that it was to have stand for that."""
        self._keys = {
            place: msgspec.structs.replace(row, target_id=run_id) for place, row in self._keys.items()
        }

    def keep(self) -> None:
        """The command is carried out: what was found and what it has made is so from now on. New runs have been added before."""
        transaction, attempt = self._transaction, self._attempt
        if self._again:
            assert attempt is not None, "only attempts find children"
            for row in self._again:
                row.parent_attempt = attempt.number
            store.save_parent_attempts(
                transaction.connection, [(attempt.number, row.id) for row in self._again]
            )
            transaction.changed_otherwise.update(row.id for row in self._again)
        transaction.child_positions.update(self._positions)
        for row in self._keys.values():
            transaction.save_key(row)

    def _by_key(self, wanted: KeyRow) -> RunRow | str | None:
        transaction = self._transaction
        place = wanted.key, wanted.task
        own = self._keys.get(place)
        if own is not None:
            return own.target_id
        target_id = _target(wanted.key, wanted.task, transaction)
        row = None if target_id is None else transaction.run_made(target_id)
        if row is not None and row.status.stands:
            return row
        self._keys[place] = wanted
        return None

    def _by_child(self, item: TriggerItem, attempt: AttemptRef) -> RunRow | None:
        transaction = self._transaction
        children = self._children.of(attempt, transaction.connection)
        kind = kind_of(item.task, item.payload, type_of(item))
        position = self._position(children, kind)
        found = None
        while found is None:
            child_id = children.child(item, kind, position, transaction.connection)
            if child_id is None:
                break
            position += 1
            row = transaction.run(child_id)
            # Another server may have given it out.
            if row is not None and row.parent_attempt is not None and row.parent_attempt < attempt.number:
                found = row if row.status.stands else None
        self._positions[attempt.run, kind] = position
        if found is not None:
            self._again.append(found)
        return found

    def _position(self, children: EarlierChildren, kind: bytes) -> int:
        assert self._attempt is not None, "only attempts find children"
        place = self._attempt.run, kind
        own = self._positions.get(place)
        if own is None:
            own = self._transaction.child_positions.get(place)
        return children.next.get(kind, 0) if own is None else own


def let_wait(row: RunRow, waiter_id: str | None, transaction: Transaction) -> None:
    """A run waits for one that was there before. Raises InvalidRequestError for one that would wait for itself."""
    if waiter_id is None or row.status.is_final:
        return
    ancestor = transaction.run(waiter_id)
    while ancestor is not None:
        if ancestor.id == row.id:
            raise InvalidRequestError(
                f"the idempotency key stands for run {row.id}, from which run {waiter_id} comes: it would wait for itself",
                field="options.idempotencyKey",
            )
        ancestor = transaction.run(ancestor.parent_id) if ancestor.parent_id is not None else None
    if row.parent_id == waiter_id and row.batch_id is None:
        # Its end is told to its parent anyway.
        return
    store.save_waiters(transaction.connection, [(row.id, waiter_id)])
    _share([row], transaction)


def join(batch: BatchRow, members: Sequence[tuple[int, RunRow]], transaction: Transaction) -> None:
    """A batch has runs that were there before, each with its index. Those that have ended count as finished."""
    if not members:
        return
    batch_store.insert_members(transaction.connection, [(batch.id, index, row.id) for index, row in members])
    _share([row for _, row in members], transaction)
    for _, row in members:
        batch.finished_count += row.status.is_final
        # Lists of the batch have it from now on.
        transaction.announce_state(row)


def _share(rows: Sequence[RunRow], transaction: Transaction) -> None:
    fresh = {row.id: row for row in rows if not row.is_shared}
    store.share(transaction.connection, sorted(fresh))
    transaction.changed_otherwise.update(fresh)
    for row in fresh.values():
        row.is_shared = 1


def followers(row: RunRow, transaction: Transaction) -> tuple[list[BatchRow], list[str]]:
    """Who else is to know that a shared run has ended: batches, as often as they have it, and runs that wait."""
    batches: list[BatchRow] = []
    for batch_id in batch_store.batches_with(transaction.connection, row.id):
        batch = transaction.batch(batch_id)
        assert batch is not None, "a batch is never deleted before its runs"
        batches.append(batch)
    return batches, store.waiters_of(transaction.connection, row.id)
