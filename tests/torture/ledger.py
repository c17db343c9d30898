"""What the database holds in the end, operation by operation: documents keep the newest items only, the log has every one."""

from collections import Counter, defaultdict
from pathlib import Path

from database import Database
from verdict import Verdict
from writers import Account

from milepost.model.operations import Append, Increment, decode_operations


def check_log(
    database: Database, accounts: dict[str, dict[int, Account]], folder: Path, verdict: Verdict
) -> int:
    """Go through the log of the shared runs; how many operations it holds.

    Args:
        accounts: by run and writer.
        folder: where the runs' own notes of what was acknowledged are.
    """
    operations = 0
    query = "SELECT operations FROM changes WHERE run_id = ? ORDER BY version"
    for run_id, of_writers in accounts.items():
        log = _Log()
        for row in database.rows(query, [run_id]):
            log.take(row["operations"])
        operations += log.operations
        for writer, account in of_writers.items():
            log.check_writer(f"run {run_id}, writer {writer}", writer, account, verdict)
        log.check_beats(run_id, folder / f"ledger-{run_id}.txt", verdict)
    return operations


class _Log:
    """The log of one run, by who appended what."""

    def __init__(self) -> None:
        self.operations = 0
        self._own: dict[int, list[int]] = defaultdict(list)
        self._shared: dict[int, list[int]] = defaultdict(list)
        self._beats: dict[int, list[int]] = defaultdict(list)
        self._attempts: list[int] = []
        self._increments = 0

    def take(self, data: bytes) -> None:
        for operation in decode_operations(data):
            self.operations += 1
            match operation:
                case Append("shared", [int(writer), int(token)]):
                    self._shared[writer].append(token)
                case Append("ledger", [int(attempt), int(beat)]):
                    self._beats[attempt].append(beat)
                    self._attempts.append(attempt)
                case Append(key, int(token)):
                    self._own[int(key.removeprefix("own-"))].append(token)
                case Increment("beats", int(by)):
                    self._increments += by
                case _:
                    pass

    def check_writer(self, what: str, writer: int, account: Account, verdict: Verdict) -> None:
        own, shared = self._own[writer], self._shared[writer]
        verdict.check_order(f"{what}, own list in the log", own)
        verdict.check_order(f"{what}, shared list in the log", shared)
        verdict.check_sequence(
            what, own + shared, acknowledged=account.acknowledged.tokens, attempted=account.sent.tokens
        )

    def check_beats(self, run_id: str, notes: Path, verdict: Verdict) -> None:
        if self._attempts != sorted(self._attempts):
            verdict.add("reordered", f"run {run_id}: an attempt that was given up wrote after the next one")
        for attempt, beats in self._beats.items():
            if Counter(beats) != Counter(range(1, len(beats) + 1)):
                verdict.add("doubled", f"run {run_id}, attempt {attempt}: beats are not 1, 2, 3 and so on")
        if self._increments != len(self._attempts):
            verdict.add(
                "lost", f"run {run_id}: {self._increments} beats counted, {len(self._attempts)} noted"
            )
        acknowledged: dict[int, int] = {}
        for line in notes.read_text().splitlines() if notes.exists() else ():
            attempt, beat = map(int, line.split())
            acknowledged[attempt] = beat
        for attempt, beat in acknowledged.items():
            found = len(self._beats[attempt])
            if found < beat:
                verdict.add(
                    "lost", f"run {run_id}, attempt {attempt}: {beat} flushed, {found} there", beat - found
                )
