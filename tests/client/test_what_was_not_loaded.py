"""What was not read with a run is not there, and does not look empty; what cannot be read is told as that."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from client.scripted import FINISHED, Answer, ScriptedServer, wire_run
from milepost import Client, ConfigurationError, MilepostError, NotLoadedError, Run, UnreadableAnswerError
from milepost.errors import InvalidRequestError

SUMMARY = {
    name: value
    for name, value in wire_run(**FINISHED).items()
    if name not in ("payload", "childCounts", "relatedRuns", "attempts")
}


@pytest.fixture
def listed(server: ScriptedServer, client: Client) -> Run:
    server.answer = lambda asked: Answer(200, {"data": [SUMMARY], "pagination": {}})
    [run] = client.runs.list()
    return run


@pytest.mark.parametrize("name", ["payload", "output", "child_counts", "streams", "attempts"])
def test_a_field_that_lists_leave_out_says_so(listed: Run, name: str) -> None:
    with pytest.raises(
        NotLoadedError, match=rf"{name} of run run_1 was not loaded.*runs.retrieve\('run_1'\)"
    ):
        getattr(listed, name)
    assert not hasattr(listed, name)
    assert getattr(listed, name, "absent") == "absent"
    assert not listed.is_whole
    assert (listed.depth, listed.metadata, listed.is_success) == (0, {}, True)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        listed.colour  # type: ignore[attr-defined]  # noqa: B018


def test_a_run_that_is_not_whole_is_still_a_value(
    listed: Run, server: ScriptedServer, client: Client
) -> None:
    assert copy.copy(listed) == listed
    assert pickle.loads(pickle.dumps(listed)) == listed
    assert "run_1" in repr(listed)
    encoded = msgspec.json.decode(msgspec.json.encode(listed))
    assert encoded.keys().isdisjoint({"payload", "output", "child_counts"})
    server.answer = lambda asked: Answer(200, wire_run(**FINISHED))
    whole = client.runs.retrieve("run_1")
    assert whole != listed
    assert whole.is_whole
    # Read, and nothing there.
    assert (whole.payload, whole.output, whole.child_counts) == ({"n": 1}, None, {})
    assert msgspec.json.decode(msgspec.json.encode(whole)).keys() >= {"payload", "output", "child_counts"}


UNREADABLE = [
    ({"payload": ["@"]}, b"1e400", r"payload\[0\]: a number beyond"),
    ({"output": "@"}, b"9" * 5000, "output: an integer"),
    ({"metadata": {"a": "@"}}, b"[" * 3000 + b"]" * 3000, "nested too deeply"),
]


@pytest.mark.parametrize(("fields", "raw", "message"), UNREADABLE, ids=["float", "integer", "deep"])
def test_an_answer_that_cannot_be_read_is_not_a_server_that_is_gone(
    server: ScriptedServer, client: Client, fields: dict[str, Any], raw: bytes, message: str
) -> None:
    body = msgspec.json.encode(wire_run(**FINISHED, **fields)).replace(b'"@"', raw)
    server.answer = lambda asked: Answer(200, body)
    reads: list[Callable[[], object]] = [
        lambda: client.runs.retrieve("run_1"),
        lambda: asyncio.run(client.runs.aretrieve("run_1")),
    ]
    for read in reads:
        with pytest.raises(UnreadableAnswerError, match=message) as raised:
            read()
        assert "MILEPOST_API_URL" not in str(raised.value)
    frame = b'event: snapshot\ndata: {"version":1,"run":' + body + b"}\n\n"
    server.answer = lambda asked: Answer(200, chunks=iter([frame]))
    with pytest.raises(UnreadableAnswerError):
        list(client.runs.subscribe("run_1"))
    assert len(server.asked) == 3


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id":1}', b"", b"\xff"])
def test_another_program_is_told_as_that(server: ScriptedServer, client: Client, body: bytes) -> None:
    server.answer = lambda asked: Answer(200, body)
    with pytest.raises(ConfigurationError, match="no Milepost server"):
        client.runs.retrieve("run_1")


@pytest.mark.parametrize(
    "filters",
    [
        {"tag": "a,b"},
        {"tag": ["x", "a,b"]},
        {"task": "a,b"},
        {"tag": ""},
        {"tag": []},
        {"status": ["QUEUED", ""]},
    ],
    ids=str,
)
def test_a_filter_that_would_mean_something_else_is_refused(
    server: ScriptedServer, client: Client, filters: dict[str, Any]
) -> None:
    """Names travel joined with commas; and no name at all is no filter."""
    for look in (client.runs.list, client.runs.subscribe_where):
        with pytest.raises((InvalidRequestError, MilepostError), match=next(iter(filters))):
            look(**filters)
    assert server.asked == []
