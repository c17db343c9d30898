"""`milepost.serve`: a worker in a script, a notebook, a test."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import milepost
from milepost import Context, UsageError, configure, metadata, task
from milepost.client.default import default_client
from milepost.errors import UnauthorizedError
from milepost.testing import run_task

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "PYTEST"))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder without a server, and an environment that says nothing."""
    monkeypatch.delenv("MILEPOST_API_URL", raising=False)
    monkeypatch.delenv("MILEPOST_SECRET_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    configure()
    yield
    configure()


@task(id="served-add")
def add(n: int) -> int:
    metadata.set("n", n)
    return n + 1


@task(id="served-twice")
async def twice(n: int) -> int:
    first = await add.atrigger_and_wait(n)
    return (await add.atrigger_and_wait(first.unwrap())).unwrap()


def ours() -> set[str]:
    return {each.name for each in threading.enumerate()} & {
        "milepost-server",
        "milepost-tasks",
        "milepost-link",
    }


def test_a_block_works_until_its_end() -> None:
    with milepost.serve(add, twice) as serving:
        assert twice.trigger(1).result(timeout=30).output == 3
        assert default_client() is serving.client
        assert serving.url in repr(serving)
    assert ours() == set()
    assert "stopped" in repr(serving)
    serving.stop()


def test_it_works_for_a_server_that_is_there() -> None:
    with milepost.serve(add) as first:
        # As a second program would.
        configure(api_url=first.url, secret_key=first.client.secret_key)
        with milepost.serve(twice) as second:
            assert second.url == first.url
            assert twice.trigger(5).result(timeout=30).output == 7


def test_a_cell_that_is_run_again_takes_the_place_of_the_first() -> None:
    first = milepost.serve(add)
    second = milepost.serve(add)
    try:
        assert "stopped" in repr(first)
        assert add.trigger(1).result(timeout=30).output == 2
    finally:
        second.stop()


def test_it_works_where_an_event_loop_is_running() -> None:
    async def cell() -> None:
        with milepost.serve(add, twice):
            handle = await twice.atrigger(1)
            assert (await handle.aresult(timeout=30)).output == 3

    asyncio.run(cell())


def test_runs_finish_within_the_grace_time() -> None:
    begun = threading.Event()

    @task(id="served-slow")
    def slow() -> str:
        begun.set()
        time.sleep(0.5)
        return "done"

    with milepost.serve(add):
        with milepost.serve(slow) as serving:
            handle = slow.trigger()
            assert begun.wait(30)
        assert "stopped" in repr(serving)
        assert handle.retrieve().output == "done"


def test_what_does_not_end_is_handed_back() -> None:
    begun, gate = threading.Event(), threading.Event()

    @task(id="served-stuck")
    def stuck(ctx: Context) -> int:
        begun.set()
        gate.wait(20)
        return ctx.attempt.number

    with milepost.serve(add):
        serving = milepost.serve(stuck, grace_seconds=0.1)
        handle = stuck.trigger()
        assert begun.wait(30)
        serving.stop()
        run = handle.retrieve()
        assert (run.is_queued, run.attempts[-1].is_charged) == (True, False)
        gate.set()
        with milepost.serve(stuck):
            assert handle.result(timeout=30).ok


def test_a_wrong_key_is_told() -> None:
    with milepost.serve(add) as first:
        configure(api_url=first.url, secret_key="tr_wrong")
        first._stack.close()
        with pytest.raises(UnauthorizedError):
            milepost.serve(twice, server=False)
    assert ours() == set()


def test_wrong_use_is_told() -> None:
    @task(id="serves")
    def serves() -> None:
        milepost.serve(add)

    with pytest.raises(UsageError, match="concurrency=0"):
        milepost.serve(add, concurrency=0)
    error = run_task(serves).error
    assert error is not None
    assert error.name == "UsageError"
    with pytest.raises(AttributeError, match="no attribute 'sevre'"):
        milepost.sevre  # noqa: B018


SCRIPT = """
    import sys
    import milepost
    from milepost import task

    @task
    def add(n: int) -> int:
        return n + 1

    if __name__ == "__main__":
        serving = milepost.serve(add)
        print(add.trigger(1).result(timeout=30).output, flush=True)
        if "wait" in sys.argv:
            serving.wait()
            print("ended", flush=True)
"""


def _wait_for_handler(process_id: int) -> None:
    """Wait until the process has a handler for SIGTERM, which says that it waits."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        [caught] = [
            line for line in Path(f"/proc/{process_id}/status").read_text().splitlines() if "SigCgt" in line
        ]
        if int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.02)
    raise AssertionError("it does not wait")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_works_until_it_is_told_to_end(tmp_path: Path, number: int) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    program = subprocess.Popen(
        [sys.executable, "script.py", "wait"], cwd=tmp_path, env=CLEAN, stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "2\n"
        _wait_for_handler(program.pid)
        program.send_signal(number)
        assert program.stdout.read() == "ended\n"
        assert program.wait(30) == 0
    finally:
        program.kill()
        program.communicate()


def test_a_script_that_ends_stops_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert "Traceback" not in done.stderr
