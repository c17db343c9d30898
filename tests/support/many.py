"""Several engines on one database, as several servers have them: each command goes to another one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from milepost.engine import others
from milepost.engine.announcements import Announcement
from milepost.engine.commands import Command, ReleaseLostRuns
from milepost.engine.engine import Answer, Engine, Request
from milepost.engine.state import ParkedClaim
from milepost.errors import UnavailableError
from milepost.store.database import Store
from milepost.store.sqlite import SQLiteDatabase
from support import postgres
from support.faults import FailingConnection, FailingPostgresConnection
from support.world import Ticket, World, confirm_workers, exact_leases, new_sqlite_store, world_at

ONE_SERVER, THREE_SERVERS, ON_POSTGRES = "one server", "three servers", "three on PostgreSQL"


class Servers(World):
    """A world whose engines take turns, one for each group of commands. The others hear of what each has committed at once.

    Attributes:
        heard: what each engine has announced, its own commits and those that it has heard of.
        away: numbers of engines that hear of nothing at the moment, because they are frozen.
    """

    def __init__(self, stores: Sequence[Store], **settings: Any) -> None:
        self.stores = stores
        self.heard: list[list[Announcement]] = []
        self.away: set[int] = set()
        self._turn = 0
        super().__init__(stores[0], **settings)

    def restart(self, *, have_registered: bool = True) -> None:
        """New engines on the same database. See `World`."""
        self.clock.advance(0.001)
        self.engines = [
            Engine(store, self.settings, self.clock, server_id=f"server_{number}")
            for number, store in enumerate(self.stores)
        ]
        self.heard = [[] for _ in self.engines]
        self.engine = self.engines[0]
        if have_registered:
            for engine in self.engines:
                confirm_workers(engine)

    @property
    def next_store(self) -> Store:
        """The store of the engine whose turn is next."""
        return self.stores[self._turn]

    def parked(self, worker_id: str) -> ParkedClaim | None:
        """The claim of a worker that waits at the engine where it waits."""
        found = [engine.state.parked.get(worker_id) for engine in self.engines]
        return next((parked for parked in found if parked is not None), None)

    def wake_at(self) -> int | None:
        """When something happens next by itself, at one of them: it is enough if one knows, which tells the others then."""
        return min((at for engine in self.engines if (at := engine.wake_at()) is not None), default=None)

    def submit(self, *commands: Command, at: int | None = None) -> list[Ticket]:
        """Carry out commands as one group of the engine whose turn it is, or of that with the number `at`.

        Every engine wakes by the clock, so no commands are a group of each; and each looks after leases.
        """
        self.clock.advance(0.001)
        if not commands:
            for number in range(len(self.engines)):
                announcement = self._carry_out(number, [])
                if not announcement.is_empty:
                    self.announced(announcement)
            self.look()
            return []
        tickets = [Ticket() for _ in commands]
        turn = self._turn if at is None else at
        self._turn = (turn + 1) % len(self.engines)
        requests = [Request(command, ticket) for command, ticket in zip(commands, tickets, strict=True)]
        self.announced(self._carry_out(turn, requests))
        for command, ticket in zip(commands, tickets, strict=True):
            if isinstance(command, ReleaseLostRuns):
                self._release_lost_elsewhere(turn, command, ticket)
        self.look()
        # What a test asks the engine it asks the one that has answered.
        self.engine = self.engines[turn]
        return tickets

    def look(self) -> None:
        """Every engine that is not away hears of what the others have committed."""
        # What one finds another may have to hear of.
        for number in (*range(len(self.engines)), *range(len(self.engines))):
            if number not in self.away:
                self._look(number)

    def agree(self) -> None:
        """Every engine has told its feed the same, in the same order."""
        self.look()
        told = [
            [(others.encode(others.Learnt(), one), one.is_gap) for one in heard if not one.is_empty]
            for heard in self.heard
        ]
        for each in told[1:]:
            assert each == told[0]
        versions: dict[str, int] = {}
        for announcement in self.heard[0]:
            for changed in announcement.runs:
                for change in changed.changes:
                    before = versions.get(changed.row.id, change.version - 1)
                    assert change.version == before + 1, (changed.row.id, "has a gap")
                    versions[changed.row.id] = change.version

    def _release_lost_elsewhere(self, turn: int, command: ReleaseLostRuns, ticket: Ticket) -> None:
        for number in range(len(self.engines)):
            if number != turn and number not in self.away and isinstance(ticket.result, int):
                other = Ticket()
                announcement = self._carry_out(number, [Request(command, other)])
                if not announcement.is_empty:
                    self.announced(announcement)
                if isinstance(other.result, int):
                    ticket.results[0] += other.result

    def _carry_out(self, number: int, requests: Sequence[Request]) -> Announcement:
        """A group of one engine; what it has announced of its own."""
        answers, announcements = self.engines[number].execute(requests)
        self._tell(number, answers, announcements)
        # Those before it are what others have committed, who have told so.
        return announcements[-1] if announcements else Announcement([], [], [])

    def _look(self, number: int) -> None:
        self._tell(number, *self.engines[number].catch_up())
        if self.engines[number].has_offers:
            self._carry_out(number, [])

    def _tell(
        self, number: int, answers: Sequence[tuple[Answer, Any]], announcements: Sequence[Announcement]
    ) -> None:
        for answer, result in answers:
            answer(result)
        self.heard[number] += announcements

    def close(self) -> None:
        """Close every store."""
        for store in self.stores:
            store.close()


@contextmanager
def servers_on_sqlite(path: Path, number: int = 3, **settings: Any) -> Iterator[Servers]:
    """Servers on one file. Nobody is offered that, but a file locks as one database does, and is quick."""
    with patch.object(SQLiteDatabase, "is_shared", True), exact_leases():
        world = Servers(
            [
                new_sqlite_store(path),
                *(
                    Store(path, synchronous="NORMAL", connection_class=FailingConnection)
                    for _ in range(number - 1)
                ),
            ],
            **settings,
        )
        try:
            yield world
        finally:
            world.close()


class _Borrowed(NamedTuple):
    database: str
    stores: list[Store]

    def is_usable(self) -> bool:
        """Whether each store is as it was when it was opened."""
        try:
            return all(store.present_schema() == store.schema for store in self.stores)
        except UnavailableError:
            return False

    def end(self) -> None:
        for store in self.stores:
            store.close()
        postgres.server().drop_database(self.database)


# Those that nobody uses now, by how many stores they have: opening them, and making their statements, takes longer than most tests.
_unused: dict[int, list[_Borrowed]] = {}


def _open_on_postgres(number: int) -> _Borrowed:
    server = postgres.server()
    borrowed = _Borrowed(server.create_migrated_database(), [])
    try:
        for _ in range(number):
            borrowed.stores.append(
                Store(server.url(borrowed.database), connection_class=FailingPostgresConnection)
            )
    except BaseException:
        borrowed.end()
        raise
    return borrowed


@contextmanager
def servers_on_postgres(number: int = 3, **settings: Any) -> Iterator[Servers]:
    """Servers on one PostgreSQL database. It has been emptied after the test that had it before."""
    unused = _unused.setdefault(number, [])
    borrowed = unused.pop() if unused else _open_on_postgres(number)
    try:
        with exact_leases():
            yield Servers(borrowed.stores, **settings)
        if not borrowed.is_usable():
            raise AssertionError("a test has closed a store of the servers or changed its schema")
        postgres.server().empty_database(borrowed.database)
    except BaseException:
        # What a failed test has left in it is not looked through.
        borrowed.end()
        raise
    unused.append(borrowed)


@contextmanager
def world_of(servers: str, path: Path, **settings: Any) -> Iterator[World]:
    """A world of one server, of three on one file at this path, or of three on one PostgreSQL database.

    Those of several have all told their feeds the same at the end.
    """
    if servers == ONE_SERVER:
        with world_at(path, **settings) as world:
            yield world
        return
    on_sqlite = servers == THREE_SERVERS
    with servers_on_sqlite(path, **settings) if on_sqlite else servers_on_postgres(**settings) as world:
        yield world
        world.agree()
