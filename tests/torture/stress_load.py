"""What the stress triggers, cancels and completes from outside, and what it notes of that."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import stress_tasks as tasks
from verdict import Verdict
from writers import until_answered

from milepost import Client, Task
from milepost.client import calls
from milepost.client.requests import trigger_request
from milepost.protocol.triggering import BatchItem, BatchRequest
from milepost.protocol.waitpoints import TokenRequest

TENANTS = 5
TOKEN_TIMEOUT = "4s"
# How long after its trigger a run is cancelled at most, and how long before its timeout a token is completed.
STEER_SECONDS = 3.0
TTL_SECONDS = 1.0
DELAY_SECONDS_MAX = 4
TOKENS_COMPLETED_SHARE = 0.7
CANCELS_SHARE = 0.04
# Those that execute or wait for long, or have children, are cancelled more often.
CANCELS_SHARES: dict[str, float] = {
    tasks.root.id: 0.15,
    tasks.lingering.id: 0.3,
    tasks.pausing.id: 0.2,
    tasks.expecting.id: 0.15,
    tasks.in_time.id: 0.15,
}
# Runs of one portion that are triggered from outside; trees have 18 more runs each.
MIX: list[tuple[Task[Any, Any], int]] = [
    (tasks.root, 8),
    (tasks.plain, 36),
    (tasks.in_thread, 15),
    (tasks.flaky, 10),
    (tasks.failing, 4),
    (tasks.giving_up, 3),
    (tasks.too_long, 3),
    (tasks.too_long_in_thread, 1),
    (tasks.lingering, 5),
    (tasks.pausing, 3),
    (tasks.narrowly, 25),
    (tasks.of_tenant, 20),
    (tasks.in_time, 4),
]
DELAYED_PER_PORTION = 6
TOKENS_PER_PORTION = 4
KEYS_PER_PORTION = 6
# A process of their own costs much: one of each in so many portions.
APART_PORTIONS = 8


@dataclass(frozen=True)
class Asked:
    """What a run was triggered with; times are in seconds."""

    task: str
    payload: object
    ttl: float = 0.0
    delay: float = 0.0


class Load:
    """Triggers portions of runs, with all that is done to them from outside.

    Attributes:
        asked: by run, what it was triggered with.
        cancelled: by run, when its cancel was acknowledged, in microseconds since 1970.
        by_key: by idempotency key, the runs that it gave.
        completed: by token, what the call said that has completed it: the data, where it was the first.
        counts: how often what was done from outside.
    """

    def __init__(self, client: Client, chance: random.Random, verdict: Verdict) -> None:
        self.asked: dict[str, Asked] = {}
        self.cancelled: dict[str, int] = {}
        self.by_key: dict[str, set[str]] = {}
        self.completed: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._client = client
        self._chance = chance
        self._verdict = verdict
        self._number = 0
        self._steering: set[asyncio.Task[None]] = set()

    async def portion(self) -> None:
        """Trigger one portion; what is to be done to its runs later goes on beside."""
        wanted = [(task, {}) for task, count in MIX for _ in range(count)]
        wanted += [(tasks.plain, {"delay": self._chance.randint(1, DELAY_SECONDS_MAX)})] * DELAYED_PER_PORTION
        if self.counts["portions"] % APART_PORTIONS == 0:
            wanted += [(tasks.deaf, {}), (tasks.dying, {})]
        self.counts["portions"] += 1
        self._chance.shuffle(wanted)
        batch: list[tuple[Asked, BatchItem]] = []
        for task, given in wanted:
            options: dict[str, Any] = dict(given)
            self._number += 1
            if task is tasks.in_time:
                options["ttl"] = TTL_SECONDS
            elif task is tasks.of_tenant:
                options["concurrency_key"] = f"tenant-{self._chance.randrange(TENANTS)}"
            elif task is tasks.lingering and (tenant := self._chance.randrange(3)):
                # Some without a key: those are counted elsewhere.
                options["concurrency_key"] = f"tenant-{tenant}"
            batch.append(self._item(task, self._number, options))
        tokens = [self._token() for _ in range(TOKENS_PER_PORTION)]
        for token_id in await asyncio.gather(*tokens):
            batch.append(self._item(tasks.expecting, token_id, {}))
        answer = await until_answered(
            self._client, calls.trigger_batch(BatchRequest(items=[item for _, item in batch]))
        )
        for run_id, (asked, _) in zip(answer.run_ids, batch, strict=True):
            self.asked[run_id] = asked
            if self._chance.random() < CANCELS_SHARES.get(asked.task, CANCELS_SHARE):
                self._later(self._cancel(run_id))
        await asyncio.gather(*(self._keyed() for _ in range(KEYS_PER_PORTION)))

    async def steered(self) -> None:
        """Wait until all has been done that was to be done later."""
        while self._steering:
            await asyncio.wait(self._steering)

    async def canary(self, task: Task[Any, Any], payload: object, **options: Any) -> str:
        """Trigger one run, as the others are."""
        asked, item = self._item(task, payload, options)
        request = BatchRequest(items=[item])
        run_id = (await until_answered(self._client, calls.trigger_batch(request))).run_ids[0]
        self.asked[run_id] = asked
        return run_id

    def _item(
        self, task: Task[Any, Any], payload: object, options: dict[str, Any]
    ) -> tuple[Asked, BatchItem]:
        request = trigger_request(payload, options)
        asked = Asked(task.id, payload, ttl=options.get("ttl", 0.0), delay=options.get("delay", 0.0))
        return asked, BatchItem(task.id, request.payload, request.options)

    def _later(self, what: Coroutine[Any, Any, None]) -> None:
        async def after_a_while(seconds: float) -> None:
            await asyncio.sleep(seconds)
            await what

        steering = asyncio.create_task(after_a_while(self._chance.uniform(0, STEER_SECONDS)))
        self._steering.add(steering)
        steering.add_done_callback(self._steering.discard)

    async def _cancel(self, run_id: str) -> None:
        await until_answered(self._client, calls.cancel_run(run_id))
        self.cancelled[run_id] = time.time_ns() // 1000
        self.counts["cancels"] += 1

    async def _token(self) -> str:
        request = TokenRequest(timeout=TOKEN_TIMEOUT)
        created, _ = await until_answered(self._client, calls.create_token(request))
        self.counts["tokens"] += 1
        if self._chance.random() < TOKENS_COMPLETED_SHARE:
            self._later(self._complete(created.id, self.counts["tokens"]))
        return created.id

    async def _complete(self, token_id: str, data: int) -> None:
        """Two complete it at once, and one of them at most is the first."""
        answers = await asyncio.gather(
            *(
                until_answered(self._client, calls.complete_token(token_id, str(each).encode()))
                for each in (data, -data)
            )
        )
        first = [each for each, answer in zip((data, -data), answers, strict=True) if answer.is_first]
        if len(first) > 1:
            self._verdict.add("key twice", f"token {token_id} was completed twice")
        if first:
            self.completed[token_id] = first[0]
            self.counts["tokens completed"] += 1

    async def _keyed(self) -> None:
        """Two trigger at once with the same key, and a third one after them."""
        self._number += 1
        key, number = f"key-{self._number}", self._number

        async def trigger() -> str:
            request = trigger_request(number, {"idempotency_key": key})
            return (await until_answered(self._client, calls.trigger(tasks.plain.id, request))).id

        run_ids = {*await asyncio.gather(trigger(), trigger()), await trigger()}
        self.counts["idempotency keys"] += 1
        self.by_key[key] = run_ids
        if len(run_ids) > 1:
            self._verdict.add("key twice", f"{key} gave {len(run_ids)} runs: {sorted(run_ids)}")
        self.asked |= dict.fromkeys(run_ids, Asked(tasks.plain.id, number))
