"""Waitpoints and who waits for them: every verb of `store.waitpoints`."""

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from conformance.rows import NOW
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.store import waitpoints
from milepost.store.database import Store
from milepost.store.schema import waitpoint_tags
from milepost.store.waitpoints import WaitpointFilter, WaitpointRow, user_key

FAR = 2**63 - 1
TEXT = "é\0\U0001f600"


def token(number: int, **fields: Any) -> WaitpointRow:
    """A token that nobody has completed and that never times out."""
    values: dict[str, Any] = {
        "kind": WaitpointKind.TOKEN.value,
        "status": WaitpointStatus.WAITING.value,
        "created_at": NOW + number,
    }
    return WaitpointRow(f"waitpoint_{number}", **{**values, **fields})


def ended(number: int, **fields: Any) -> WaitpointRow:
    values: dict[str, Any] = {"status": WaitpointStatus.COMPLETED.value, "ended_at": NOW + number}
    return token(number, **{**values, **fields})


def insert(store: Store, *rows: WaitpointRow) -> None:
    with store.write() as connection:
        for row in rows:
            waitpoints.insert_waitpoint(connection, row)


def load(store: Store, number: int) -> WaitpointRow | None:
    with store.read() as connection:
        return waitpoints.load_waitpoint(connection, f"waitpoint_{number}")


FULL = ended(
    1, created_at=-FAR, timeout_at=FAR, is_timeout_given=1, ended_at=FAR, run_id="run_1", tags='["\\u0000a","é"]',
    key=user_key(TEXT), key_expires_at=FAR, output=f'"{TEXT}"',
)  # fmt: skip


def test_they_come_back_as_they_were_given_by_id_and_by_key(store: Store) -> None:
    insert(store, FULL, token(2))
    assert (load(store, 1), load(store, 2), load(store, 3)) == (FULL, token(2), None)
    with store.write() as connection:
        assert waitpoints.load_by_key(connection, user_key(TEXT)) == FULL
        assert waitpoints.load_by_key(connection, TEXT) is None
        waitpoints.forget_key(connection, FULL.id)
        waitpoints.forget_key(connection, "waitpoint_3")
        assert waitpoints.load_by_key(connection, user_key(TEXT)) is None
    insert(store, token(4, key=user_key(TEXT)))


@pytest.mark.parametrize(
    "second",
    [
        token(1),
        token(2, key=user_key(TEXT)),
        token(2, kind="ELSE"),
        token(2, status="ELSE", ended_at=NOW),
        token(2, ended_at=NOW),
        ended(2, ended_at=None),
    ],
    ids=["id", "key", "kind", "status", "waits and has ended", "ended at no time"],
)
def test_the_database_itself_refuses_what_cannot_be(store: Store, second: WaitpointRow) -> None:
    insert(store, FULL)
    with pytest.raises(IntegrityError):
        insert(store, second)
    assert (load(store, 1), load(store, 2)) == (FULL, None)


def test_what_is_due_comes_in_the_order_of_its_time(store: Store) -> None:
    rows = [token(number, timeout_at=at) for number, at in ((3, NOW), (2, NOW + 1), (1, NOW + 1), (4, FAR))]
    insert(store, *rows, token(5), ended(6, timeout_at=NOW), token(7, kind="TIME", timeout_at=NOW - 1))

    def due(now: int, limit: int) -> list[int]:
        with store.read() as connection:
            return [int(row.id[-1]) for row in waitpoints.due(connection, now=now, limit=limit)]

    assert due(NOW + 1, 10) == [7, 3, 1, 2]
    assert due(FAR, 3) == [7, 3, 1]
    assert due(NOW - 2, 10) == []
    assert due(FAR, 0) == []
    with store.read() as connection:
        assert waitpoints.next_due_after(connection, 0) == NOW - 1
        assert waitpoints.next_due_after(connection, NOW + 1) == FAR
        assert waitpoints.next_due_after(connection, FAR) is None


def test_times_that_nobody_has_named_move_with_a_clock_that_is_set(store: Store) -> None:
    insert(
        store,
        token(1, timeout_at=NOW),
        token(2, timeout_at=NOW, is_timeout_given=1),
        ended(3, timeout_at=NOW),
    )
    insert(store, token(4))
    with store.write() as connection:
        waitpoints.shift(connection, -9)
    timeouts = [row.timeout_at for number in (1, 2, 3, 4) if (row := load(store, number)) is not None]
    assert timeouts == [NOW - 9, NOW, NOW, None]


def test_who_waits_is_told_once(store: Store) -> None:
    insert(store, token(1), token(2), token(3))
    pairs = [
        ("waitpoint_2", "run_1"),
        ("waitpoint_1", TEXT),
        ("waitpoint_1", "run_1"),
        ("waitpoint_3", "run_1"),
    ]
    with store.write() as connection:
        for waitpoint_id, run_id in [*pairs, pairs[0]]:
            waitpoints.add_waiter(connection, waitpoint_id, run_id)
    with store.write() as connection:
        waitpoints.end(connection, [], WaitpointStatus.COMPLETED, at=NOW, output="1")
        waitpoints.end(
            connection, ["waitpoint_1", "waitpoint_2"], WaitpointStatus.TIMED_OUT, at=FAR, output=f'"{TEXT}"'
        )
        assert waitpoints.take_waiters(connection, []) == []
        taken = waitpoints.take_waiters(connection, ["waitpoint_2", "waitpoint_1", "waitpoint_9"])
        assert taken == sorted(pairs[:3])
        assert waitpoints.take_waiters(connection, ["waitpoint_2", "waitpoint_1"]) == []
        assert waitpoints.take_waiters(connection, ["waitpoint_3"]) == [("waitpoint_3", "run_1")]
    timed_out = token(1, status=WaitpointStatus.TIMED_OUT.value, ended_at=FAR, output=f'"{TEXT}"')
    assert (load(store, 1), load(store, 3)) == (timed_out, token(3))


def listed(store: Store, limit: int = 10, after: int = 0, before: int = 0, **filter: Any) -> list[int]:
    with store.read() as connection:
        rows = waitpoints.list_tokens(
            connection,
            WaitpointFilter(**filter),
            limit=limit,
            after=f"waitpoint_{after}" if after else None,
            before=f"waitpoint_{before}" if before else None,
        )
    assert all(row.output is None for row in rows)
    return [int(row.id[-1]) for row in rows]


def test_a_list_has_pages_newest_first(store: Store) -> None:
    insert(
        store, *(ended(number, output="1") for number in range(1, 7)), token(7, kind="TIME", timeout_at=NOW)
    )
    assert listed(store) == [6, 5, 4, 3, 2, 1]
    assert listed(store, 2) == [6, 5]
    assert listed(store, 2, after=5) == [4, 3]
    assert listed(store, after=1) == []
    assert listed(store, 2, before=2) == [4, 3]
    assert listed(store, before=6) == []


def test_a_list_has_conditions_that_hold_together(store: Store) -> None:
    both = '["é\\u0000","b"]'
    insert(
        store, ended(1, tags=both), token(2, tags='["b"]', key=user_key(TEXT)), token(3, tags="[]"), token(4)
    )
    assert listed(store, statuses=("WAITING",)) == [4, 3, 2]
    assert listed(store, statuses=("WAITING", "COMPLETED")) == [4, 3, 2, 1]
    # One that has several of the tags comes once.
    assert listed(store, tags=("b", "é\0")) == [2, 1]
    assert listed(store, tags=("é\0",)) == [1]
    assert listed(store, tags=("é",)) == []
    assert listed(store, key=user_key(TEXT)) == [2]
    assert listed(store, created_from=NOW + 2, created_to=NOW + 3) == [3, 2]
    assert listed(store, created_from=FAR) == listed(store, created_to=-FAR) == []
    assert listed(store, tags=("b",), statuses=("WAITING",), created_to=NOW + 1) == []


def test_those_that_have_ended_long_ago_go_with_their_tags(store: Store) -> None:
    insert(store, *(ended(number, tags='["t"]') for number in (3, 2, 1)), ended(4), token(5, tags='["t"]'))

    def delete(before: int, limit: int) -> int:
        with store.write() as connection:
            return waitpoints.delete_ended(connection, before=before, limit=limit)

    assert delete(NOW + 1, 9) == 0
    assert delete(FAR, 0) == 0
    assert delete(NOW + 4, 2) == 2
    assert listed(store) == [5, 4, 3]
    assert delete(NOW + 4, 2) == 1
    assert listed(store) == [5, 4]
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(waitpoint_tags)).scalar_one() == 1
