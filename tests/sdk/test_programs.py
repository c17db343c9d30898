"""Programs that a run has started: what the environment tells them, and what they are after `metadata.attach()` (M15)."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.scripted import Answer, Asked, ScriptedServer, scripted, wire_run
from milepost import ConfigurationError, RunNotFoundError, configure, metadata
from milepost.client import environment
from milepost.sdk import child_process
from milepost.sdk.scope import surroundings
from sdk.here import running
from sdk.test_binding import Documents

RUN, PARENT = "run_program", "run_parent"


class House:
    """A server with one run, and the end of the program in the test's hand."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.documents = Documents(server)
        server.answer = self.answer
        self.at_exit: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def answer(self, asked: Asked) -> Answer:
        if asked.method == "PUT":
            return self.documents(asked)
        if asked.path == "/api/v1/health":
            return Answer(200, {"status": "ok", "version": "1", "metadataSizeMax": 1000})
        if asked.path.endswith(RUN):
            run = wire_run(
                id=RUN, metadata={"before": 1}, metadataVersion=4, parentId=PARENT, rootId="run_root", depth=2
            )
            return Answer(200, run)
        return Answer(404, {"error": "there is no such run", "code": "run_not_found"})

    def end(self) -> None:
        for function, arguments in self.at_exit:
            function(*arguments)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(child_process, "_process", child_process.Process())
    monkeypatch.setattr(surroundings, "attached", None)
    for name in (environment.RUN_VARIABLE, environment.ATTEMPT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with scripted() as server:
        configure(api_url=server.url, secret_key="key")
        house = House(server)
        monkeypatch.setattr(
            atexit, "register", lambda function, *arguments: house.at_exit.append((function, arguments))
        )
        yield house
        configure()


def name_run(monkeypatch: pytest.MonkeyPatch, run_id: str = RUN, attempt: str | None = "2") -> None:
    monkeypatch.setenv(environment.RUN_VARIABLE, run_id)
    if attempt is None:
        monkeypatch.delenv(environment.ATTEMPT_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(environment.ATTEMPT_VARIABLE, attempt)


def test_the_environment_names_the_run_its_attempt_and_the_server(house: House) -> None:
    with running(id=RUN, attempt=3, root_id=RUN):
        whole, given = metadata.environment(), metadata.environment({"PATH": "/bin"})
    told = {
        "MILEPOST_RUN_ID": RUN,
        "MILEPOST_ATTEMPT": "3",
        "MILEPOST_API_URL": house.server.url,
        "MILEPOST_SECRET_KEY": "key",
    }
    assert given == {"PATH": "/bin", **told}
    assert whole == {**os.environ, **told}
    assert "MILEPOST_RUN_ID" not in os.environ


def test_outside_of_a_run_the_environment_is_what_it_is() -> None:
    """M9: no configuration is needed there."""
    assert metadata.environment() == dict(os.environ)
    assert metadata.environment({"a": "b"}) == {"a": "b"}


def test_an_attached_program_is_part_of_the_run_with_all_its_threads(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_run(monkeypatch)
    assert metadata.attach() is metadata
    metadata.attach().increment("n").parent.increment("n")
    metadata.root.set("a", 1)
    assert metadata.get("before") == 1
    threads = [threading.Thread(target=lambda: metadata.increment("n")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metadata.current() == {"before": 1, "n": 5}
    metadata.flush()
    metadata.increment("n")
    house.end()
    documents = {run_id: document.value for run_id, document in house.documents.documents.items()}
    assert documents == {RUN: {"n": 6}, PARENT: {"n": 1}, "run_root": {"a": 1}}
    assert house.documents.attempts == {f"{RUN}:2"}
    assert len(house.at_exit) == 1


def test_the_limit_is_the_server_s(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    name_run(monkeypatch)
    metadata.attach()
    with pytest.raises(Exception, match="1,000"):
        metadata.set("a", "x" * 1000)


def test_a_child_that_an_attached_program_forks_is_not_attached(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_run(monkeypatch)
    metadata.attach()
    monkeypatch.setattr(surroundings, "unbound_call", None)
    child_process._after_fork()  # pyright: ignore[reportPrivateUsage]
    told = surroundings.unbound_call
    assert told is not None
    assert metadata.current() is None
    house.end()
    assert house.documents.documents == {}, "what the parent has to say is not the child's"


def test_where_no_run_is_named_attaching_does_nothing(house: House) -> None:
    assert metadata.attach().set("a", 1) is metadata
    assert metadata.current() is None
    assert house.server.asked == []


def test_inside_a_run_attaching_does_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    name_run(monkeypatch)
    with running(id="run_other", root_id="run_other") as (scope, _):
        metadata.attach().set("a", 1)
        assert scope.buffer.current() == {"a": 1}
    assert surroundings.attached is None
    assert house.server.asked == []


@pytest.mark.parametrize("attempt", [None, "", "0", "-1", "x", "1.0", "٣"])
def test_half_of_it_is_a_clear_error(
    house: House, monkeypatch: pytest.MonkeyPatch, attempt: str | None
) -> None:
    name_run(monkeypatch, attempt=attempt)
    with pytest.raises(ConfigurationError, match="MILEPOST_ATTEMPT"):
        metadata.attach()


def test_a_run_that_is_not_there_is_a_clear_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    name_run(monkeypatch, "run_nobody")
    with pytest.raises(RunNotFoundError):
        metadata.attach()
    assert metadata.current() is None
