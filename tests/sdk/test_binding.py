"""Carrying a run into child processes (M15)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import msgspec
import pytest

from client.scripted import Answer, Asked, Drop, ScriptedServer, scripted
from milepost import MetadataFlushError, configure, metadata
from milepost.client import retries
from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.operations import Operation
from milepost.sdk import binding
from milepost.sdk.scope import current_scope
from sdk.here import running
from sdk.model_server import PARENT, RUN

# Forking a process that has threads draws a warning from Python 3.12 on; it is what users do nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Documents:
    """The metadata endpoint of a server: one document per run, each request id answered once."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.documents: dict[str, Document] = {}
        self.answers: dict[str, Answer] = {}
        self.lost_replies = 0
        server.answer = self

    def __call__(self, asked: Asked) -> Answer:
        assert asked.method == "PUT"
        run_id = asked.path.split("/")[-2]
        document = self.documents.setdefault(run_id, Document())
        request_id = asked.headers["x-trigger-request-idempotency-key"]
        if request_id not in self.answers:
            refused: list[dict[str, Any]] = []
            for index, operation in enumerate(msgspec.convert(asked.body["operations"], list[Operation])):
                try:
                    document.apply(operation)
                except MetadataError as error:
                    refused.append(
                        {"run": run_id, "index": index, "code": error.code, "message": error.message}
                    )
            document.version += 1
            body = {"metadata": document.copy_value(), "version": document.version, "refused": refused}
            self.answers[request_id] = Answer(200, body)
            if self.lost_replies:
                self.lost_replies -= 1
                raise Drop
        return self.answers[request_id]


@pytest.fixture
def documents() -> Iterator[Documents]:
    with scripted() as server:
        configure(api_url=server.url, secret_key="key")
        yield Documents(server)
        configure()


def configure_child(url: str) -> None:
    configure(api_url=url, secret_key="key")


def work(index: int) -> Any:
    """Runs in a child process."""
    before = metadata.get("before")
    metadata.increment("n").append("log", index).parent.increment("children")
    metadata.root.increment("children")
    return before, metadata.get("n") > 0, metadata.current() is not None


def unbound() -> Any:
    metadata.set("lost", 1)
    return metadata.current(), current_scope.get() is None


def flush_in_child() -> list[str]:
    metadata.set("text", "x").run("run_uncle").increment("text")
    metadata.flush()
    metadata.run("run_uncle").set("text", "y").increment("text")
    try:
        metadata.flush()
    except MetadataFlushError as error:
        return [item.run_id for item in error.refused]
    return []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pools_take_bound_functions(documents: Documents, method: str) -> None:
    context = multiprocessing.get_context(method)
    url = documents.server.url
    documents.documents[RUN] = Document({"before": "set"})
    with running({"before": "set"}, parent_id=PARENT, root_id="run_root"):
        with ProcessPoolExecutor(2, mp_context=context, initializer=configure_child, initargs=(url,)) as pool:
            results = list(pool.map(metadata.bind(work), range(20)))
            assert pool.submit(unbound).result() == (None, True)
    assert results == [("set", True, True)] * 20
    assert documents.documents[RUN].value["n"] == 20
    assert sorted(documents.documents[RUN].value["log"]) == list(range(20))  # type: ignore[type-var, arg-type]
    assert documents.documents[PARENT].value == {"children": 20}
    assert documents.documents["run_root"].value == {"children": 20}


def test_a_forked_process_takes_a_bound_function_and_flushes(documents: Documents) -> None:
    with running():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(metadata.bind(flush_in_child)).result() == ["run_uncle"]
    assert documents.documents[RUN].value == {"text": "x"}
    assert documents.documents["run_uncle"].value == {"text": "y"}


def test_lost_replies_double_nothing(documents: Documents) -> None:
    documents.lost_replies = 2
    with running():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(metadata.bind(work), 1).result()
    assert documents.documents[RUN].value == {"n": 1, "log": [1], "children": 2}


def test_a_server_that_is_away_holds_nobody_up_for_ever(
    documents: Documents, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(binding, "_process", binding._Process())  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(binding, "FAREWELL_SECONDS_MAX", 0.05)
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)

    def drop(asked: Asked) -> Answer:
        raise Drop

    documents.server.answer = drop
    with running() as (scope, _):
        carried = binding._carry(scope)  # pyright: ignore[reportPrivateUsage]
    # As in a child process, but here, where the log can be seen.
    binding.Bound(None, work, carried)(1)
    assert "could not be committed" in caplog.text
    documents.server.answer = documents
    monkeypatch.setattr(binding, "FAREWELL_SECONDS_MAX", 30)
    binding.Bound(None, work, carried)(2)
    assert documents.documents[RUN].value == {"n": 2, "log": [1, 2], "children": 4}
