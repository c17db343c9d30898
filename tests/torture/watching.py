"""Subscribers that live through all of it."""

import asyncio
import itertools
from typing import Any

from verdict import Verdict

from milepost import Client, Run
from milepost.errors import UnavailableError


class Watcher:
    """Follows one run to its end, and sees that nothing goes backwards on the way.

    Args:
        pause_seconds: how long it is busy with each state; a slow reader skips states.

    Attributes:
        states: how many states it has seen.
        last: the newest of them.
    """

    def __init__(self, client: Client, run_id: str, verdict: Verdict, *, pause_seconds: float = 0) -> None:
        self.states = 0
        self.last: Run | None = None
        self._client = client
        self._run_id = run_id
        self._verdict = verdict
        self._pause_seconds = pause_seconds

    async def run(self) -> None:
        """Follow the run until it has finished."""
        while True:
            try:
                async for state in self._client.runs.asubscribe(self._run_id):
                    self._look(state)
                    if self._pause_seconds:
                        await asyncio.sleep(self._pause_seconds)
                return
            except UnavailableError:
                # The server was away just when this one connected first.
                continue

    def _look(self, state: Run) -> None:
        before, self.last = self.last, state
        self.states += 1
        what = f"a state of run {self._run_id}"
        if before is not None:
            if state.metadata_version < before.metadata_version:
                self._verdict.add(
                    "backwards",
                    f"{what}: version {state.metadata_version} after version {before.metadata_version}",
                )
            for key, number in _growing(before.metadata).items():
                if _growing(state.metadata).get(key, -1) < number:
                    self._verdict.add("backwards", f"{what}: {key} was {number}")
        look_at_document(what, state.metadata, self._verdict)

    def check_end(self, final: Run) -> None:
        """At the end every subscriber holds the final document (M82)."""
        if self.last is None or not self.last.is_completed:
            self._verdict.add("unfinished", f"a subscriber of run {self._run_id} has not seen its end")
        elif (self.last.metadata, self.last.metadata_version) != (final.metadata, final.metadata_version):
            self._verdict.add(
                "backwards",
                f"a subscriber of run {self._run_id} ended at version {self.last.metadata_version}, "
                f"the run at {final.metadata_version}",
            )


def _growing(document: dict[str, Any]) -> dict[str, int]:
    """What can only grow."""
    found = {key: value for key, value in document.items() if key.startswith("count")}
    found |= document.get("last", {})
    return found | {"members": len(document.get("members", ()))}


def look_at_document(what: str, document: dict[str, Any], verdict: Verdict) -> None:
    """The order of each writer's tokens in any state of a document."""
    of_writers: dict[str, list[int]] = {}
    for key, value in document.items():
        if key.startswith("own-"):
            of_writers[key] = value
    for writer, token in document.get("shared", ()):
        of_writers.setdefault(f"shared, writer {writer}", []).append(token)
    for key, tokens in of_writers.items():
        verdict.check_order(f"{what}, {key}", tokens)
    ledger = document.get("ledger", [])
    for (attempt, beat), (next_attempt, next_beat) in itertools.pairwise(ledger):
        if (next_attempt, next_beat) <= (attempt, beat):
            verdict.add("reordered", f"{what}: beat {next_attempt, next_beat} after {attempt, beat}")
        elif next_attempt == attempt and next_beat != beat + 1:
            verdict.add("lost", f"{what}: beat {next_attempt, next_beat} right after {attempt, beat}")
        elif next_attempt != attempt and next_beat != 1:
            verdict.add("lost", f"{what}: attempt {next_attempt} begins at beat {next_beat}")
