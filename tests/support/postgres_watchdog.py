"""Stops a PostgreSQL server once a byte comes by standard input, or nobody holds its other end any more: whoever has started the
server has ended, by itself or by a signal that nobody can handle.

    python postgres_watchdog.py DATA [FOLDER]

DATA is the data folder of the server; FOLDER is removed in the end. A program of its own, that imports nothing of the tests.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_SECONDS = 15.0


def main() -> None:
    """Wait, stop the server, clean up."""
    data = Path(sys.argv[1])
    sys.stdin.buffer.read(1)
    stop(data)
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(data: Path) -> list[int]:
    """The server's processes, its first one at the beginning; none when it does not run."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        first = int(lines[0])
        if Path(f"/proc/{first}/cwd").resolve() != Path(lines[1]).resolve():
            # The file is older than the process that has this number now.
            return []
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    except (OSError, ValueError, IndexError):
        return []
    return [first, *map(int, children)]


def stop(data: Path) -> None:
    """Stop the server at once, also one that stands still."""
    found = processes_of(data)
    if not found:
        return
    for process_id in found:
        with suppress(OSError):
            os.kill(process_id, signal.SIGCONT)
    with suppress(OSError):
        os.kill(found[0], signal.SIGQUIT)
    until = time.monotonic() + PATIENCE_SECONDS
    while (left := processes_of(data)) and time.monotonic() < until:
        time.sleep(0.05)
    for process_id in left:
        with suppress(OSError):
            os.kill(process_id, signal.SIGKILL)


if __name__ == "__main__":
    main()
