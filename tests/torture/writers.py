"""Writers from outside of any run: each sends request after request to a handful of shared documents, and keeps count."""

import asyncio
import copy
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from verdict import Verdict

from milepost import Client
from milepost.client import calls
from milepost.client.calls import Call
from milepost.client.request_ids import new_request_id
from milepost.client.updater import OutsideMetadata
from milepost.errors import MetadataFlushError, UnavailableError
from milepost.model.operations import Append, Increment, Operation, Set
from milepost.protocol.metadata import MetadataRequest, Refused

ResultT = TypeVar("ResultT")

COUNTERS = 5
OWN_ITEMS_MAX = 40
SHARED_ITEMS_MAX = 200
# A client may leave out appends that later ones of the same request push out; so many never are.
CLIENT_OPERATIONS_MAX = OWN_ITEMS_MAX
RAW_OPERATIONS = (100, 500)
TEXT_KEY = "text"


@dataclass
class Totals:
    """What one writer has sent to one document, or what of it was acknowledged.

    Attributes:
        tokens: how many tokens were appended; they are numbered from 0.
        operations: all operations.
        refused: operations that cannot be applied, and that the server has to report.
        counters: the sum of the increments of each counter.
    """

    tokens: int = 0
    operations: int = 0
    refused: int = 0
    counters: Counter[str] = field(default_factory=Counter[str])


@dataclass
class Account:
    """What one writer has to do with one document."""

    sent: Totals = field(default_factory=Totals)
    acknowledged: Totals = field(default_factory=Totals)

    def settle(self) -> None:
        """Everything that was sent is acknowledged."""
        self.acknowledged = copy.deepcopy(self.sent)


class Writer:
    """One writer. Odd ones use `runs.metadata(...)`, even ones raw requests, which they sometimes send twice at once.

    Args:
        rest_seconds: how long it rests between two requests, on average.

    Attributes:
        accounts: by run.
        repeats: how many requests were sent twice at once.
    """

    def __init__(
        self,
        number: int,
        client: Client,
        run_ids: list[str],
        chance: random.Random,
        verdict: Verdict,
        *,
        rest_seconds: float,
    ) -> None:
        self.number = number
        self.accounts = {run_id: Account() for run_id in run_ids}
        self.repeats = 0
        self._client = client
        self._chance = chance
        self._verdict = verdict
        self._rest_seconds = rest_seconds
        self._updaters = {run_id: client.runs.metadata(run_id) for run_id in run_ids}

    @property
    def acknowledged(self) -> int:
        """Operations that the server has applied."""
        return sum(
            account.acknowledged.operations - account.acknowledged.refused
            for account in self.accounts.values()
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Write until it is told to stop; then everything that was sent is acknowledged."""
        while not stop.is_set():
            run_id = self._chance.choice(list(self.accounts))
            account = self.accounts[run_id]
            before = account.sent.refused
            if self.number % 2:
                refused = await self._send_by_client(run_id, account)
            else:
                refused = await self._send_raw(run_id, account)
            self._check_refused(refused, account.sent.refused - before)
            account.settle()
            await asyncio.sleep(self._chance.uniform(0, 2 * self._rest_seconds))

    def _check_refused(self, refused: list[str], expected: int) -> None:
        if len(refused) != expected or set(refused) - {TEXT_KEY}:
            self._verdict.add(
                "lost", f"writer {self.number}: {expected} refusals were due, there are {refused}"
            )

    def _operations(self, account: Account, count: int) -> list[Operation]:
        """The next operations. `account.sent` counts them."""
        chance, sent = self._chance, account.sent
        operations: list[Operation] = []
        before = sent.tokens
        for _ in range(count):
            drawn = chance.random()
            if drawn < 0.6:
                operations.append(Append(f"own-{self.number}", sent.tokens, OWN_ITEMS_MAX))
                sent.tokens += 1
            elif drawn < 0.7:
                operations.append(Append("shared", [self.number, sent.tokens], SHARED_ITEMS_MAX))
                sent.tokens += 1
            elif drawn < 0.88:
                key, by = f"counter-{chance.randrange(COUNTERS)}", chance.randint(1, 5)
                operations.append(Increment(key, by))
                sent.counters[key] += by
            elif drawn < 0.98:
                operations.append(Set(f"$.last.w{self.number}", sent.tokens))
            else:
                operations.append(Increment(TEXT_KEY, 1))
                sent.refused += 1
        # The last word of each request says how far it goes.
        operations.append(Set(f"$.last.w{self.number}", sent.tokens))
        operations.append(Increment(f"$.tokens.w{self.number}", sent.tokens - before))
        sent.operations += len(operations)
        return operations

    async def _send_raw(self, run_id: str, account: Account) -> list[str]:
        operations = self._operations(account, self._chance.randint(*RAW_OPERATIONS))
        call = calls.put_metadata(run_id, MetadataRequest(operations=operations), new_request_id())
        if self._chance.random() < 0.05:
            self.repeats += 1
            answer, other = await asyncio.gather(
                until_answered(self._client, call), until_answered(self._client, call)
            )
            if _places(answer.refused) != _places(other.refused):
                self._verdict.add("doubled", f"writer {self.number}: a repeat was answered in another way")
        else:
            answer = await until_answered(self._client, call)
        for item in answer.refused:
            if operations[item.index] != Increment(TEXT_KEY, 1):
                self._verdict.add(
                    "lost", f"writer {self.number}: {operations[item.index]} was refused: {item}"
                )
        return [TEXT_KEY] * len(answer.refused)

    async def _send_by_client(self, run_id: str, account: Account) -> list[str]:
        updater = self._updaters[run_id]
        account_before = account.sent.refused
        for operation in self._operations(account, self._chance.randint(5, CLIENT_OPERATIONS_MAX)):
            _call(updater, operation)
        while True:
            try:
                await updater.asend()
            except UnavailableError:
                continue
            except MetadataFlushError as error:
                # Refused increments of one key were one operation.
                keys = {item.operation["key"] for item in error.refused}
                if keys == {TEXT_KEY}:
                    return [TEXT_KEY] * (account.sent.refused - account_before)
                return [str(key) for key in keys]
            return []


async def until_answered(client: Client, call: Call[ResultT]) -> ResultT:
    """Make one call again and again, under the same request id, until it is answered."""
    while True:
        try:
            return await client.asend(call)
        except UnavailableError:
            continue


def _places(refused: list[Refused]) -> list[int]:
    return [item.index for item in refused]


def _call(updater: OutsideMetadata, operation: Operation) -> None:
    match operation:
        case Append(key, value, max_items):
            updater.append(key, value, max_items=max_items)
        case Increment(key, value):
            updater.increment(key, value)
        case Set(key, value):
            updater.set(key, value)
        case _:
            raise AssertionError(operation)
