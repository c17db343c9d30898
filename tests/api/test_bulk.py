"""Cancelling and replaying what a filter finds, against a real server: all of it, once, also after an interruption."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost import Client, UnavailableError, UsageError
from milepost.client.bulk import BulkProgress
from milepost.client.calls import Call
from milepost.client.connection import Connection
from support.served import KEY, Served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url, KEY)


def trigger(client: Client, count: int, task: str = "mail", **options: Any) -> set[str]:
    return {client.trigger(task, number, delay="1h", **options).id for number in range(count)}


def statuses(client: Client, ids: set[str]) -> set[str]:
    return {client.runs.retrieve(run_id).status for run_id in ids}


@pytest.mark.parametrize("is_async", [False, True])
def test_cancel_by_filter(client: Client, is_async: bool) -> None:
    mail, other = trigger(client, 230), trigger(client, 3, "other")
    told: list[int] = []

    def tell(progress: BulkProgress) -> None:
        told.append(progress.done)

    if is_async:
        progress = asyncio.run(client.runs.acancel_all(task="mail", on_progress=tell))
    else:
        progress = client.runs.cancel_all(task="mail", on_progress=tell)
    assert progress.done == 230
    assert told == [100, 200, 230]
    assert progress.refused == {}
    assert progress.new_ids == {}
    assert statuses(client, mail) == {"CANCELED"}
    assert statuses(client, other) == {"DELAYED"}
    assert client.runs.cancel_all(task="mail").done == 0, "what has ended is not looked at again"
    assert client.runs.cancel_all(status="DELAYED", task=["other", "mail"]).done == 3


def test_nothing_is_done_to_every_run_there_is(client: Client) -> None:
    with pytest.raises(UsageError, match="without a filter would mean every run"):
        client.runs.cancel_all()
    with pytest.raises(UsageError, match="say which"):
        client.runs.replay_all()
    with pytest.raises(UsageError):
        asyncio.run(client.runs.areplay_all())


def test_replay_by_filter_goes_on_after_an_interruption_and_does_nothing_twice(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = trigger(client, 150)
    send, replays = Connection.send, 0

    def send_some(connection: Connection, call: Call[Any], **options: Any) -> Any:
        nonlocal replays
        replays += call.form == "runs.replay"
        if call.form == "runs.replay" and replays > 120:
            if replays % 2:
                # It was done, and the answer is lost.
                send(connection, call, **options)
            raise UnavailableError("the server has gone")
        return send(connection, call, **options)

    monkeypatch.setattr(Connection, "send", send_some)
    seen: list[BulkProgress] = []
    with pytest.raises(UnavailableError) as raised:
        client.runs.replay_all(task="mail", on_progress=seen.append)
    [note] = raised.value.__notes__
    resume = seen[-1].resume
    assert resume is not None
    assert f"resume={resume!r}" in note
    monkeypatch.undo()
    later = trigger(client, 2)
    progress = client.runs.replay_all(task="mail", resume=resume)
    assert progress.done == 150
    assert set(progress.new_ids) == originals
    everything = {run.id: run.replay_of for run in client.runs.list(task="mail")}
    assert len(everything) == 302
    assert sorted(of for of in everything.values() if of) == sorted(originals)
    assert all(everything[run_id] is None for run_id in later)
    # Another one without it is another bulk.
    assert client.runs.replay_all(task="mail", resume=None).done == 302


def test_a_refusal_of_one_run_does_not_stop_the_others(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = trigger(client, 5)
    gone = min(ids)
    send = Connection.send

    def send_or_refuse(connection: Connection, call: Call[Any], **options: Any) -> Any:
        if call.form == "runs.cancel" and gone in call.target:
            return send(
                connection, Call(**{**_fields(call), "target": call.target.replace(gone, "run_of_nobody")})
            )
        return send(connection, call, **options)

    monkeypatch.setattr(Connection, "send", send_or_refuse)
    progress = client.runs.cancel_all(task="mail")
    assert progress.done == 4
    assert list(progress.refused) == [gone]


def _fields(call: Call[Any]) -> dict[str, Any]:
    return {name: getattr(call, name) for name in call.__dataclass_fields__}
