"""Who reads streams from outside, with connections that are given up and taken up again, and who sends to runs. All through the real
client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec

from milepost.client import calls, run_streams
from milepost.client.run_streams import StreamValue
from milepost.client.streams import ChunkFollower
from milepost.errors import BadRequestError, UnavailableError
from simulation.records import SeenStream, SentInput
from simulation.stream_code import INPUT_KEY, KEYS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from simulation.users import User


async def read_stream(user: User, run_id: str) -> None:
    """Read a stream to its end: from anywhere, early or late, slow or quick, by one reader or several that follow each other."""
    random, simulation = user.random, user.simulation
    await asyncio.sleep(random.choice([0.0, 0.0, random.uniform(0, simulation.plan.chaos_seconds)]))
    key = random.choice(KEYS)
    start = random.choice([0, 0, 0, 1, 5, 1000, None])
    place = run_id, f"out/{key}"
    seen = SeenStream(user.name, *place, start)
    simulation.records.seen_streams.append(seen)
    counts = simulation.watch.streams.counts
    count_before = counts[place]
    follower = ChunkFollower(start)
    slowness = random.choice([0.0, 0.0, 0.1, 1.0])
    while not follower.has_ended:
        feed = _feed_of(follower, run_id, key)
        chunks = cast("AsyncGenerator[Any]", user.connection.afollow(feed, follower))
        leaves_after = random.choice([1, 2, 5, 1000])
        try:
            async for chunk in chunks:
                seen.first = chunk.index if seen.first is None else seen.first
                seen.chunks.append((chunk.index, chunk.attempt, chunk.text))
                await asyncio.sleep(slowness * random.random())
                leaves_after -= 1
                if not leaves_after:
                    break
        except UnavailableError:
            await asyncio.sleep(random.uniform(0, 2))
        finally:
            await chunks.aclose()
        while follower.has_ended and (chunk := follower.newest()) is not None:
            # What was on its way when the connection was given up.
            seen.first = chunk.index if seen.first is None else seen.first
            seen.chunks.append((chunk.index, chunk.attempt, chunk.text))
        if start is None and follower.position is not None:
            first = follower.given_index + 1 - len(seen.chunks)
            now = simulation.watch.streams.counts[place]
            assert count_before <= first <= now, (
                f"{user.name} reads what is new in {place} from {first} on, and there were {count_before} to {now} before"
            )
        if random.random() < 0.3 and not follower.has_ended and follower.position is not None:
            # Another program, that knows the index of the last chunk.
            follower = ChunkFollower(follower.given_index + 1)
    assert follower.state is not None
    seen.end = follower.given_index + 1, follower.state.value, follower.error


def _feed_of(follower: ChunkFollower, run_id: str, key: str) -> Any:
    return lambda: calls.read_stream(run_id, key, start=follower.position)


async def read_run_with_streams(user: User, run_id: str) -> None:
    """Follow a run and all its streams on one connection. Whoever has seen the end of the run has seen all of them."""
    random, simulation = user.random, user.simulation
    await asyncio.sleep(random.choice([0.0, random.uniform(0, simulation.plan.chaos_seconds)]))
    follower = run_streams._follower(run_id, True)
    seen: dict[str, SeenStream] = {}
    was_final = False
    while not follower.has_ended:
        items = cast("AsyncGenerator[Any]", user.connection.afollow(follower.feed, follower))
        leaves_after = random.choice([1, 5, 1000])
        try:
            async for item in items:
                if isinstance(item, StreamValue):
                    assert not was_final, f"{user.name} is told more of {run_id} than its end: {item}"
                    own = seen.get(item.key)
                    if own is None:
                        own = seen[item.key] = SeenStream(user.name, run_id, f"out/{item.key}", 0)
                        simulation.records.seen_streams.append(own)
                    own.chunks.append((item.index, item.attempt, msgspec.json.encode(item.value)))
                else:
                    was_final = item.status.is_final
                leaves_after -= 1
                if not leaves_after:
                    break
        except UnavailableError:
            await asyncio.sleep(random.uniform(0, 2))
        finally:
            await items.aclose()
        while follower.has_ended and (item := follower.newest()) is not None:
            # What was on its way when the connection was given up.
            if isinstance(item, StreamValue):
                own = seen.setdefault(item.key, SeenStream(user.name, run_id, f"out/{item.key}", 0))
                own.chunks.append((item.index, item.attempt, msgspec.json.encode(item.value)))
                if own not in simulation.records.seen_streams:
                    simulation.records.seen_streams.append(own)
            else:
                was_final = item.status.is_final
    assert was_final, f"{user.name}: the feed of {run_id} ended before the run"
    for place, count in simulation.watch.streams.counts.items():
        if place[0] == run_id and place[1].startswith("out/") and count:
            own = seen.get(place[1].removeprefix("out/"))
            assert own is not None, f"{user.name} has seen the end of {run_id} and nothing of {place}"
            own.is_whole = True


async def send_inputs(user: User, run_id: str) -> None:
    """Send something to a run now and then, each for as long as it takes."""
    random, simulation = user.random, user.simulation
    for number in range(random.choice([0, 1, 2, 5])):
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 3))
        sent = SentInput(run_id, f"{user.name}:{number}")
        simulation.records.inputs.append(sent)
        call = calls.send_input(run_id, INPUT_KEY, msgspec.json.encode(sent.value))
        while not sent.fate:
            try:
                await user.connection.asend(call)
                sent.fate = "acknowledged"
            except UnavailableError:
                await asyncio.sleep(0.5)
            except BadRequestError:
                assert simulation.has_ended(run_id), f"{sent} was refused, and the run has not ended"
                sent.fate = "refused"
