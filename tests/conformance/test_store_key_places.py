"""The line of concurrency keys: every verb of `store.key_places`."""

from conformance.rows import NOW
from milepost.store import key_places
from milepost.store.database import Store
from milepost.store.key_places import PAIRS, KeyPlace

# By their code points, in this order; NUL and what is beyond 16 bits too.
KEYS = ["", "\0", "a", "a\0", "a\0b", "é", "\ufffd", "\U0001f600"]
FAR = 2**63 - 1


def place(key: str = "a", *, queue: str = "mail", task: str = "send") -> KeyPlace:
    return KeyPlace(queue, key, task)


def line(store: Store, *pairs: tuple[str, str], limit: int = 100, now: int = NOW) -> list[KeyPlace]:
    with store.read() as connection:
        return key_places.first_in_line(connection, pairs or [("send", "mail")], limit=limit, now=now)


def offer(store: Store, *due: tuple[KeyPlace, int]) -> None:
    with store.write() as connection:
        key_places.offer_keys(connection, due)


def test_places_stand_by_their_time_their_turn_and_the_code_points_of_their_key(store: Store) -> None:
    offer(
        store,
        *((place(key), NOW) for key in reversed(KEYS)),
        (place("first"), NOW - 1),
        (place("later"), NOW + 1),
    )
    assert line(store) == [place("first"), *map(place, KEYS)]
    assert line(store, limit=3) == [place("first"), place(""), place("\0")]
    assert line(store, limit=0) == []
    assert line(store, now=0) == []
    with store.write() as connection:
        key_places.look_later(connection, [(place(""), NOW, FAR), (place("\0"), NOW, 1)])
        key_places.look_later(connection, [])
    assert line(store) == [place("first"), *map(place, KEYS[2:]), place("\0"), place("")]


def test_an_offer_brings_a_place_forward_and_opens_none(store: Store) -> None:
    offer(store, (place(), NOW + 5), (place("closed"), NOW))
    with store.write() as connection:
        key_places.look_later(connection, [(place("closed"), None, 0)])
    offer(store, (place(), NOW + 9), (place("closed"), NOW))
    assert line(store, now=NOW + 4) == []
    offer(store, (place(), NOW + 1))
    offer(store)
    assert line(store, now=NOW + 1) == [place()]
    with store.read() as connection:
        assert key_places.queued_keys(connection, "mail", limit=10) == ["a", "closed"]


def test_who_makes_room_opens_what_is_closed_and_nothing_else(store: Store) -> None:
    places = [place("a"), place("a", task="other"), place("b"), place("a", queue="else"), place("waits")]
    offer(store, *((each, FAR) for each in places))
    with store.write() as connection:
        key_places.look_later(connection, [(each, None, 7) for each in places[:4]])
        key_places.open_keys(connection, [("mail", "a"), ("mail", "nobody")], now=NOW)
        key_places.open_keys(connection, [], now=NOW)
    pairs = [("send", "mail"), ("other", "mail"), ("send", "else")]
    assert line(store, *pairs) == [place("a", task="other"), place("a")]
    with store.write() as connection:
        key_places.open_queue(connection, "mail", now=NOW)
    assert line(store, *pairs) == [place("a", task="other"), place("a"), place("b")]
    assert line(store, *pairs, now=FAR)[-1] == place("waits")


def test_more_pairs_than_one_statement_takes_are_one_line(store: Store) -> None:
    pairs = [(f"task_{number}", f"queue_{number}") for number in range(PAIRS + 3)]
    offer(
        store,
        *((KeyPlace(queue, "k", task), NOW - number) for number, (task, queue) in enumerate(pairs)),
        (KeyPlace("queue_1", "later", "task_1"), FAR),
    )
    found = line(store, *pairs, limit=PAIRS + 2)
    assert found == [KeyPlace(queue, "k", task) for task, queue in reversed(pairs)][:-1]
    with store.read() as connection:
        assert key_places.first_in_line(connection, [], limit=10, now=NOW) == []
        assert key_places.next_look_at(connection, NOW, pairs) == FAR
        assert key_places.next_look_at(connection, NOW - PAIRS - 2, pairs) == NOW - PAIRS - 1
        assert key_places.next_look_at(connection, FAR, pairs) is None
        assert key_places.next_look_at(connection, 0, []) is None


def test_what_is_forgotten_is_in_no_line(store: Store) -> None:
    offer(store, *((place(key), NOW) for key in KEYS), (place("a", task="other"), NOW))
    with store.write() as connection:
        key_places.forget(connection, [place(key) for key in KEYS[2:]])
        key_places.forget(connection, [])
    with store.read() as connection:
        assert sorted(key_places.keyed_pairs(connection)) == [("other", "mail"), ("send", "mail")]
        assert key_places.queued_keys(connection, "mail", limit=10) == ["", "\0", "a"]
        assert key_places.queued_keys(connection, "mail", limit=1) == [""]
        assert key_places.queued_keys(connection, "else", limit=10) == []
        assert key_places.has_places(connection, "other", "mail")
        assert not key_places.has_places(connection, "other", "else")


def test_places_move_with_a_clock_that_is_set(store: Store) -> None:
    offer(store, (place("over"), NOW - 1), (place("due"), NOW + 10), (place("closed"), NOW))
    with store.write() as connection:
        key_places.look_later(connection, [(place("closed"), None, 0)])
        # It was set on by 5: what was due later than it went stays as far away.
        key_places.shift_looks(connection, 5, now=NOW + 5)
    assert line(store, now=NOW + 14) == [place("over")]
    assert line(store, now=NOW + 15) == [place("over"), place("due")]
    with store.write() as connection:
        key_places.shift_looks(connection, -5, now=NOW)
    assert line(store, now=NOW - 6) == [place("over")]
    assert line(store, now=NOW + 10) == [place("over"), place("due")]
