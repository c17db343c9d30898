"""Chunks through a stream of DBOS: from a workflow to a reader in the same process. Run by `benchmarks/streams.py` in DBOS's own
environment (`sh setup.sh DIR dbos`).

    python dbos_streams.py COUNT BYTES [DATABASE_URL]

Prints chunks per second. Without an address the database is a file of SQLite in a temporary folder. A reader asks every 5 ms, where
DBOS's own setting is a second.
"""

import sys
import tempfile
import time

from dbos import DBOS

KEY = "chunks"
POLLING_SECONDS = 0.005


@DBOS.workflow()
def write_chunks(count: int, size: int) -> None:
    """Write as fast as it goes."""
    for _ in range(count):
        DBOS.write_stream(KEY, "x" * size)
    DBOS.close_stream(KEY)


def main() -> None:
    """Measure once, after a round that only warms up."""
    count, size = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        address = sys.argv[3] if len(sys.argv) > 3 else f"sqlite:///{folder}/dbos.sqlite"
        DBOS(config={"name": "streams", "system_database_url": address, "log_level": "ERROR"})
        DBOS.launch()
        _through(min(count, 50), size)
        print(_through(count, size))
        DBOS.destroy()


def _through(count: int, size: int) -> float:
    started = time.perf_counter()
    handle = DBOS.start_workflow(write_chunks, count, size)
    seen = sum(
        1 for _ in DBOS.read_stream(handle.get_workflow_id(), KEY, polling_interval_sec=POLLING_SECONDS)
    )
    assert seen == count, "every chunk is read"
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
