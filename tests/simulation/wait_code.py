"""What user code waits for beside other runs: times, and tokens that people complete, by the real `wait`."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from milepost.errors import AttemptOverError, MilepostError
from milepost.sdk.wait import wait

if TYPE_CHECKING:
    from simulation.records import Attempt
    from simulation.simulation import Simulation

# Shorter waits keep their slot and are stored nowhere.
SHORT_SECONDS = 0.5
PAUSES = (0.2, 0.7, 3.0, 8.0)
TIMEOUTS = (None, 1.5, 6.0, 20.0)


class WaitCode:
    """What one execution of a run waits for, drawn from its seed."""

    def __init__(self, simulation: Simulation, attempt: Attempt, label: str) -> None:
        self._simulation = simulation
        self._attempt = attempt
        # A random source of its own: all else must be as it is without waits.
        self._random = Random(f"{simulation.seed}/{label}/waits")
        self._is_over = False
        self._made: Counter[float | None] = Counter()

    async def step(self) -> None:
        """Wait for something, or do nothing."""
        if self._is_over or self._random.random() >= self._simulation.plan.waits:
            return
        try:
            await self._random.choice(
                [self._for_time, self._for_own_token, self._for_own_token, self._for_any_token]
            )()
        except MilepostError as error:
            # The server cannot be reached, or this attempt is over.
            self._is_over = isinstance(error, AttemptOverError)
            self._attempt.waits = False
            self._simulation.note(self._attempt.process, "waits in vain", repr(error))

    async def _for_time(self) -> None:
        seconds = self._random.choice(PAUSES)
        began_at = self._simulation.servers.steady()
        await wait.afor_(seconds)
        if seconds < SHORT_SECONDS:
            passed = (self._simulation.servers.steady() - began_at) / 1_000_000
            assert passed >= seconds - 0.001, f"{self._attempt} has waited {passed} s instead of {seconds}"

    async def _for_own_token(self) -> None:
        timeout = self._random.choice(TIMEOUTS)
        number = self._made[timeout]
        self._made[timeout] += 1
        token = await wait.acreate_token(timeout=timeout)
        self._simulation.made_token(
            token.id, (self._attempt.run_id, timeout, number), never_ends=timeout is None
        )
        if self._random.random() < 0.8:
            await self._for_token(token.id)

    async def _for_any_token(self) -> None:
        """Also one that has ended, and one of another run."""
        known = list(self._simulation.records.tokens)
        if known:
            await self._for_token(self._random.choice(known))

    async def _for_token(self, token_id: str) -> None:
        result = await wait.afor_token(token_id)
        if not self._attempt.is_over_early:
            self._simulation.watch.waits.told_end(
                str(self._attempt), token_id, result.output if result.ok else None
            )
