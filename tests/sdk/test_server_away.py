"""Inside of a run every call waits for a server that is away, as long as the attempt is under way; outside it gives up."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from milepost import (
    AttemptOverError,
    Client,
    UnavailableError,
    configure,
    metadata,
    runs,
    streams,
    task,
    tasks,
)
from milepost.client import transport
from milepost.client.default import default_client
from milepost.client.retries import SECONDS_MAX
from milepost.sdk import batches
from milepost.sdk.registry import register
from milepost.sdk.scope import RunScope
from sdk.here import running
from support.gate import Gate, Mode
from support.served import KEY, HttpWorker, Served, offer

AWAY_SECONDS = 4.0
PATIENCE_SECONDS = 40
# Less than any call waits for an answer, also on a busy machine.
QUICKLY_SECONDS = 10


@dataclass
class House:
    """A server behind a gate, a run that a worker holds there, and the scope of its attempt here."""

    served: Served
    gate: Gate
    worker: HttpWorker
    run: dict[str, Any]
    scope: RunScope
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def finish(self) -> None:
        """Let all runs of `awaited` end."""
        for run in self.worker.claim(1000):
            self.worker.finish(run, output="7")

    def children(self) -> list[str]:
        """The runs that the held run has triggered."""
        found = self.served.get("/api/v1/runs", **{"filter[parent]": self.run["id"], "page[size]": 100})
        return [run["id"] for run in found["data"]]


@task(id="awaited")
def awaited() -> int:
    return 7


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


@pytest.fixture
def house(served: Served) -> Iterator[House]:
    register(awaited)
    worker = HttpWorker(served, "worker_1", offer("awaited"), offer("holder"))
    gate = Gate(served.port)
    configure(api_url=gate.url, secret_key=KEY)
    held = worker.take(served.trigger("holder"))
    with running(id=held["id"], task="holder", attempt=held["attempt"], root_id=held["id"]) as (scope, _):
        yield House(served, gate, worker, held, scope)
    gate.close()
    configure()


# --- every kind of call -------------------------------------------------------------------------------------


class Kinds:
    """Each kind of call that code of a run may make, and what it must come to. `target` is a run that has ended."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.target = house.served.trigger("awaited")
        self.open = house.served.trigger("open")
        self.batch = house.served.post(
            "/api/v2/tasks/batch", {"items": [{"task": "awaited", "options": {}}] * 3}
        )
        house.finish()
        self.worker_writes()

    def worker_writes(self) -> None:
        self.house.served.call(
            "POST", f"/realtime/v1/streams/{self.open}/self/log", b"1\n2\n", headers={"x-client-id": "test"}
        )
        self.house.served.post(f"/realtime/v1/streams/{self.house.run['id']}/input/told", {"data": "hello"})

    def blocking(self) -> dict[str, tuple[Callable[[], Any], Any]]:
        client, run_id = default_client(), self.house.run["id"]
        return {
            "trigger": (lambda: awaited.trigger().task_id, "awaited"),
            "by name": (lambda: tasks.trigger("awaited").task_id, "awaited"),
            "by a client": (lambda: client.trigger("awaited").task_id, "awaited"),
            "batch": (lambda: len(awaited.batch_trigger([]).runs), 0),
            "batch of two": (lambda: len(tasks.batch_trigger("open", [None, None]).runs), 2),
            "portions": (lambda: len(tasks.batch_trigger("open", ["x" * 60] * 5).runs), 5),
            "retrieve": (lambda: runs.retrieve(self.target).id, self.target),
            "list": (lambda: [run.id for run in runs.list(task="holder")].count(run_id), 1),
            "subscribe": (lambda: list(runs.subscribe(self.target))[-1].id, self.target),
            "wait": (lambda: runs.wait(self.target, timeout=60).id, self.target),
            "result": (lambda: client.wait_for_result(self.target, 60).output, "7"),
            "batch results": (lambda: len(client.wait_for_batch(self.batch["id"])), 3),
            "get metadata": (lambda: client.get_metadata(self.target).version, 0),
            "refresh": (metadata.refresh, metadata),
            "history": (lambda: list(runs.metadata_history(self.target)), []),
            "metadata at": (lambda: runs.metadata_at(self.target, version=0).value, {}),
            "metadata of another": (lambda: runs.metadata(run_id).set("blocking", 1).send()["blocking"], 1),
            "stream": (lambda: next(iter(streams.read(self.open, "log"))), 1),
            "send": (lambda: streams.input("k").send(self.open, "v"), None),
            "receive": (lambda: streams.input("told").receive(timeout=60), "hello"),
        }

    def asynchronous(self) -> dict[str, tuple[Callable[[], Any], Any]]:
        client, run_id = default_client(), self.house.run["id"]

        async def last(states: Any) -> Any:
            return [state async for state in states][-1].id

        async def first(values: Any) -> Any:
            async with aclosing(aiter(values)) as found:
                return await anext(found)

        async def count(items: Any) -> int:
            return len([item async for item in items])

        async def of(awaited: Any, read: Callable[[Any], Any]) -> Any:
            return read(await awaited)

        return {
            "trigger": (lambda: of(awaited.atrigger(), lambda handle: handle.task_id), "awaited"),
            "by name": (lambda: of(tasks.atrigger("awaited"), lambda handle: handle.task_id), "awaited"),
            "by a client": (lambda: of(client.atrigger("awaited"), lambda handle: handle.task_id), "awaited"),
            "batch of two": (
                lambda: of(tasks.abatch_trigger("open", [None, None]), lambda batch: len(batch.runs)),
                2,
            ),
            "portions": (
                lambda: of(tasks.abatch_trigger("open", ["x" * 60] * 5), lambda batch: len(batch.runs)),
                5,
            ),
            "retrieve": (lambda: of(runs.aretrieve(self.target), lambda run: run.id), self.target),
            "list": (lambda: count(runs.alist(parent=self.target)), 0),
            "subscribe": (lambda: last(runs.asubscribe(self.target)), self.target),
            "wait": (lambda: of(runs.await_(self.target, timeout=60), lambda run: run.id), self.target),
            "result": (
                lambda: of(client.await_for_result(self.target, 60), lambda result: result.output),
                "7",
            ),
            "batch results": (lambda: of(client.await_for_batch(self.batch["id"]), len), 3),
            "get metadata": (
                lambda: of(client.aget_metadata(self.target), lambda found: found.version),
                0,
            ),
            "refresh": (metadata.arefresh, metadata),
            "history": (lambda: count(runs.ametadata_history(self.target)), 0),
            "metadata at": (
                lambda: of(runs.ametadata_at(self.target, version=0), lambda found: found.value),
                {},
            ),
            "metadata of another": (
                lambda: of(runs.metadata(run_id).set("async", 1).asend(), lambda value: value["async"]),
                1,
            ),
            "stream": (lambda: first(streams.aread(self.open, "log")), 1),
            "send": (lambda: streams.input("k").asend(self.open, "v"), None),
            "receive": (lambda: streams.input("told").areceive(timeout=60), "hello"),
        }


class Calls:
    """Calls under way at once, each in a thread of its own, all of them part of the run."""

    def __init__(self, named: dict[str, tuple[Callable[[], Any], Any]]) -> None:
        self.named = named
        self.results: dict[str, Any] = {}
        self.threads = [threading.Thread(target=self._call, args=(name,), daemon=True) for name in named]
        self._context = contextvars.copy_context()
        for thread in self.threads:
            thread.start()

    def _call(self, name: str) -> None:
        def call() -> Any:
            result = self.named[name][0]()
            return asyncio.run(result) if asyncio.iscoroutine(result) else result

        try:
            self.results[name] = self._context.copy().run(call)
        except BaseException as error:
            self.results[name] = error

    def join(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), self.results
        return self.results


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PORTION_BYTES_MAX", 100)


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("colour", ["blocking", "asynchronous"])
def test_every_kind_of_call_waits_for_a_server_that_is_away(house: House, colour: str) -> None:
    """Four seconds are longer than the six tries of a call outside of runs."""
    named: dict[str, tuple[Callable[[], Any], Any]] = getattr(Kinds(house), colour)()
    house.gate.turn(Mode.SHUT)
    calls = Calls(named)
    time.sleep(AWAY_SECONDS)
    assert not calls.results.keys() - {"batch"}, calls.results
    house.gate.turn(Mode.OPEN)
    assert calls.join() == {name: expected for name, (_, expected) in named.items()}
    # Each was carried out once: those with the run as their parent.
    expected = sum(count for name, count in CHILDREN.items() if name in named)
    assert len(house.children()) == expected


CHILDREN = {"trigger": 1, "by name": 1, "batch of two": 2, "portions": 5}


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("colour", ["blocking", "asynchronous"])
def test_answers_that_get_lost_are_asked_for_again_and_nothing_happens_twice(
    house: House, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests arrive and are carried out; only the answers do not come back."""
    monkeypatch.setattr(transport, "ANSWER_SECONDS_MAX", 0.5)
    kinds = Kinds(house)
    named: dict[str, tuple[Callable[[], Any], Any]] = getattr(kinds, colour)()
    named = {name: named[name] for name in (*CHILDREN, "send", "metadata of another")}
    if colour == "asynchronous":
        from milepost.client import async_transport

        monkeypatch.setattr(async_transport, "ANSWER_SECONDS_MAX", 0.5)
    house.gate.turn(Mode.DEAF)
    calls = Calls(named)
    time.sleep(AWAY_SECONDS)
    assert not calls.results, calls.results
    house.gate.turn(Mode.OPEN)
    assert calls.join() == {name: expected for name, (_, expected) in named.items()}
    assert len(house.children()) == sum(CHILDREN.values())
    with house.served.events(f"/realtime/v1/streams/{kinds.open}/input/k") as events:
        batch = events.until(lambda event, _: event == "batch")
    assert len(batch["records"]) == 1


def test_outside_of_runs_a_call_gives_up(house: House) -> None:
    house.gate.turn(Mode.SHUT)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        contextvars.Context().run(lambda: runs.retrieve("run_1"))
    assert time.monotonic() - began < SECONDS_MAX + 4


def test_another_server_is_not_waited_for(house: House) -> None:
    """It knows nothing of the attempt, and a run may do without it."""
    house.gate.turn(Mode.SHUT)
    other = Client(house.gate.url, "another key")
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        other.runs.retrieve("run_1")
    assert time.monotonic() - began < SECONDS_MAX + 4


# --- how the waiting ends -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("mode", [Mode.SHUT, Mode.SILENT])
@pytest.mark.parametrize("colour", ["blocking", "asynchronous"])
def test_an_attempt_that_is_given_up_stops_waiting(house: House, colour: str, mode: Mode) -> None:
    named: dict[str, tuple[Callable[[], Any], Any]] = getattr(Kinds(house), colour)()
    named.pop("batch", None)
    house.gate.turn(mode)
    calls = Calls(named)
    until = time.monotonic() + PATIENCE_SECONDS
    while mode is Mode.SILENT and house.gate.came < len(named) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    assert not calls.results
    house.scope.is_lost = True
    began = time.monotonic()
    results = calls.join()
    assert time.monotonic() - began < QUICKLY_SECONDS
    for name, error in results.items():
        assert isinstance(error, AttemptOverError), (name, error)
        assert f"attempt {house.run['attempt']} of run {house.run['id']} is over" in str(error), name
    # And from now on nothing is even tried.
    came = house.gate.came
    with pytest.raises(AttemptOverError, match="the call was not made"):
        awaited.trigger()
    assert house.gate.came == came


@pytest.mark.parametrize("mode", [Mode.SHUT, Mode.SILENT])
def test_a_cancelled_call_ends_at_once(house: House, mode: Mode) -> None:
    house.gate.turn(mode)

    async def main() -> None:
        for call in (
            lambda: awaited.atrigger(),
            lambda: tasks.abatch_trigger("open", [None]),
            lambda: runs.aretrieve("run_1"),
            lambda: runs.await_("run_1"),
        ):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await call()
            assert time.monotonic() - began < QUICKLY_SECONDS
            waiting = asyncio.ensure_future(call())
            await asyncio.sleep(0.3)
            waiting.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert time.monotonic() - began < QUICKLY_SECONDS

    asyncio.run(main())


@pytest.mark.parametrize("mode", [Mode.SHUT, Mode.SILENT])
def test_a_timeout_of_the_users_own_is_kept(house: House, mode: Mode) -> None:
    target = house.served.trigger("awaited")
    handle = default_client().trigger("open")
    house.gate.turn(mode)
    for call in (
        lambda: runs.wait(target, timeout=1),
        lambda: handle.result(timeout=1),
        lambda: streams.input("nothing").receive(timeout=1),
        lambda: asyncio.run(runs.await_(target, timeout=1)),
        lambda: asyncio.run(handle.aresult(timeout=1)),
    ):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            call()
        assert 0.9 < time.monotonic() - began < QUICKLY_SECONDS


INTERRUPTED = """
import signal, sys, time
from milepost import configure, tasks, runs
from milepost.client.calling import NamedAttempt, acting_as

configure(api_url=sys.argv[1], secret_key="key")
for call in (lambda: tasks.trigger("t"), lambda: tasks.batch_trigger("t", [1]), lambda: list(runs.subscribe("run_1"))):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    began = time.monotonic()
    try:
        with acting_as(NamedAttempt("run_1", 1)):
            call()
    except KeyboardInterrupt:
        print(time.monotonic() - began < 10.0)
"""


@pytest.mark.parametrize("mode", [Mode.SHUT, Mode.SILENT])
def test_control_c_gets_through(house: House, mode: Mode) -> None:
    house.gate.turn(mode)
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, house.gate.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.split() == ["True"] * 3


def test_a_batch_that_is_interrupted_does_not_wait_for_the_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PORTION_BYTES_MAX", 10)

    def items() -> Iterator[str]:
        yield from ["x" * 60] * 3
        house.gate.turn(Mode.SHUT)
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        tasks.batch_trigger("open", items())
    assert time.monotonic() - began < QUICKLY_SECONDS
    assert "items had been triggered before" in caught.value.__notes__[0]
    assert "could not be ended" in caught.value.__notes__[1]


# --- programs of a run --------------------------------------------------------------------------------------

PROGRAM = """
from milepost import metadata, tasks
print("begun", flush=True)
metadata.attach()
metadata.set("program", 1)
metadata.flush()
print(tasks.trigger("open").id)
"""


def test_a_program_of_a_run_waits_too(house: House) -> None:
    names = {"MILEPOST_RUN_ID": house.run["id"], "MILEPOST_ATTEMPT": str(house.run["attempt"])}
    address = {"MILEPOST_API_URL": house.gate.url, "MILEPOST_SECRET_KEY": KEY}
    house.gate.turn(Mode.SHUT)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **names, **address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "begun\n"
    time.sleep(AWAY_SECONDS)
    assert program.poll() is None
    house.gate.turn(Mode.OPEN)
    told, _ = program.communicate(timeout=PATIENCE_SECONDS)
    assert program.returncode == 0
    assert house.children() == [told.strip()]
    assert house.served.get(f"/api/v1/runs/{house.run['id']}/metadata")["metadata"] == {"program": 1}


def test_a_command_of_a_script_waits_too(house: House) -> None:
    names = {"MILEPOST_RUN_ID": house.run["id"], "MILEPOST_ATTEMPT": str(house.run["attempt"])}
    address = {"MILEPOST_API_URL": house.gate.url, "MILEPOST_SECRET_KEY": KEY}
    house.gate.turn(Mode.SHUT)
    command = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from milepost.cli.main import main; main()",
            "metadata",
            "set",
            "script",
            "1",
        ],
        env={**os.environ, **names, **address},
    )
    time.sleep(AWAY_SECONDS + 2)
    assert command.poll() is None
    house.gate.turn(Mode.OPEN)
    assert command.wait(PATIENCE_SECONDS) == 0
    assert house.served.get(f"/api/v1/runs/{house.run['id']}/metadata")["metadata"] == {"script": 1}
