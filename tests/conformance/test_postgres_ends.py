"""The PostgreSQL of tests ends with the process that has started it, whatever has ended that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from support.postgres_watchdog import processes_of

STARTER = """
import time
from support import postgres

server = postgres.server()
print(server.url(), server._folder, flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_no_postgres_behind() -> None:
    path = os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path)))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        folder = Path(starter.stdout.readline().split()[1])
        processes = [psutil.Process(process_id) for process_id in processes_of(folder / "data")]
        assert len(processes) > 3
        # Not even one that stands still.
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        starter.kill()
    until = time.monotonic() + 60
    while folder.exists() or any(process.is_running() for process in processes):
        assert time.monotonic() < until, "PostgreSQL still runs, or its folder is still there"
        time.sleep(0.05)
