"""Milepost on SQLite: `milepost dev` as server and workers, the public API as the driver.

The server is one of the processes that `milepost dev` starts, so this contestant tells the driver
which one: it must go on while W1 holds the workers, and its memory is a line of its own.
"""

import asyncio
import json
import os
import shlex
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

# The worker is measured with the settings that the notes name, not with those of the caller's shell.
for name in [name for name in os.environ if name.startswith("MILEPOST_")]:
    del os.environ[name]

import milepost  # noqa: E402
from milepost import runs  # noqa: E402
from peerlib import HERE, MODE, TMP, Contestant, exe, tmpfile, wait_marks  # noqa: E402

from contestants import ours_tasks  # noqa: E402

TASKS_FILE = os.path.join(HERE, "contestants", "ours_tasks.py")
DATA = os.path.join(TMP, "milepost")
READY = os.path.join(TMP, "milepost-ready.json")
BATCH = 1000
COUNT_COMPLETED = """
    select (select count(*) from runs)
         - (select count(*) from runs where status = 'QUEUED')
         - (select count(*) from runs where status in ('EXECUTING', 'WAITING'))
         - (select count(*) from runs where status = 'FAILED')
"""
"""Runs with the status COMPLETED, asked in the way that indexes answer: each of these counts reads an
index, where `status = 'COMPLETED'` would read the whole table at each poll."""

# The best settings, open to the environment so that others can be tried; they show in the notes.
PROCESSES = int(os.environ.get("BENCH_OURS_PROCESSES", "2"))
CONCURRENCY = int(os.environ.get("BENCH_OURS_CONCURRENCY", "200"))
FLUSH_INTERVAL_MS = int(os.environ.get("BENCH_OURS_FLUSH_INTERVAL_MS", "2"))
FLUSH = (
    f"metadata flush interval {FLUSH_INTERVAL_MS} ms" if MODE == "best" else "metadata flush interval 50 ms"
)


def wait_for_run(run_id: str) -> Any:
    """Block until the run has ended, without polling; answer with its final state."""
    return runs.wait(run_id)


def listening_sockets(port: int) -> set[str]:
    """Inodes of the sockets that listen on this TCP port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        found |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == port}
    return found


def holds(pid: int, inodes: set[str]) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") in wanted for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


class C(Contestant):
    name = "milepost-sqlite"
    describe = {
        "natural": "milepost dev, defaults; SQLite, commits to disk (default)",
        "best": f"milepost dev, {PROCESSES} processes, concurrency {CONCURRENCY}, {FLUSH}; "
        "SQLite, commits to disk (default)",
    }
    w1_n = {"natural": 10000, "best": 10000}  # a second of work, as for the others
    progress_mech = "metadata.set"
    observe_mech = f"runs.subscribe ({FLUSH})"
    fanin_mech = "metadata.parent.increment, the parent triggers the children as one batch and waits for them"
    fast_mech = f"batch_trigger of {BATCH}"
    count_poll = 0.02

    port = 0
    db: sqlite3.Connection | None = None

    def worker_cmds(self) -> list[list[str]]:
        command = [exe("milepost"), "dev", TASKS_FILE, "--data", DATA, "--port", "0", "--json", "--no-reload"]
        if MODE == "best":
            command += ["--processes", str(PROCESSES), "--concurrency", str(CONCURRENCY)]
            command = ["env", f"MILEPOST_METADATA_FLUSH_INTERVAL_MS={FLUSH_INTERVAL_MS}", *command]
        # The line that tells the address comes on standard output, the log on standard error.
        return [["sh", "-c", f"exec {shlex.join(command)} > {shlex.quote(READY)}"]]

    async def connect(self) -> None:
        while True:
            try:
                with open(READY) as file:
                    line = file.readline()
            except FileNotFoundError:
                line = ""
            if line.endswith("\n"):
                break
            await asyncio.sleep(0.02)
        ready = json.loads(line)
        self.port = urlsplit(ready["url"]).port or 0
        milepost.configure(api_url=ready["url"], secret_key=ready["secret_key"])
        # Read-only, and a new snapshot for each query: it holds up neither the writer nor its checkpoints.
        path = os.path.join(DATA, "milepost.db")
        self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def server_pids(self, tree: list[int]) -> dict[str, list[int]]:
        """The process that listens on the server's port, and those between it and the driver."""
        inodes = listening_sockets(self.port) if self.port else set()
        holders = {pid for pid in tree if holds(pid, inodes)}
        # A forked worker may have inherited the socket: the topmost holder is the server.
        servers = {pid for pid in holders if parent_of(pid) not in holders}
        for pid in list(servers):
            while (pid := parent_of(pid)) in tree:
                servers.add(pid)
        return {"milepost": sorted(servers)} if servers else {}

    async def enqueue_noop(self, n: int) -> list[Any]:
        return [ours_tasks.noop.trigger(i) for i in range(n)]

    async def enqueue_fast(self, n: int) -> list[Any]:
        return [ours_tasks.noop.batch_trigger(list(range(a, min(a + BATCH, n)))) for a in range(0, n, BATCH)]

    async def count_done(self) -> int:
        assert self.db is not None
        return self.db.execute(COUNT_COMPLETED).fetchone()[0]

    async def check(self, handles: list[Any]) -> None:
        assert all(runs.retrieve(handle.id).output == 1 for handle in handles)

    async def one(self) -> int:
        if self.db is None:  # the first call of a run: the server is still starting
            await self.connect()
        return ours_tasks.stamp.trigger(0).result().unwrap()

    async def progress(self, n: int) -> dict[str, dict[str, float]]:
        each = f"{self.progress_mech} + metadata.flush (committed when the call returns)"
        together = f"{ours_tasks.UPDATES_PER_FLUSH} x {self.progress_mech} + one metadata.flush, per update"
        tasks = {
            f"{self.progress_mech} (committed in the background)": ours_tasks.progress,
            each: ours_tasks.progress_flushed,
            together: ours_tasks.progress_flushed_together,
        }
        # In a thread, here and below: so the driver's time limits hold while the call blocks.
        return {
            mech: (await asyncio.to_thread(wait_for_run, task.trigger(n).id)).output
            for mech, task in tasks.items()
        }

    async def ticker(self, n: int, hz: float, on_value: Callable[[dict[str, Any]], None]) -> None:
        def watch() -> None:
            handle = ours_tasks.ticks.trigger(ours_tasks.Ticks(count=n, hertz=hz))
            for run in runs.subscribe(handle.id):  # ends when the run has ended
                value = run.metadata.get("tick")
                if value:
                    on_value(value)

        await asyncio.to_thread(watch)

    async def fanin(self, k: int) -> dict[str, int]:
        path = tmpfile("fan")
        handle = ours_tasks.parent.trigger(ours_tasks.FanIn(children=k, marks_path=path))
        await wait_marks(path, k)
        await asyncio.to_thread(wait_for_run, handle.id)
        return {"counted": int(runs.retrieve(handle.id).metadata.get("done", 0))}

    stored_mech = "metadata.set + metadata.aflush"
    w8_updates = 100

    async def stored(self, tasks: int, updates: int) -> None:
        ours_tasks.stored.batch_trigger([updates] * tasks)

    async def close(self) -> None:
        if self.db is not None:
            self.db.close()


CONTESTANT = C
