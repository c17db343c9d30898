"""Several engines on one database, as several servers have them: each command goes to another one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from milepost.engine.announcements import Announcement
from milepost.engine.commands import Command, ReleaseLostRuns
from milepost.engine.engine import Answer, Engine, Request
from milepost.store.database import Store
from milepost.store.sqlite import SQLiteDatabase
from support import postgres
from support.world import Ticket, World, new_store


class Servers(World):
    """A world whose engines take turns, one for each group of commands. The others hear of what each has committed at once.

    Attributes:
        heard: what each engine has announced, its own commits and those that it has heard of.
    """

    def __init__(self, stores: Sequence[Store], **settings: Any) -> None:
        self.stores = stores
        self.heard: list[list[Announcement]] = []
        self._turns = count()
        super().__init__(stores[0], **settings)

    def restart(self) -> None:
        """New engines on the same database."""
        self.clock.advance(0.001)
        self.engines = [
            Engine(store, self.settings, self.clock, server_id=f"server_{number}")
            for number, store in enumerate(self.stores)
        ]
        self.heard = [[] for _ in self.engines]
        self.engine = self.engines[0]

    def pass_lease(self) -> int:
        """As of one engine; each looks as often as one alone would."""
        lost, until = 0, self.clock() + round((self.settings.lease_seconds + 1) * 1_000_000)
        while self.clock() < until:
            self.clock.advance(self.settings.lease_seconds / 5)
            lost += sum(self.do(ReleaseLostRuns()) for _ in self.engines)
        return lost

    def submit(self, *commands: Command) -> list[Ticket]:
        """Carry out commands as one group of the engine whose turn it is."""
        self.clock.advance(0.001)
        tickets = [Ticket() for _ in commands]
        turn = next(self._turns) % len(self.engines)
        self._carry_out(
            turn, [Request(command, ticket) for command, ticket in zip(commands, tickets, strict=True)]
        )
        for number in range(len(self.engines)):
            if number != turn:
                self._look(number)
        # What a test asks the engine it asks the one that has answered.
        self.engine = self.engines[turn]
        return tickets

    def _carry_out(self, number: int, requests: Sequence[Request]) -> None:
        answers, announcements = self.engines[number].execute(requests)
        self._tell(number, answers, announcements)
        for announcement in announcements[-1:]:
            self.announced(announcement)

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
    with patch.object(SQLiteDatabase, "is_shared", True):
        world = Servers(
            [new_store(path), *(Store(path, synchronous="NORMAL") for _ in range(number - 1))], **settings
        )
        try:
            yield world
        finally:
            world.close()


@contextmanager
def servers_on_postgres(number: int = 3, **settings: Any) -> Iterator[Servers]:
    """Servers on one PostgreSQL database."""
    server = postgres.server()
    name = server.create_migrated_database()
    world = Servers([Store(server.url(name)) for _ in range(number)], **settings)
    try:
        yield world
    finally:
        world.close()
        server.drop_database(name)
