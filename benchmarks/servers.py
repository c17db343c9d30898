"""How long a change takes from its commit at one server to a subscriber of another, with two real servers on one PostgreSQL.

Each update is sent when the one before has arrived. Its commit lies somewhere between the request and the answer, so two times are
printed: from sending the request to the state that the subscriber is given, which is longer than what is asked for, and from the
answer, which is shorter (0 where the state was there first).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from milepost import Client
from support import postgres

KEY = "a-key-for-benchmarks-only"
TASKS = """
from milepost import streams, task

@task
async def held() -> None:
    await streams.input("go").areceive()
"""
PORTS = (18471, 18472)
PATIENCE_SECONDS = 60.0


def main() -> None:
    """Start everything, measure, print, end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=200)
    updates = parser.parse_args().updates
    server = postgres.server()
    urls = [f"http://127.0.0.1:{port}" for port in PORTS]
    env = {
        **os.environ,
        "MILEPOST_SECRET_KEY": KEY,
        "MILEPOST_DATABASE_URL": server.url(server.create_migrated_database()),
        "MILEPOST_API_URL": urls[0],
    }
    command = [sys.executable, "-P", "-c", "from milepost.cli.main import main; main()"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "jobs.py").write_text(TASKS)
        lines = [["server", "--port", str(port)] for port in PORTS] + [
            ["worker", "jobs.py", "--processes", "1"]
        ]
        started = [subprocess.Popen([*command, *line], cwd=folder, env=env) for line in lines]
        try:
            measured = _measure(Client(urls[0], KEY), Client(urls[1], KEY), updates)
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.wait(30)
    for name, delays in zip(("request", "answer"), zip(*measured, strict=True), strict=True):
        p50, p99 = (sorted(delays)[int(len(delays) * part)] * 1000 for part in (0.5, 0.99))
        print(
            f"{updates} updates, from the {name} at one server to a subscriber at another: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )


def _measure(here: Client, there: Client, updates: int) -> list[tuple[float, float]]:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            run_id = here.trigger("held").id
            there.runs.retrieve(run_id)
            break
        except Exception:
            # The servers or the worker are not there yet.
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    arrived_at: dict[int, float] = {}
    arrived = threading.Condition()

    def watch() -> None:
        for run in there.runs.subscribe(run_id):
            with arrived:
                arrived_at.setdefault(run.metadata.get("number", -1), time.perf_counter())
                arrived.notify()

    threading.Thread(target=watch, daemon=True).start()

    def wait_for(number: int) -> float:
        with arrived:
            if not arrived.wait_for(lambda: number in arrived_at, PATIENCE_SECONDS):
                raise TimeoutError(f"update {number} did not arrive")
            return arrived_at[number]

    wait_for(-1)
    delays: list[tuple[float, float]] = []
    for number in range(updates):
        sent_at = time.perf_counter()
        here.runs.metadata(run_id).set("number", number).send()
        answered_at = time.perf_counter()
        seen_at = wait_for(number)
        delays.append((seen_at - sent_at, max(0.0, seen_at - answered_at)))
    return delays


if __name__ == "__main__":
    main()
