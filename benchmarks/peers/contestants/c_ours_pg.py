"""Milepost on PostgreSQL: `milepost server` once or several times, workers beside them, the public API as the driver.

With several servers everything goes through more than one: the driver triggers at one and watches at another one, and the workers are
connected to two. BENCH_OURS_SERVERS says how many there are; c_ours_pg2 and c_ours_pg4 set it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import milepost
import psycopg
from milepost import Client
from peerlib import MODE, PG, TMP, exe, tmpfile, wait_marks

from contestants import c_ours, ours_tasks
from contestants.c_ours import CONCURRENCY, COUNT_COMPLETED, FLUSH, FLUSH_INTERVAL_MS, PROCESSES, TASKS_FILE

SERVERS = int(os.environ.get("BENCH_OURS_SERVERS", "1"))
KEY = "peers-benchmark-key"
READY_SECONDS = 30


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now; taken together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


class C(c_ours.C):
    name = "milepost-postgres" if SERVERS == 1 else f"milepost-postgres-{SERVERS}-servers"
    servers = ("postgres",)
    describe = {
        "natural": "milepost server and milepost worker, defaults",
        "best": f"{SERVERS} x milepost server; {PROCESSES} worker processes, concurrency {CONCURRENCY} each, {FLUSH}",
    }
    observe_mech = f"runs.subscribe ({FLUSH})" + (" at another server" if SERVERS > 1 else "")

    def __init__(self) -> None:
        self.ports = free_ports(SERVERS)
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        # Who triggers and who watches are connected to servers of their own, as far as there are so many.
        self.watching = Client(api_url=self.urls[-1], secret_key=KEY)
        milepost.configure(api_url=self.urls[2 % SERVERS], secret_key=KEY)

    def worker_cmds(self) -> list[list[str]]:
        common = ["env", f"MILEPOST_SECRET_KEY={KEY}"]
        serve = [*common, f"MILEPOST_DATABASE_URL={PG}", exe("milepost"), "server"]
        commands = [[*serve, "--data", TMP, "--port", str(port)] for port in self.ports]
        if MODE != "best":
            return [
                *commands,
                [*common, f"MILEPOST_API_URL={self.urls[0]}", exe("milepost"), "worker", TASKS_FILE],
            ]
        common += [f"MILEPOST_METADATA_FLUSH_INTERVAL_MS={FLUSH_INTERVAL_MS}"]
        hosts = self.urls[: min(SERVERS, PROCESSES)]
        for number, url in enumerate(hosts):
            # As many processes in all as with one server.
            processes = PROCESSES // len(hosts) + (number < PROCESSES % len(hosts))
            work = [exe("milepost"), "worker", TASKS_FILE, "--processes", str(processes)]
            commands.append([*common, f"MILEPOST_API_URL={url}", *work, "--concurrency", str(CONCURRENCY)])
        return commands

    def server_pids(self, tree: list[int]) -> dict[str, list[int]]:
        inodes = {inode for port in self.ports for inode in c_ours.listening_sockets(port)}
        found = sorted(pid for pid in tree if c_ours.holds(pid, inodes))
        return {"milepost": found} if found else {}

    async def setup(self) -> None:
        self.pg = psycopg.connect(PG, autocommit=True)

    async def connect(self) -> None:
        for port in self.ports:
            while not c_ours.listening_sockets(port):
                await asyncio.sleep(0.02)
        self.is_connected = True

    is_connected = False

    async def count_done(self) -> int:
        found = self.pg.execute(COUNT_COMPLETED).fetchone()
        assert found is not None
        return found[0]

    async def one(self) -> int:
        if not self.is_connected:
            async with asyncio.timeout(READY_SECONDS):
                await self.connect()
        return self.watching.runs.wait(ours_tasks.stamp.trigger(0).id).output

    async def ticker(self, n: int, hz: float, on_value: Callable[[dict[str, Any]], None]) -> None:
        def watch() -> None:
            handle = ours_tasks.ticks.trigger(ours_tasks.Ticks(count=n, hertz=hz))
            for run in self.watching.runs.subscribe(handle.id):
                value = run.metadata.get("tick")
                if value:
                    on_value(value)

        await asyncio.to_thread(watch)

    async def fanin(self, k: int) -> dict[str, int]:
        path = tmpfile("fan")
        handle = ours_tasks.parent.trigger(ours_tasks.FanIn(children=k, marks_path=path))
        await wait_marks(path, k)
        await asyncio.to_thread(self.watching.runs.wait, handle.id)
        return {"counted": int(self.watching.runs.retrieve(handle.id).metadata.get("done", 0))}

    async def close(self) -> None:
        self.pg.close()


CONTESTANT = C
