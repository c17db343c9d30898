"""What a crash may cost, and what it may not: real processes, killed, stopped, cut off from the disk."""

import json
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3
from real_processes import KEY, Site, wait_until

from milepost import Client
from milepost.errors import UnavailableError

FLUSH_SECONDS = 0.05
# A report that is under way when the worker dies, on a machine that has other things to do as well.
REPORT_SECONDS_MAX = 1.0
# The same when the machine is free for a moment; of several crashes at least one meets it.
REPORT_SECONDS = 0.25
CRASHES = 2


def lines_of(path: Path) -> list[str]:
    """The whole lines of a file that somebody is writing."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


# --- the worker is killed ----------------------------------------------------------------------------------


def test_a_killed_worker_loses_at_most_the_last_flush_interval(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    """M40: what was called longer ago than the flush interval and one report is there, and all of it up to the same call."""
    here = site()
    worker = here.start_worker(
        """
        import os, time
        @task(retry=Retry(max_attempts=9, min_delay=0, max_delay=0))
        def count(folder: str, ctx: Context) -> int:
            number = metadata.get("number", 0)
            assert metadata.get("calls", 0) == number, "a report is there as a whole or not at all"
            calls = os.open(f"{folder}/{ctx.attempt.number}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(calls, f"{number} {time.time()}\\n".encode())
            while not metadata.get("end"):
                number += 1
                metadata.set("number", number).increment("calls")
                os.write(calls, f"{number} {time.time()}\\n".encode())
                time.sleep(0.002)
            return number
        """
    )
    run_id = here.client.trigger("count", str(tmp_path)).id
    losses: list[float] = []
    killed_at = 0.0
    for attempt in range(1, CRASHES + 2):
        wait_until(lambda path=tmp_path / f"{attempt}.txt": len(lines_of(path)) > 20)
        if attempt > 1:
            survived = int(lines_of(tmp_path / f"{attempt}.txt")[0].split()[0])
            # The first call that did not survive tells how much time was lost.
            lost_at = [
                float(moment)
                for number, moment in map(str.split, lines_of(tmp_path / f"{attempt - 1}.txt"))
                if int(number) > survived
            ]
            losses.append(killed_at - lost_at[0] if lost_at else 0.0)
        # Long enough that much more would be lost if it were not flushed.
        time.sleep(random.uniform(0.6, 1.0))
        if attempt <= CRASHES:
            [executor] = worker.executors()
            killed_at = time.time()
            executor.kill()
    here.client.runs.metadata(run_id).set("end", True).send()
    run = here.finished(run_id)
    assert (run.attempt_count, run.metadata["number"], run.metadata["calls"]) == (
        CRASHES + 1,
        run.output,
        run.output,
    )
    assert max(losses) <= FLUSH_SECONDS + REPORT_SECONDS_MAX, losses
    assert min(losses) <= FLUSH_SECONDS + REPORT_SECONDS, losses


def test_a_worker_that_is_asked_to_end_flushes(site: Callable[..., Site], tmp_path: Path) -> None:
    """M39: SIGTERM sends what waits, also of a run that does not end in time and is tried again."""
    here = site()
    source = """
        import pathlib, time
        @task(retry=Retry(max_attempts=2, min_delay=600, max_delay=600))
        def endless(ready: str) -> None:
            metadata.set("number", 1).flush()
            for number in range(1000):
                metadata.set("number", number).append("last", number, max_items=3)
            pathlib.Path(ready).touch()
            while True:
                time.sleep(0.01)
        """
    worker = here.start_worker(source, "--grace", "0.2", MILEPOST_METADATA_FLUSH_INTERVAL_MS="60000")
    run_id = here.client.trigger("endless", str(tmp_path / "ready")).id
    wait_until((tmp_path / "ready").exists)
    assert here.client.runs.retrieve(run_id).metadata["number"] == 1, "the interval is a minute"
    assert worker.end() == 0
    run = here.client.runs.retrieve(run_id)
    assert (run.metadata["number"], run.metadata["last"]) == (999, [997, 998, 999])
    assert "handed back: run again at no cost" in worker.errors


# --- the server is killed ----------------------------------------------------------------------------------


def test_a_killed_server_loses_nothing_that_it_has_acknowledged(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    """What `send` and `flush` have acknowledged is there, once and in order, however often the server dies in between."""
    here = site()
    here.start_worker(
        """
        import os
        @task
        def flushes(notes: str) -> int:
            file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            number = 0
            while not metadata.get("end"):
                metadata.append("flushed", number).increment("flushes").flush()
                os.write(file, f"{number}\\n".encode())
                number += 1
            return number
        """
    )
    notes = tmp_path / "notes.txt"
    run_id = here.client.trigger("flushes", str(notes)).id
    stop = threading.Event()
    acknowledged = [0, 0, 0]

    def write(writer: int) -> None:
        updates = Client(here.url, KEY).runs.metadata(run_id)
        while not stop.is_set():
            updates.append(f"sent-{writer}", acknowledged[writer]).increment("sends")
            while True:
                try:
                    updates.send()
                    break
                except UnavailableError:
                    continue
            acknowledged[writer] += 1

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(CRASHES):
            before = len(lines_of(notes)), *acknowledged
            wait_until(
                lambda before=before: all(
                    now > then
                    for now, then in zip((len(lines_of(notes)), *acknowledged), before, strict=True)
                ),
                what="the progress of every writer",
            )
            time.sleep(random.uniform(0, 0.3))
            here.kill_server()
            known = len(lines_of(notes)), *acknowledged
            here.start_server()
            document = here.client.runs.retrieve(run_id).metadata
            for key, count in zip(("flushed", "sent-0", "sent-1", "sent-2"), known, strict=True):
                assert document[key][:count] == list(range(count)), f"{key} after the crash"
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    here.client.runs.metadata(run_id).set("end", True).send()
    run = here.finished(run_id)
    assert (run.attempt_count, run.output) == (1, len(lines_of(notes)))
    assert run.metadata["flushed"] == list(range(run.output))
    assert run.metadata["flushes"] == run.output
    for writer, count in enumerate(acknowledged):
        assert run.metadata[f"sent-{writer}"] == list(range(count))
    assert run.metadata["sends"] == sum(acknowledged)


GOES_ON = """
    import os, pathlib, time
    @task
    def goes_on(folder: str) -> int:
        progress = os.open(f"{folder}/progress.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        number = 0
        while not pathlib.Path(folder, "gate").exists():
            metadata.append("numbers", number).increment("count")
            os.write(progress, b"another\\n")
            number += 1
            time.sleep(0.005)
        pathlib.Path(folder, "ended").touch()
        return number
    """


def test_a_run_goes_on_while_the_server_is_away(site: Callable[..., Site], tmp_path: Path) -> None:
    """Also for longer than the lease: a server that comes back gives the workers the time to come back as well."""
    here = site(MILEPOST_LEASE_SECONDS="2")
    here.start_worker(GOES_ON)
    run_id = here.client.trigger("goes_on", str(tmp_path)).id
    here.until(run_id, lambda run: run.metadata.get("count"))

    def made() -> int:
        return len(lines_of(tmp_path / "progress.txt"))

    here.kill_server()
    away_since, before = time.monotonic(), made()
    wait_until(lambda: time.monotonic() - away_since > 2.5)
    assert made() > before + 50, "it went on meanwhile"
    here.start_server()
    written = made()
    here.until(run_id, lambda run: run.metadata["count"] > written)

    here.kill_server()
    (tmp_path / "gate").touch()
    wait_until((tmp_path / "ended").exists, what="the end of the task while the server is away")
    here.start_server()
    run = here.finished(run_id)
    assert (run.is_success, run.attempt_count) == (True, 1)
    assert run.metadata == {"numbers": list(range(run.output)), "count": run.output}


# --- the worker is away ------------------------------------------------------------------------------------


def test_a_worker_that_is_away_for_longer_than_its_lease_does_not_write_any_more(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    """The run is tried again elsewhere. What the first attempt still writes does not count; a flush says so, and the worker too."""
    here = site(MILEPOST_LEASE_SECONDS="1")
    source = """
        import os, pathlib, time
        @task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0))
        def held(folder: str, ctx: Context) -> int:
            attempt = ctx.attempt.number
            metadata.set("process", os.getpid()).set("attempt", attempt).flush()
            before = time.monotonic()
            while not pathlib.Path(folder, "gate").exists():
                metadata.set("writer", attempt).increment(f"by {attempt}")
                if time.monotonic() - before > 0.9:
                    metadata.set("late", attempt)
                    try:
                        metadata.flush()
                        word = "committed"
                    except Exception as error:
                        word = f"{type(error).__name__}: {error}"
                    pathlib.Path(folder, f"flush-{attempt}.new").write_text(word)
                    pathlib.Path(folder, f"flush-{attempt}.new").rename(f"{folder}/flush-{attempt}.txt")
                before = time.monotonic()
                time.sleep(0.005)
            return attempt
        """
    first = here.start_worker(source)
    run_id = here.client.trigger("held", str(tmp_path)).id
    here.until(run_id, lambda run: run.metadata.get("attempt") == 1)
    second = here.start_worker()
    [stopped] = first.executors()
    stopped.suspend()
    try:
        run = here.until(run_id, lambda run: run.metadata.get("attempt") == 2)
        assert run.metadata["process"] == second.executors()[0].pid
        written = run.metadata["by 1"]
    finally:
        stopped.resume()
    first.says(f"run {run_id}: the server has given up attempt 1")
    wait_until((tmp_path / "flush-1.txt").exists, what="the end of a flush by the first attempt")
    assert (tmp_path / "flush-1.txt").read_text().startswith("MetadataFlushError: attempt 1 of run")
    (tmp_path / "gate").touch()
    run = here.finished(run_id)
    assert (run.output, run.attempt_count) == (2, 2)
    assert (run.metadata["writer"], run.metadata["by 1"]) == (2, written)
    assert "late" not in run.metadata
    assert first.end() == 0


# --- the disk is full --------------------------------------------------------------------------------------


def put(here: Site, run_id: str, number: int) -> tuple[int, dict[str, Any]]:
    """One request without the client's repeats: the number, with something that takes room."""
    operations = [
        {"type": "append", "key": "numbers", "value": number},
        {"type": "increment", "key": "count", "value": 1},
        {"type": "set", "key": "room", "value": os.urandom(10_000).hex()},
    ]
    answer = urllib3.request(
        "PUT",
        f"{here.url}/api/v1/runs/{run_id}/metadata",
        headers={"Authorization": f"Bearer {KEY}", "content-type": "application/json"},
        body=json.dumps({"operations": operations}),
        retries=False,
    )
    return answer.status, answer.json()


def test_a_full_disk_refuses_what_it_cannot_keep_and_nothing_else(site: Callable[..., Site]) -> None:
    """Writes are answered 503 and leave nothing behind; with room again the same server goes on."""
    here = site()
    here.start_worker(GOES_ON)
    run_id = here.client.trigger("goes_on", str(here.folder)).id
    here.until(run_id, lambda run: run.metadata.get("count"))
    (here.folder / "gate").touch()
    before = here.finished(run_id).output
    acknowledged: list[int] = []

    def write(count: int) -> list[dict[str, Any]]:
        problems: list[dict[str, Any]] = []
        for number in range(count):
            status, answer = put(here, run_id, number)
            if status == 200:
                acknowledged.append(number)
            else:
                assert status == 503, answer
                problems.append(answer)
        return problems

    assert write(3) == []
    # No file of the server may grow beyond this size: the system then refuses the write, as a full disk does.
    largest = max(file.stat().st_size for file in (here.folder / "data").iterdir())
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(here.server.process.pid, resource.RLIMIT_FSIZE, (largest + 100_000, unlimited))
    problems = write(20)
    assert len(problems) > 5
    for problem in problems:
        assert problem["code"] == "unavailable"
        assert "nothing was stored" in problem["error"]
        assert "disk" in problem["error"]
    kept = before + len(acknowledged)
    run = here.client.runs.retrieve(run_id)
    assert (run.metadata["count"], run.metadata["numbers"][before:]) == (kept, acknowledged)
    resource.prlimit(here.server.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert write(3) == []
    kept = before + len(acknowledged)
    assert "Traceback" not in here.server.errors
    for is_started_again in (False, True):
        if is_started_again:
            # What it says has to be on the disk, too.
            here.kill_server()
            here.start_server()
        run = here.client.runs.retrieve(run_id)
        assert (run.metadata["count"], run.metadata["numbers"][before:]) == (kept, acknowledged)
