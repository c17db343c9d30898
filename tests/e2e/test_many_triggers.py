"""Triggers of many threads and coroutines share requests, and the server is killed among them: each makes one run, and is given it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from real_processes import Site, wait_until

from milepost import Client
from milepost.client import retries

CROWD = 16
EACH = 60
KILLS = 3


def in_threads(client: Client, given: dict[int, str]) -> None:
    def work(first: int) -> None:
        for number in range(first, first + EACH):
            given[number] = client.trigger("never", number).id

    threads = [threading.Thread(target=work, args=(first * EACH,)) for first in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_coroutines(client: Client, given: dict[int, str]) -> None:
    async def work(first: int) -> None:
        for number in range(first, first + EACH):
            given[number] = (await client.atrigger("never", number)).id

    async def main() -> None:
        await asyncio.gather(*(work(first * EACH) for first in range(CROWD)))

    asyncio.run(main())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may take longer to start than a caller would wait for it, where much else is going on."""
    monkeypatch.setattr(retries, "Retries", partial(retries.Retries, attempts_max=None, seconds_max=120.0))


@pytest.mark.parametrize("crowd", [in_threads, in_coroutines])
def test_each_makes_one_run_whatever_becomes_of_its_request(
    site: Callable[..., Site], tmp_path: Path, crowd: Callable[[Client, dict[int, str]], None]
) -> None:
    here = site()
    given: dict[int, str] = {}
    errors: list[BaseException] = []

    def trigger_all() -> None:
        try:
            crowd(here.client, given)
        except BaseException as error:
            errors.append(error)

    triggering = threading.Thread(target=trigger_all)
    triggering.start()
    for kill in range(1, KILLS + 1):
        wait_until(lambda kill=kill: len(given) > kill * CROWD * EACH // (KILLS + 2) or errors)
        here.kill_server()
        here.start_server()
    triggering.join()
    assert errors == []
    with closing(sqlite3.connect(tmp_path / "data" / "milepost.db")) as connection:
        rows = connection.execute("SELECT payload, id FROM runs").fetchall()
    assert len(rows) == CROWD * EACH
    assert {json.loads(payload): run_id for payload, run_id in rows} == given
