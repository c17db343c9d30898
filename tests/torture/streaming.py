"""Readers of streams that live through all of it, and what the database says of the streams that they have read."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from typing import Any

import torture_tasks
from database import Database
from verdict import Verdict

from milepost import Client, Run
from milepost.client.run_streams import StreamValue
from milepost.client.streams import reader
from milepost.errors import UnavailableError

# Index, attempt and value.
Chunk = tuple[int, int, Any]


class StreamReader:
    """Reads one stream of a run to its end. Now and then it gives up, and another one goes on behind the last index.

    Attributes:
        chunks: what it was given, in order.
        resumes: how often another one has gone on.
    """

    def __init__(self, client: Client, run_id: str, key: str, chance: random.Random) -> None:
        self.run_id = run_id
        self.key = key
        self.chunks: list[Chunk] = []
        self.resumes = 0
        self._client = client
        self._chance = chance

    async def run(self) -> None:
        """Read until the run has ended."""
        while True:
            values = reader(self._client.connection, self.run_id, self.key, len(self.chunks), None, False)
            leaves_after = self._chance.choice([1, 30, 300])
            try:
                async for value in values:
                    self.chunks.append((values.index, values.attempt, value))
                    leaves_after -= 1
                    if not leaves_after:
                        break
                else:
                    run = await self._client.runs.aretrieve(self.run_id)
                    if run.status.is_final and len(self.chunks) == _count_of(run, self.key):
                        return
                    # Another attempt may begin another writer.
                    await asyncio.sleep(0.05)
            except UnavailableError:
                pass
            self.resumes += 1


def _count_of(run: Run, key: str) -> int:
    return sum(stream.chunk_count for stream in run.streams if stream.key == key)


class StreamsWatcher:
    """Follows a run and all its streams on one connection.

    Attributes:
        chunks: what it was given, in order, by key.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self.run_id = run_id
        self.chunks: dict[str, list[Chunk]] = defaultdict(list[Chunk])
        self._client = client

    async def run(self) -> None:
        """Follow the run until it has ended."""
        while True:
            self.chunks.clear()
            try:
                async for item in self._client.runs.asubscribe(self.run_id, streams=True):
                    if isinstance(item, StreamValue):
                        self.chunks[item.key].append((item.index, item.attempt, item.value))
                return
            except UnavailableError:
                # The server was away just when this one connected first.
                continue


class StreamAudit:
    """What is stored of all streams, compared with what was written and read.

    Attributes:
        chunk_count: how many chunks there are.
    """

    def __init__(self, database: Database, verdict: Verdict) -> None:
        self.chunk_count = 0
        self._database = database
        self._verdict = verdict
        self._chunks: dict[tuple[str, str], list[Chunk]] = defaultdict(list[Chunk])

    def check(self, readers: list[StreamReader], watchers: list[StreamsWatcher]) -> None:
        """Everything."""
        self._check_indexes()
        for (run_id, key), chunks in self._chunks.items():
            self._check_writers(f"stream {key} of run {run_id}", chunks)
        marks = ", ".join("?" * len(torture_tasks.STREAMING))
        query = f"SELECT id, task, status, attempt, output, parent_id FROM runs WHERE task IN ({marks})"
        for run in self._database.rows(query, torture_tasks.STREAMING):
            self._check_run(**run)
        for one in readers:
            stored = self._chunks[one.run_id, one.key]
            self._compare(f"a reader of stream {one.key} of run {one.run_id}", one.chunks, stored)
        for watcher in watchers:
            keys = {key for run_id, key in self._chunks if run_id == watcher.run_id} | watcher.chunks.keys()
            for key in keys:
                what = f"a subscriber of run {watcher.run_id} and stream {key}"
                self._compare(what, watcher.chunks[key], self._chunks[watcher.run_id, key])

    def _check_indexes(self) -> None:
        query = "SELECT run_id, name, first_index, chunk_count, attempt, data FROM chunks ORDER BY run_id, name, first_index"
        for row in self._database.rows(query):
            run_id, name, first_index, count, attempt, data = row.values()
            chunks = self._chunks[run_id, name.removeprefix("out/")]
            texts = data.split(b"\n")
            if first_index != len(chunks) or len(texts) != count:
                what = f"{name} of run {run_id}: a row of {len(texts)} chunks at {first_index}, and {len(chunks)} come before"
                self._verdict.add("gaps", what)
            chunks += [(len(chunks) + place, attempt, json.loads(text)) for place, text in enumerate(texts)]
            self.chunk_count += len(texts)
        for row in self._database.rows("SELECT run_id, name, next_index FROM streams"):
            run_id, name, count = row.values()
            found = len(self._chunks[run_id, name.removeprefix("out/")])
            if found != count:
                self._verdict.add("gaps", f"{name} of run {run_id} is said to have {count} chunks of {found}")

    def _check_writers(self, what: str, chunks: list[Chunk]) -> None:
        """A chunk is `[run, attempt, process, number]`: the numbers of each writer are 0, 1, 2 and so on."""
        next_numbers: Counter[tuple[Any, ...]] = Counter()
        for index, attempt, (*writer, number) in chunks:
            due = next_numbers[tuple(writer)]
            where = f"{what}: chunk {number} of writer {writer} at {index}, {due} was due"
            if number < due:
                self._verdict.add("chunks doubled", where)
            elif number > due:
                self._verdict.add("chunks lost", where, number - due)
            if attempt != writer[1]:
                self._verdict.add("chunks reordered", f"{what}: {writer} is said to be of attempt {attempt}")
            next_numbers[tuple(writer)] = max(due, number + 1)

    def _check_run(
        self, id: str, task: str, status: str, attempt: int, output: str | None, parent_id: str | None
    ) -> None:
        """A run that has succeeded has waited for its streams: all that its last attempt has written is there."""
        run_id = id
        if status != "COMPLETED":
            self._verdict.add("unfinished", f"run {run_id} ({task}) is {status}")
            return
        for key, due in json.loads(output or "{}").items():
            target = run_id if task == torture_tasks.streaming.id or parent_id is None else parent_id
            own = [value for _, _, value in self._chunks[target, key] if value[:2] == [run_id, attempt]]
            if len(own) != due:
                what = f"stream {key} of run {target}: {len(own)} chunks of run {run_id}, which has written {due}"
                self._verdict.add(
                    "chunks lost" if len(own) < due else "chunks doubled", what, abs(len(own) - due)
                )

    def _compare(self, what: str, seen: list[Chunk], stored: list[Chunk]) -> None:
        if seen == stored:
            return
        indexes = [index for index, _, _ in seen]
        for index, count in Counter(indexes).items():
            if count > 1:
                self._verdict.add("chunks doubled", f"{what}: {index}", count - 1)
        missing = set(range(len(stored))) - set(indexes)
        if missing:
            self._verdict.add("chunks lost", f"{what}: {sorted(missing)[:5]} and so on", len(missing))
        if not missing and len(set(indexes)) == len(indexes):
            self._verdict.add("chunks reordered", f"{what}: others, or in another order")
