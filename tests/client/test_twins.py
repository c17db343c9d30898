"""Every blocking call has an asynchronous twin with the same parameters, and the other way round."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from typing import Any

import pytest

from milepost import BatchHandle, Client, RunHandle, Task, metadata, runs, tasks
from milepost.client.queues import Queues
from milepost.client.runs import Runs
from milepost.client.schedules import Schedules
from milepost.client.updater import OutsideMetadata
from milepost.sdk import batches, triggering
from milepost.sdk.metadata import Metadata, RunMetadata
from milepost.sdk.tasks import Tasks
from milepost.sdk.wait import Wait

# Calls that wait for something, and so have two forms; everything else on these objects only touches memory.
WAITING: list[tuple[Any, list[str]]] = [
    (
        Client,
        [
            "send",
            "trigger",
            "get_metadata",
            "wait_for_result",
            "wait_for_batch",
            "batch_results",
            "reset_idempotency_key",
        ],
    ),
    (
        Runs,
        [
            "retrieve",
            "list",
            "subscribe",
            "subscribe_where",
            "wait",
            "metadata_history",
            "metadata_at",
            "cancel",
            "replay",
            "reschedule",
            "add_tags",
            "cancel_all",
            "replay_all",
            "delete",
            "wait_for",
            "logs",
        ],
    ),
    (
        Wait,
        ["for_", "until", "create_token", "for_token", "complete_token", "retrieve_token"],
    ),
    (Schedules, ["create", "update", "retrieve", "deactivate", "activate", "delete", "list"]),
    (
        Queues,
        ["list", "retrieve", "pause", "resume", "override_concurrency_limit", "reset_concurrency_limit"],
    ),
    (RunHandle, ["retrieve", "subscribe", "result"]),
    (BatchHandle, ["wait", "results", "iter_results", "subscribe"]),
    (OutsideMetadata, ["send"]),
    (Metadata, ["flush", "refresh"]),
    (RunMetadata, ["get"]),
    (Task, ["trigger", "trigger_and_wait", "batch_trigger", "batch_trigger_and_wait"]),
    (
        Tasks,
        ["trigger", "trigger_and_wait", "batch_trigger", "batch_trigger_and_wait", "reset_idempotency_key"],
    ),
    (triggering, ["trigger", "trigger_and_wait"]),
    (batches, ["batch_trigger", "batch_trigger_and_wait"]),
]
# Begin with an a and are no twins.
OTHERS = {"activate", "append", "asyncio", "annotations", "api_url", "add_all", "async_transport"}


def twin_of(name: str) -> str:
    twin = f"a{name}"
    return f"{twin}_" if keyword.iskeyword(twin) else twin


@pytest.mark.parametrize(("owner", "names"), WAITING)
def test_twins_have_the_same_parameters(owner: Any, names: list[str]) -> None:
    for name in names:
        blocking: Callable[..., Any] = getattr(owner, name)
        twin: Callable[..., Any] = getattr(owner, twin_of(name))
        assert _parameters(blocking) == _parameters(twin), name
        assert not inspect.iscoroutinefunction(blocking), name
        assert inspect.getdoc(blocking), name
        assert inspect.getdoc(twin), name


@pytest.mark.parametrize(("owner", "names"), WAITING)
def test_no_twin_is_alone(owner: Any, names: list[str]) -> None:
    module = getattr(owner, "__module__", owner.__name__)
    coroutines = {
        name
        for name, found in vars(owner).items()
        if inspect.iscoroutinefunction(found) and name[0] != "_" and found.__module__ == module
    }
    assert coroutines <= {twin_of(name) for name in names}


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


def test_the_public_objects_are_of_these_kinds() -> None:
    assert isinstance(runs, Runs)
    assert isinstance(tasks, Tasks)
    assert isinstance(metadata, Metadata)
