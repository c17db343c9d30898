"""Every run that matches a filter, live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.run import Run
from milepost.client.subscription import MatchFollower


def follow_matching(connection: Connection, filters: Mapping[str, Any]) -> Iterator[Run]:
    """See `Runs.subscribe_where`; `filters` as `calls.run_filters` gives them."""
    follower = MatchFollower()
    for state in connection.follow(calls.watch_matching_runs(filters), follower):
        if isinstance(state, Run):
            yield state
        elif (run := follower.catch_up(connection.send(calls.retrieve_run(state)))) is not None:
            yield run


async def afollow_matching(connection: Connection, filters: Mapping[str, Any]) -> AsyncIterator[Run]:
    """As `follow_matching`, for `async for`."""
    follower = MatchFollower()
    async for state in connection.afollow(calls.watch_matching_runs(filters), follower):
        if isinstance(state, Run):
            yield state
        elif (run := follower.catch_up(await connection.asend(calls.retrieve_run(state)))) is not None:
            yield run
