"""What `dev`, `worker` and `server` say, with real processes; and what runs print and log, on the terminal and in their logs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from real_processes import Command, House, Site, wait_until

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"

TASKS = """
    import logging, sys
    logger = logging.getLogger("shop")

    @task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0))
    def order(number: int) -> int:
        print("order", number)
        print("careful", file=sys.stderr)
        logger.info("by logging")
        print("no line feed", end="")
        if number < 0:
            raise ValueError("out of \\x1b[31mink")
        return number

    @task
    async def greet(name: str) -> None:
        print("hello", name)
"""
SAID = ["order 5", "careful", "by logging", "no line feed"]


def test_dev_says_what_becomes_of_runs(house: Callable[..., House]) -> None:
    dev = house(TASKS, "--processes", "1")
    done, failed = dev.run("order", 5), dev.run("order", -1)
    assert (done.status, failed.status) == ("COMPLETED", "FAILED")
    dev.says(f"order {failed.id} attempt 2 failed")
    lines = dev.errors.splitlines()

    def find(words: str) -> list[str]:
        return [line for line in lines if re.search(words, line)]

    assert find(rf"^{TIME} INFO    order {done.id} attempt 1 started$")
    assert find(rf"^{TIME} INFO    order {done.id} attempt 1 completed in [\d.]+ m?s$")
    ink = r"ValueError: out of \\x1b\[31mink$"
    assert find(
        rf"^{TIME} WARNING order {failed.id} attempt 1 failed in [\d.]+ m?s, to be tried again in [\d.]+ m?s: {ink}"
    )
    assert find(rf"^{TIME} ERROR   order {failed.id} attempt 2 failed in [\d.]+ m?s: {ink}")
    assert len(find(r"jobs\.py\", line \d+, in order")) == 2
    # What the task logs has its run; what it prints is as it was.
    assert find(rf"^{TIME} INFO    shop \[{done.id}\]: by logging$")
    assert "order 5" in lines
    assert "\x1b[" not in dev.errors
    assert dev.end() == 0


def test_what_a_run_prints_and_logs_is_in_its_log(house: Callable[..., House]) -> None:
    dev = house(TASKS, "--processes", "1")
    run = dev.run("order", 5)
    assert dev.log(run.id) == SAID
    # Of several at once on one loop, each has its own.
    runs = [dev.trigger("greet", name) for name in ("Ada", "Grace", "Edsger")]
    for run_id, name in zip(runs, ("Ada", "Grace", "Edsger"), strict=True):
        dev.finished(run_id)
        assert dev.log(run_id) == [f"hello {name}"]


def test_it_can_be_turned_off(house: Callable[..., House]) -> None:
    dev = house(TASKS, "--processes", "1", "--log-level", "error", env={"MILEPOST_LOG_CAPTURE": "false"})
    run = dev.run("order", 5)
    assert dev.log(run.id) == []
    dev.says("careful")
    assert "by logging" not in dev.errors
    assert "started" not in dev.errors


def test_every_line_is_an_object_for_programs(house: Callable[..., House]) -> None:
    dev = house(
        TASKS.replace('print("careful", file=sys.stderr)', "pass"), "--processes", "1", "--log-format", "json"
    )
    done, failed = dev.run("order", 5), dev.run("order", -1)
    dev.says(f"{failed.id} attempt 2 failed")
    # With --json what tasks print is on standard error too, as it is.
    lines = [line for line in dev.errors.splitlines() if line.startswith("{")]
    objects = [json.loads(line.removesuffix("no line feed")) for line in lines]
    assert all({"time", "level", "logger", "message"} <= each.keys() for each in objects)
    events = [each["event"] for each in objects if each.get("run_id") == failed.id and "event" in each]
    assert events == ["run.started", "run.retried", "run.started", "run.failed"]
    [logged] = [each for each in objects if each["logger"] == "shop" and each["run_id"] == done.id]
    assert (logged["message"], logged["task"], logged["attempt"]) == ("by logging", "order", 1)
    [error] = [each for each in objects if each.get("event") == "run.failed"]
    assert error["error"]["name"] == "ValueError"
    assert "in order" in error["traceback"]


def test_logging_that_the_users_code_has_set_up_stays_as_it_is(house: Callable[..., House]) -> None:
    dev = house(
        """
        import logging
        logging.basicConfig(level=logging.DEBUG, format="MINE %(levelname)s %(message)s")
        logging.getLogger("quiet").propagate = False

        @task
        def work(ctx: Context) -> None:
            logging.getLogger("loud").debug("loud")
            logging.getLogger("quiet").info("quiet")
            ctx.logger.info("by the context")
        """,
        "--processes",
        "1",
    )
    run = dev.run("work")
    assert dev.log(run.id) == ["loud", "quiet", "by the context"]
    dev.says("MINE DEBUG loud")
    dev.says("MINE INFO by the context")
    assert "quiet" not in dev.errors


def test_a_server_that_is_away_is_told_once_by_all_executors_together(site: Callable[..., Site]) -> None:
    here = site()
    worker = here.start_worker(TASKS, "--processes", "2")
    wait_until(lambda: len(worker.executors()) == 2, what="two executors")
    here.kill_server()
    worker.says("the server does not answer", 60)
    here.start_server()
    worker.says("the server answers again, after", 60)
    # Both executors work again, and neither has told it a second time.
    runs = [here.client.trigger("greet", str(number)).id for number in range(20)]
    for run_id in runs:
        here.finished(run_id)
    away = re.findall(rf"^{TIME} WARNING the server does not answer .*$", worker.errors, re.MULTILINE)
    back = re.findall(
        rf"^{TIME} INFO    the server answers again, after [\d.]+ s$", worker.errors, re.MULTILINE
    )
    assert (len(away), len(back)) == (1, 1), worker.errors


def test_lines_of_a_server_have_time_and_level(command: Callable[..., Command], tmp_path: Path) -> None:
    env = {"MILEPOST_SECRET_KEY": "a-key-that-is-long-enough"}
    server = command("server", "--port", "0", "--data", str(tmp_path / "text"), env=env)
    server.says("serves at ", 120)
    assert re.search(rf"^{TIME} INFO    Milepost \S+ serves at http://\S+$", server.errors, re.MULTILINE)
    assert server.end() == 0
    assert all(re.match(TIME, line) for line in server.errors.splitlines()), server.errors
    server = command(
        "server", "--port", "0", "--data", str(tmp_path / "json"), "--log-format", "json", env=env
    )
    server.says("serves at ", 120)
    assert server.end() == 0
    objects = [json.loads(line) for line in server.errors.splitlines()]
    [ready] = [each for each in objects if each.get("event") == "server.ready"]
    assert ready["url"].startswith("http://127.0.0.1:")
    assert ready["level"] == "info"
