"""No volume of logs changes a document or an outcome."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from milepost.reading.reader import Reader
from milepost.store import schema
from simulation.database import Database
from simulation.running import empty_database, simulate
from simulation.simulation import Plan

SEEDS = 60


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with empty_database() as database:
        yield database


def one_run(plan: Plan) -> None:
    """A single run on a network that loses and repeats; nothing else that could lead to another course."""
    plan.workers, plan.roots, plan.children, plan.writers, plan.lookers = 1, 1, 0, 0, 0
    plan.waits = plan.keyed = plan.debouncers = plan.crowd = plan.schedules = plan.cancel = plan.delay = (
        plan.ttl
    ) = 0
    plan.max_duration_seconds = None
    plan.troubles = []
    plan.lease_seconds, plan.request_seconds_max = 600.0, 3.0
    plan.faults.kill_client = plan.crash = 0.0
    plan.size_max = 262_144


def without_logs(plan: Plan) -> None:
    one_run(plan)
    plan.logs = [(0, 0)]


def with_logs(plan: Plan) -> None:
    """More than waits, than is kept, than a request may have; lines that no request can carry."""
    one_run(plan)
    plan.logs = [(0, 0), (20, 80), (3, 3000), (100, 5)]
    plan.log_bytes_max, plan.log_waiting_bytes_max = 4096, 3000


def ends(database: Database) -> list[Any]:
    """What became of the runs."""
    reader = Reader(database.store)
    with database.store.read() as connection:
        rows = connection.execute(select(schema.runs).order_by(schema.runs.c.payload)).all()
    return [
        (
            row.payload,
            row.status,
            row.attempt,
            row.output,
            row.error,
            msgspec.json.decode(reader.metadata(row.id)[0]),
        )
        for row in rows
    ]


def test_no_volume_of_logs_changes_a_document_or_an_outcome(database: Database) -> None:
    logged = 0
    for seed in range(SEEDS):
        simulate(seed, database, adjust=without_logs)
        quiet = ends(database)
        simulation = simulate(seed, database, adjust=with_logs)
        assert ends(database) == quiet, f"seed {seed}"
        logged += sum(len(attempt.lines) for attempt in simulation.records.attempts)
    assert logged > 1000
