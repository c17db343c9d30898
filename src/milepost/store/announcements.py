"""What servers on one database tell each other after their commits: numbered without gaps, kept for a while, read by the others.

The number is taken within the transaction that commits the group, so numbers come in the order of the commits, and whoever has read
one number has missed none before it. On PostgreSQL a notification on the channel `milepost` says that there is something new; it may
get lost, and whoever listens looks now and then without one.
"""

import msgspec
from sqlalchemy import BigInteger, Connection, String, bindparam, cast, delete, func, insert, select

from milepost.store.schema import announcements, commit_numbers
from milepost.store.statements import Statement, upsert

CHANNEL = "milepost"
"""The channel of PostgreSQL's notifications; each carries the number of the announcement."""
_GROUPS = "groups"
NEWEST = f"SELECT number FROM commit_numbers WHERE name = '{_GROUPS}'"
"""Selects the number of the newest announcement. A database may do so as it begins a group, beside which no other one commits."""
FOUND = "milepost_newest_announcement"
"""Under this key in the connection's `info` it leaves what it has found, for this group."""


class AnnouncementRow(msgspec.Struct, frozen=True, gc=False):
    """What one server has told the others: `payload` is its own form, `created_at` microseconds since 1970."""

    number: int
    payload: bytes
    created_at: int


MARKS = "marks of "
"""How the names of rows begin by which servers find out whether their groups were committed."""
IS_MARK = commit_numbers.c.name.startswith(MARKS)
"""Selects these rows, which mean nothing in another database."""
MARK_OF = "SELECT number FROM commit_numbers WHERE name = %s"
# Nobody asks for the mark of a server that has been quiet for so long.
_MARKS_MICROSECONDS = 86_400_000_000
_NEW = upsert(commit_numbers).values(name=_GROUPS, number=bindparam("number"))
_NUMBERED = _NEW.on_conflict_do_update(index_elements=["name"], set_={"number": _NEW.excluded.number})
_NEW_MARK = upsert(commit_numbers).values(name=bindparam("name"), number=bindparam("number"))
_LEAVE_MARK = Statement(
    _NEW_MARK.on_conflict_do_update(index_elements=["name"], set_={"number": _NEW_MARK.excluded.number}),
    ["name", "number"],
)
_ROW = insert(announcements).values(
    {name: bindparam(name, type_=announcements.c[name].type) for name in AnnouncementRow.__struct_fields__}
)
_TAKE_NUMBER = Statement(_NUMBERED, ["number"])
_INSERT = Statement(_ROW, AnnouncementRow.__struct_fields__)
# Both and the notification, for each group of a server that is not alone, as one statement.
_TELL = Statement(
    select(func.pg_notify(CHANNEL, cast(bindparam("number", type_=BigInteger), String))).add_cte(
        _NUMBERED.cte("number_taken"), _ROW.cte("told")
    ),
    AnnouncementRow.__struct_fields__,
)
_NEWEST = Statement(select(commit_numbers.c.number).where(commit_numbers.c.name == _GROUPS), ())
_AFTER = Statement(
    select(*(announcements.c[name] for name in AnnouncementRow.__struct_fields__))
    .where(announcements.c.number > bindparam("after"))
    .order_by(announcements.c.number)
    .limit(bindparam("count")),
    ("after", "count"),
)


def append_announcement(connection: Connection, payload: bytes, *, now: int) -> int:
    """Tell the other servers something once this transaction is committed; its number, one more than the newest. Once in a
    transaction, beside which no other one tells anything."""
    number = newest_announcement(connection) + 1
    row = number, payload, now
    if connection.dialect.name == "postgresql":
        _TELL.write(connection, [row])
    else:
        _TAKE_NUMBER.write(connection, [(number,)])
        _INSERT.write(connection, [row])
    return number


def newest_announcement(connection: Connection) -> int:
    """The number of the newest announcement, pruned or not; 0 when there was none yet."""
    found = connection.info.get(FOUND)
    if found is not None:
        return found
    for (number,) in _NEWEST.read(connection, ()):
        return int(number)
    return 0


def leave_mark(connection: Connection, name: str, number: int) -> None:
    """This transaction is the newest one of a server: the number, a time in microseconds since 1970, is no other one's."""
    _LEAVE_MARK.write(connection, [(name, number)])


def announcements_after(connection: Connection, after: int, *, limit: int) -> list[AnnouncementRow]:
    """Up to `limit` announcements with a number above `after`, in order.

    If the first of them is not `after + 1`, those between were pruned: whoever reads has been away for too long, and has to look at
    everything anew.
    """
    return [AnnouncementRow(*values) for values in _AFTER.read(connection, (after, limit))]


def prune_announcements(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` announcements from before a time, the oldest first; how many they were. And old marks of servers."""
    connection.execute(
        delete(commit_numbers).where(IS_MARK, commit_numbers.c.number < before - _MARKS_MICROSECONDS)
    )
    oldest = (
        select(announcements.c.number)
        .where(announcements.c.created_at < before)
        .order_by(announcements.c.number)
        .limit(limit)
    )
    return connection.execute(delete(announcements).where(announcements.c.number.in_(oldest))).rowcount
