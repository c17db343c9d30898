"""The SDK against the real thing: `milepost dev` with its server and workers, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost import (
    Client,
    MetadataFlushError,
    MetadataTooLargeError,
    MetadataValueError,
    PayloadValidationError,
    Run,
    configure,
    runs,
    tasks,
)
from milepost.model.jsonvalue import encode

MILEPOST = [sys.executable, "-P", "-c", "from milepost.cli.main import main; main()"]
HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A running stack with the tasks of `live_tasks` and of the examples."""
    folder = tmp_path_factory.mktemp("live")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    sources = [HERE / "live_tasks.py", EXAMPLES / "csv_import.py", EXAMPLES / "quickstart.py"]
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [*MILEPOST, "dev", *map(str, sources), "--json", "--port", "0", "--no-reload"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "errors.txt").read_text()
        ready = json.loads(line)
        yield Client(ready["url"], ready["secret_key"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture(autouse=True)
def configured(live: Client) -> Iterator[None]:
    """Every call of this module goes to the running stack."""
    configure(api_url=live.api_url, secret_key=live.secret_key)
    yield
    configure()


def run(task_id: str, *payload: Any, **options: Any) -> Run:
    return runs.wait(tasks.trigger(task_id, *payload, **options).id, timeout=60)


def output(task_id: str, *payload: Any, **options: Any) -> Any:
    finished = run(task_id, *payload, **options)
    assert finished.is_success, finished.error
    return finished.output


@pytest.mark.parametrize("n", [1, 100])
def test_children_write_to_their_parent_and_the_parent_sees_it_without_asking(n: int) -> None:
    handle = tasks.trigger("fan_out", n, metadata={"user": {"id": "user_1"}})
    finished = runs.wait(handle.id, timeout=60)
    assert finished.output == {
        "ids": list(range(n)),
        "is_typed": True,
        "never_backwards": True,
        "count": 10 * n,
    }
    assert finished.metadata["user"] == {"id": "user_1"}
    assert (finished.metadata["count"], finished.metadata["counted"]) == (10 * n, n)
    children = list(runs.list(parent=handle.id))
    assert sorted(finished.metadata["children"]) == sorted(child.id for child in children)
    assert {child.root_id for child in children} == {handle.id}
    assert runs.retrieve(handle.id).child_counts == {"COMPLETED": n}


def test_blocking_tasks_wait_for_children_too() -> None:
    assert output("fan_out_blocking", 5) == {"ids": [0, 1, 2, 3, 4], "counted": 5}


def test_the_root_is_the_root() -> None:
    assert output("grandparent", 3) == [["children"], {"count": 30, "counted": 3}]


def test_the_document_survives_retries_and_once_counts_once_M46() -> None:
    finished = run("survives", 7)
    assert finished.output == {"attempts": 3, "once": 7}
    assert finished.metadata == {"attempts": 3, "once": 7, "hooks": ["survives"]}
    assert finished.attempt_count == 3


def test_refused_operations_come_back_from_flush_M37() -> None:
    assert output("flushes") == ["wrong_metadata_type", "wrong_metadata_type"]


def test_a_hundred_thousand_calls_are_exact_M36() -> None:
    finished = run("counts_fast", 100_000)
    assert finished.output == 100_000
    assert (finished.metadata["n"], finished.metadata["last"]) == (100_000, 99_999)
    assert finished.metadata_version < 1000


def test_child_processes_write_to_the_run_M15() -> None:
    finished = run("uses_processes")
    assert finished.output == [0, 1, 2, 3]
    assert finished.metadata["processes"] == 4
    assert sorted(finished.metadata["indexes"]) == [0, 1, 2, 3]
    assert finished.metadata["before"] == 1


def test_typed_metadata_M76_M77() -> None:
    assert "done: does not fit Progress" in output("typed", metadata={"done": 1})


def test_every_writer_is_held_to_the_type_M76() -> None:
    found = output("has_a_typed_parent")
    for message, place in zip(found["refused"], ("done", "at", "status"), strict=True):
        assert message.startswith(f"{place}: does not fit the metadata of task 'has_a_typed_parent'")
    assert found["typed"] == {"done": 7, "at": None, "status": "x"}
    with pytest.raises(MetadataValueError, match="done: "):
        tasks.trigger("has_a_typed_parent", metadata={"status": "x", "done": "many"})
    finished = run("has_a_typed_parent", metadata={"status": "y"})
    with pytest.raises(MetadataFlushError, match="done: "):
        runs.metadata(finished.id).set("done", 8).set("done", "many").set("free", 1).send()
    assert runs.retrieve(finished.id).metadata.items() >= {"done": 8, "free": 1}.items()


def test_typed_values_come_back_equal() -> None:
    assert output("sends_typed_values") is True
    finished = run("returns_what_cannot_be_stored")
    assert finished.error is not None
    assert (finished.error.name, finished.attempt_count) == ("OutputError", 1)
    assert "output.a: NaN" in finished.error.message


def test_hooks_write_metadata() -> None:
    finished = run("hooked")
    assert finished.metadata == {"order": ["start", "task", "complete"], "hooks": ["hooked"]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [("exit", "sys.exit(3)"), ("interrupt", "KeyboardInterrupt"), ("abort", "no more"), ("output", "object")],
)
def test_the_worker_survives(kind: str, message: str) -> None:
    finished = run("exits", kind, max_attempts=1)
    assert finished.is_failed
    assert finished.error is not None
    assert message in finished.error.message
    assert output("exits", "fine") == "fine"


def test_a_bad_payload_fails_without_retry_and_names_the_field() -> None:
    finished = run("child", {"id": "x", "email": "y"})
    assert finished.is_failed
    assert finished.attempt_count == 1
    assert finished.error is not None
    assert finished.error.name == PayloadValidationError.__name__
    assert "id: Input should be a valid integer" in finished.error.message


def test_subscribers_come_early_late_and_often_M82() -> None:
    handle = tasks.trigger("steps", 20)
    collected: list[list[Run]] = [[] for _ in range(4)]

    def watch(states: list[Run], pause: float) -> None:
        for state in handle.subscribe():
            states.append(state)
            time.sleep(pause)

    threads = [
        threading.Thread(target=watch, args=(states, pause))
        for states, pause in zip(collected, (0, 0, 0.1, 0.3), strict=True)
    ]
    for thread in threads:
        thread.start()

    async def watch_async() -> list[Run]:
        return [state async for state in handle.asubscribe()]

    late = asyncio.run(watch_async())
    for thread in threads:
        thread.join()
    after = list(handle.subscribe())
    final = handle.retrieve()
    for states in [*collected, late, after]:
        versions = [state.metadata_version for state in states]
        assert versions == sorted(versions)
        assert states[-1].is_success
        assert states[-1].metadata == final.metadata
    assert len(after) == 1
    assert len(collected[0]) > len(collected[3])


def test_a_slow_reader_skips_states_and_never_the_last() -> None:
    handle = tasks.trigger("steps", 20)
    states: list[Run] = []
    for state in handle.subscribe():
        states.append(state)
        time.sleep(0.2)
    assert states[-1].is_success
    assert states[-1].metadata["step"] == 19


def test_outside_writers_reach_a_run_while_it_works_M48() -> None:
    handle = tasks.trigger("waits_for_approval")
    for state in handle.subscribe():
        if state.metadata.get("waiting"):
            break
    runs.metadata(handle.id).set("approved", {"by": "user_1"}).increment("votes", 2).send()
    finished = runs.wait(handle.id, timeout=60)
    assert finished.output == {"waiting": True, "approved": {"by": "user_1"}, "votes": 2}


def test_big_documents_at_the_limit_M84() -> None:
    exact = {"a": "é" * ((262_144 - len('{"a":""}')) // 2)}
    assert len(encode(exact)) == 262_144
    assert run("exits", "fine", metadata=exact).metadata["a"] == exact["a"]
    with pytest.raises(MetadataTooLargeError):
        tasks.trigger("exits", "fine", metadata={"a": exact["a"] + "x"})


def test_lists_and_their_filters() -> None:
    tag = f"tag-{time.monotonic_ns()}"
    made = [tasks.trigger("exits", "fine", tags=[tag, "other"]).id for _ in range(5)]
    for run_id in made:
        runs.wait(run_id, timeout=60)
    assert [run.id for run in runs.list(tag=tag, page_size=2)] == made[::-1]
    assert [run.id for run in runs.list(tag=tag, status="FAILED")] == []
    assert len(list(runs.list(tag=tag, task=["exits", "child"], status=["COMPLETED"]))) == 5


def test_batches_of_a_thousand() -> None:
    results = tasks.batch_trigger_and_wait("exits", ["fine"] * 1000)
    assert len(results) == 1000
    assert all(result.ok and result.output == "fine" for result in results)


# --- the examples, as a reader would run them ---------------------------------------------------------------


def example(live: Client, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "MILEPOST_API_URL": live.api_url,
            "MILEPOST_SECRET_KEY": live.secret_key,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_csv_example(live: Client, tmp_path: Path) -> None:
    rows = "\n".join(f"{index},{'nobody' if index == 3 else f'p{index}@example.org'}" for index in range(10))
    file = tmp_path / "people.csv"
    file.write_text(f"id,email\n{rows}\n")
    last_state, result = example(live, "csv_import.py", str(file)).splitlines()[-2:]
    assert last_state.split() == ["COMPLETED", "complete", "9", "of", "10,", "1", "invalid"]
    assert result == "{'ok': 9}"


def test_the_quickstart_example(live: Client) -> None:
    printed = example(live, "quickstart.py").splitlines()
    assert printed[-1] == "words: 9"
    assert printed[-2].startswith("COMPLETED {'progress': {'done': 9, 'total': 9}")
