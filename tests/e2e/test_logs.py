"""What runs log, with real processes: never at the cost of a document or an outcome, and of bounded size."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_processes import Site, wait_until

MISSING = re.compile(r"([\d,]+) lines \(([\d,]+) bytes\) were left out here")


def accounted(lines: list[dict[str, Any]]) -> int:
    """How many lines of the task are there, or told to be missing."""
    found = [MISSING.match(line["message"]) for line in lines]
    missing = sum(int(one[1].replace(",", "")) for one in found if one)
    return missing + sum(line["logger"] == "milepost.run" for line in lines)


def test_a_run_that_logs_much_while_the_server_is_away_has_its_metadata_at_its_end(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    """40 MB of log lines and 1,000 increments meet a server that is not there."""
    here = site()
    worker = here.start_worker(
        """
        import pathlib, time
        @task
        def count(folder: str, ctx: Context) -> str:
            metadata.set("n", 0)
            ctx.logger.info("the first line")
            metadata.flush()
            (pathlib.Path(folder) / "begun").touch()
            while not (pathlib.Path(folder) / "away").exists():
                time.sleep(0.01)
            for number in range(1000):
                metadata.increment("n")
                ctx.logger.info("%d %s", number, "x" * 20_000)
                ctx.logger.debug("%s", "y" * 20_000)
            ctx.logger.info("the last line")
            (pathlib.Path(folder) / "logged").touch()
            return "counted"
        """
    )
    run_id = here.client.trigger("count", str(tmp_path)).id
    wait_until((tmp_path / "begun").exists, what="the first lines of the task")
    [executor] = worker.executors()
    before = executor.memory_info().rss
    here.kill_server()
    (tmp_path / "away").touch()
    wait_until((tmp_path / "logged").exists, what="the end of the task")
    assert executor.memory_info().rss - before < 40 * 1024 * 1024
    here.start_server()
    run = here.finished(run_id)
    assert (run.status, run.output, run.metadata) == ("COMPLETED", "counted", {"n": 1000})
    lines = wait_until(lambda: (found := here.log(run_id)) and accounted(found) == 2002 and found)
    assert lines[0]["message"] == "the first line"
    assert lines[-1]["message"] == "the last line"
    assert sum(len(line["message"].encode()) for line in lines) < 4 * 1024 * 1024


def test_a_run_that_logs_more_than_a_request_may_hold_succeeds(site: Callable[..., Site]) -> None:
    """2,000 lines of 32,000 emoji are a quarter of a gigabyte; the log keeps its beginning and its end."""
    here = site(MILEPOST_LOG_BYTES_MAX=str(1024 * 1024))
    here.start_worker(
        """
        @task
        def chat(ctx: Context) -> int:
            for number in range(2000):
                metadata.increment("n")
                ctx.logger.info("%d %s", number, "🚲" * 32_000)
                ctx.logger.info("%d", number)
            return metadata.get("n")
        """
    )
    run = here.finished(here.client.trigger("chat").id)
    assert (run.status, run.output, run.metadata) == ("COMPLETED", 2000, {"n": 2000})
    lines = here.log(run.id)
    # The outcome has waited for the last lines.
    assert accounted(lines) == 4000
    assert lines[-1]["message"] == "1999"
    assert sum(len(line["message"].encode()) for line in lines) < 1024 * 1024
