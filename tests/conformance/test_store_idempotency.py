"""Keys, who else waits for a run, and earlier children: every verb of `store.idempotency`."""

from conformance.rows import insert, new_run, row_of, run_name
from milepost.store import idempotency
from milepost.store.database import Store
from milepost.store.idempotency import EarlierChild, KeyRow
from milepost.store.runs import INLINE_CHARACTERS

FAR = 2**63 - 1
TEXT = "é\0\U0001f600"


def save(store: Store, *rows: KeyRow) -> None:
    with store.write() as connection:
        idempotency.save_keys(connection, rows)


def load(store: Store, *keys: str) -> list[KeyRow]:
    with store.read() as connection:
        return sorted(idempotency.load_keys(connection, keys), key=lambda row: (row.key, row.task))


def test_a_key_stands_for_one_thing_of_each_task(store: Store) -> None:
    rows = [
        KeyRow("a", "", "batch_1", 0),
        KeyRow("a", TEXT, "run_1", FAR),
        KeyRow(TEXT, "work", "run_2", -FAR),
    ]
    save(store, *rows)
    save(store)
    assert load(store, TEXT, "a", "a", "b") == rows
    assert load(store, TEXT[:-1]) == load(store) == []
    changed = KeyRow("a", TEXT, "run_3", 7)
    save(store, changed)
    assert load(store, "a") == [rows[0], changed]
    with store.write() as connection:
        idempotency.delete_key(connection, "a", "")
        idempotency.delete_key(connection, "a", "work")
    assert load(store, "a", TEXT) == [changed, rows[2]]


def test_expired_keys_go_those_first_that_expired_first(store: Store) -> None:
    rows = [KeyRow(TEXT + name, name, "run_1", at) for at, name in enumerate(["c", "a", "b", "d"])]
    save(store, *rows, KeyRow("far", "", "run_1", FAR))

    def prune(before: int, limit: int) -> int:
        with store.write() as connection:
            return idempotency.prune_keys(connection, before=before, limit=limit)

    def left() -> str:
        return "".join(row.task for row in load(store, *(row.key for row in rows)))

    assert (prune(0, 9), prune(9, 0), left()) == (0, 0, "abcd")
    assert (prune(3, 2), left()) == (2, "bd")
    # What expires at that time is not over before it.
    assert (prune(3, 2), left()) == (1, "d")
    assert (prune(FAR, 9), left()) == (1, "")
    assert load(store, "far") == [KeyRow("far", "", "run_1", FAR)]


def test_runs_are_shared_and_have_waiters(store: Store) -> None:
    insert(store, new_run(1), new_run(2))
    with store.write() as connection:
        idempotency.share(connection, [run_name(2)])
        idempotency.share(connection, [])
        idempotency.save_waiters(
            connection, [(run_name(2), "run_b"), (run_name(2), "run_a"), (run_name(1), TEXT)]
        )
        idempotency.save_waiters(connection, [(run_name(2), "run_a")])
        idempotency.save_waiters(connection, [])
    assert (row_of(store, 1).is_shared, row_of(store, 2).is_shared) == (0, 1)
    with store.read() as connection:
        assert sorted(idempotency.waiters_of(connection, run_name(2))) == ["run_a", "run_b"]
        assert idempotency.waiters_of(connection, run_name(1)) == [TEXT]
        assert idempotency.waiters_of(connection, run_name(3)) == []


def test_children_of_earlier_attempts_come_in_the_order_of_their_triggers(store: Store) -> None:
    long = '"' + "\0é" * INLINE_CHARACTERS + '"'
    of_parent = {"parent_id": run_name(1), "root_id": run_name(1)}
    insert(
        store,
        new_run(1),
        new_run(5, **of_parent, parent_attempt=1, payload=long, payload_type="application/json"),
        new_run(4, **of_parent, parent_attempt=2, task=TEXT),
        new_run(3, **of_parent, parent_attempt=1, payload="1"),
        new_run(6, **of_parent, parent_attempt=3),
        new_run(7, **of_parent),
        new_run(8, parent_id=run_name(2), root_id=run_name(2), parent_attempt=1),
    )

    def before(attempt: int) -> list[EarlierChild]:
        with store.read() as connection:
            return idempotency.earlier_children(connection, run_name(1), attempt)

    third = EarlierChild(run_name(3), "work", "1", None, False)
    fifth = EarlierChild(run_name(5), "work", None, "application/json", True)
    assert before(1) == []
    assert before(2) == [third, fifth]
    assert before(3) == [third, EarlierChild(run_name(4), TEXT, None, None, False), fifth]
    with store.write() as connection:
        assert idempotency.large_payloads(connection, [run_name(3), run_name(5)]) == {run_name(5): long}
        assert idempotency.large_payloads(connection, []) == {}
        # The second attempt has found it again, so the third finds it as one of the second's.
        idempotency.save_parent_attempts(connection, [(2, run_name(5))])
        idempotency.save_parent_attempts(connection, [])
    assert before(2) == [third]
    assert row_of(store, 5).parent_attempt == 2
