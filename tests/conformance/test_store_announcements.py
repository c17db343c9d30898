"""What servers tell each other: without gaps, in the order of the commits, and gone after a while."""

from pathlib import Path
from threading import Thread

import psycopg
import pytest
from sqlalchemy import select

from conformance.conftest import OpenStore
from milepost.store.announcements import (
    CHANNEL,
    MARKS,
    AnnouncementRow,
    announcements_after,
    append_announcement,
    leave_mark,
    newest_announcement,
    prune_announcements,
)
from milepost.store.database import Store
from milepost.store.schema import commit_numbers


def test_announcements_are_numbered_without_gaps_and_read_in_order(store: Store) -> None:
    for number in range(1, 6):
        with store.write() as connection:
            assert append_announcement(connection, b"\x00%d" % number, now=number * 10) == number
    with store.read() as connection:
        found = announcements_after(connection, 2, limit=2)
        assert found == [AnnouncementRow(number, b"\x00%d" % number, number * 10) for number in (3, 4)]
        assert announcements_after(connection, 5, limit=9) == []
        assert newest_announcement(connection) == 5


def test_what_is_undone_takes_no_number(store: Store) -> None:
    def fail_half_way() -> None:
        with store.write() as connection:
            append_announcement(connection, b"", now=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with store.write() as connection:
        assert newest_announcement(connection) == 0
        assert append_announcement(connection, b"", now=1) == 1


def test_pruned_announcements_leave_the_numbers_alone(store: Store) -> None:
    for number in range(1, 6):
        with store.write() as connection:
            append_announcement(connection, b"", now=number)
    with store.write() as connection:
        assert prune_announcements(connection, before=5, limit=3) == 3
        assert prune_announcements(connection, before=9, limit=9) == 2
        assert prune_announcements(connection, before=9, limit=9) == 0
    with store.write() as connection:
        assert newest_announcement(connection) == 5
        assert append_announcement(connection, b"", now=9) == 6


def test_marks_of_servers_that_are_gone_are_pruned(store: Store) -> None:
    day, now = 86_400_000_000, 1_800_000_000_000_000
    names = [f"{MARKS}{name}" for name in ("gone", "here")]
    with store.write() as connection:
        append_announcement(connection, b"", now=now)
        for name, number in zip(names, (now - day - 1, now - day), strict=True):
            leave_mark(connection, name, number)
        prune_announcements(connection, before=now, limit=9)
    with store.read() as connection:
        left = connection.execute(select(commit_numbers.c.name)).scalars().all()
    assert names[1] in left
    assert names[0] not in left
    assert "groups" in left


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_servers_that_commit_at_once_leave_no_gap_and_no_reader_sees_one(open_store: OpenStore) -> None:
    stores = [open_store() for _ in range(4)]
    reader = open_store()

    def commit(store: Store) -> None:
        for _ in range(50):
            with store.write() as connection:
                append_announcement(connection, b"", now=1)

    threads = [Thread(target=commit, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while len(seen) < 200:
        has_ended = not any(thread.is_alive() for thread in threads)
        with reader.read() as connection:
            seen += [row.number for row in announcements_after(connection, len(seen), limit=1000)]
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) == 200 or not has_ended
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_a_notification_comes_with_the_commit_and_not_before(store: Store, place: Path | str) -> None:
    assert isinstance(place, str)
    with psycopg.connect(place, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}".encode())
        with store.write() as connection:
            append_announcement(connection, b"", now=1)
            assert list(listener.notifies(timeout=0.05)) == []
        [told] = listener.notifies(timeout=30, stop_after=1)
        assert (told.channel, told.payload) == (CHANNEL, "1")
