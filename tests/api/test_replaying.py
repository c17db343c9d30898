"""A run that is replayed: what it keeps of its trigger, and what may be another way."""

from __future__ import annotations

import msgspec
import pytest

from milepost import Client, Debounce, Retry, UsageError
from milepost.errors import ConflictError
from milepost.model.retry import RetryRule
from milepost.model.run import asked_of
from milepost.store.deletion import delete_payloads
from milepost.store.runs import load_records
from support.served import KEY, Served


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, KEY)


def test_it_keeps_what_was_asked_but_for_its_time_and_its_key(served: Served, client: Client) -> None:
    first = client.trigger(
        "mail",
        {"to": "a"},
        metadata={"n": 1},
        tags=["t"],
        delay="1h",
        ttl="2h",
        queue="letters",
        concurrency_key="tenant",
        priority=7,
        max_attempts=4,
        max_duration=9,
        retry=Retry(2, min_delay=5, jitter=False),
        idempotency_key="once",
    )
    again = client.runs.replay(first.id)
    run = client.runs.retrieve(again.id)
    assert (run.payload, run.metadata, run.tags, run.replay_of) == ({"to": "a"}, {"n": 1}, ["t"], first.id)
    assert (run.queue, run.concurrency_key, run.priority, run.max_duration_seconds) == (
        "letters",
        "tenant",
        7,
        9,
    )
    assert (run.ttl, run.delayed_until, run.idempotency_key) == (None, None, None)
    with served.server.upkeep.store.read() as connection:
        row = load_records(connection, [again.id], values=False)[again.id].row
    assert row.max_attempts == 4
    assert asked_of(row.options).retry == RetryRule(
        max_attempts=2, min_delay_seconds=5, max_delay_seconds=30, jitter=False
    )


def test_what_a_replay_does_not_take_is_refused_by_name(client: Client) -> None:
    first = client.trigger("mail", 1).id
    for options in ({"idempotency_key": "a"}, {"debounce": Debounce("a", 1)}, {"concurrency_key": "b"}):
        with pytest.raises(UsageError, match=f"takes no {next(iter(options))}="):
            client.runs.replay(first, **options)  # type: ignore[arg-type]


def test_a_run_whose_payload_was_deleted_needs_another_one(served: Served, client: Client) -> None:
    first = client.trigger("mail", {"to": "a"}).id
    with served.server.upkeep.store.write() as connection:
        delete_payloads(connection, [first])
    run = client.runs.retrieve(first)
    assert (run.payload, run.is_payload_deleted) == (None, True)
    with pytest.raises(ConflictError, match="MILEPOST_KEEP_PAYLOADS"):
        client.runs.replay(first)
    again = client.runs.retrieve(client.runs.replay(first, {"to": "b"}).id)
    assert (again.payload, again.is_payload_deleted) == ({"to": "b"}, False)
    assert msgspec.json.encode(again.payload) == b'{"to":"b"}'
