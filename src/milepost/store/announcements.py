"""What servers on one database tell each other after their commits: numbered without gaps, kept for a while, read by the others.

The number is taken within the transaction that commits the group, so numbers come in the order of the commits, and whoever has read
one number has missed none before it. On PostgreSQL a notification on the channel `milepost` says that there is something new; it may
get lost, and whoever listens looks now and then without one.
"""

import msgspec
from sqlalchemy import Connection, String, bindparam, delete, func, insert, select

from milepost.store.schema import announcements, commit_numbers
from milepost.store.statements import Statement, upsert

CHANNEL = "milepost"
"""The channel of PostgreSQL's notifications; each carries the number of the announcement."""
_GROUPS = "groups"


class AnnouncementRow(msgspec.Struct, frozen=True, gc=False):
    """What one server has told the others: `payload` is its own form, `created_at` microseconds since 1970."""

    number: int
    payload: bytes
    created_at: int


_NEW = upsert(commit_numbers).values(name=_GROUPS, number=1)
# Each group of each server takes a number, tells it, and looks for the newest one.
_NEXT_NUMBER = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["name"], set_={"number": commit_numbers.c.number + 1}
    ).returning(commit_numbers.c.number),
    (),
)
_NEWEST = Statement(select(commit_numbers.c.number).where(commit_numbers.c.name == _GROUPS), ())
_NOTIFY = Statement(select(func.pg_notify(CHANNEL, bindparam("number", type_=String))), ["number"])
_INSERT = Statement(insert(announcements), AnnouncementRow.__struct_fields__)
_AFTER = Statement(
    select(*(announcements.c[name] for name in AnnouncementRow.__struct_fields__))
    .where(announcements.c.number > bindparam("after"))
    .order_by(announcements.c.number)
    .limit(bindparam("count")),
    ("after", "count"),
)


def append_announcement(connection: Connection, payload: bytes, *, now: int) -> int:
    """Tell the other servers something once this transaction is committed; its number."""
    number: int
    [(number,)] = _NEXT_NUMBER.read(connection, ())
    _INSERT.write(connection, [(number, payload, now)])
    if connection.dialect.name == "postgresql":
        _NOTIFY.read(connection, (str(number),))
    return number


def newest_announcement(connection: Connection) -> int:
    """The number of the newest announcement, pruned or not; 0 when there was none yet."""
    for (number,) in _NEWEST.read(connection, ()):
        return int(number)
    return 0


def announcements_after(connection: Connection, after: int, *, limit: int) -> list[AnnouncementRow]:
    """Up to `limit` announcements with a number above `after`, in order.

    If the first of them is not `after + 1`, those between were pruned: whoever reads has been away for too long, and has to look at
    everything anew.
    """
    return [AnnouncementRow(*values) for values in _AFTER.read(connection, (after, limit))]


def prune_announcements(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` announcements from before a time, the oldest first; how many they were."""
    oldest = (
        select(announcements.c.number)
        .where(announcements.c.created_at < before)
        .order_by(announcements.c.number)
        .limit(limit)
    )
    return connection.execute(delete(announcements).where(announcements.c.number.in_(oldest))).rowcount
