"""The browser's reader of lists: whatever the server's feed tells, it holds what the Python reader of the same frames holds."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from milepost.feed import streams
from milepost.feed.streams import watch_list
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.store.runs import RunFilter
from support.subscriber import FeedWorld, ListSubscriber, feed_world_at, run_async
from support.world import WorkerDouble

FOLLOW = """
async (texts) => {
  const { parse, stringify } = await import("/static/json.js");
  const { FollowedRuns } = await import("/static/feed.js");
  const followed = new FollowedRuns();
  return texts.map(([event, text]) => {
    const changed = followed.take(event, parse(text));
    if (changed === null) return null;
    return {
      changed: changed.map((run) => run.get("id")),
      order: followed.order,
      counts: stringify(followed.counts),
      runs: followed.order.map((id) => stringify(followed.runs.get(id))),
      known: followed.runs.size,
    };
  });
}
"""


@pytest.fixture
def modules(context: BrowserContext) -> Page:
    """A page of the server, from which its modules can be imported; no session is needed."""
    page = context.new_page()
    page.goto("/sign-in")
    return page


def some_operation(chance: random.Random) -> Operation:
    """One of the six on few keys; some are refused by the server, and then nobody hears of them."""
    key = chance.choice(["a", "n", "list", "$.o.x", "$.list[-1]", "$.o.list"])
    value = chance.choice([1, "ü", [1], {"x": 1}, None, 10**20, 0.5])
    return chance.choice(
        [
            Set(key, value),
            Append(key, value, chance.choice([None, 2])),
            Increment(chance.choice(["n", "$.o.n"]), chance.choice([1, -3, 10**18])),
            Increment("once", 1, f"id {chance.randrange(3)}"),
            Delete(key),
            Remove("list", value),
            Update({"n": 1, "list": []}),
        ]
    )


def told(world: FeedWorld, chance: random.Random) -> list[tuple[str, str, dict[str, Any]]]:
    """Frames of a list that much happens to: event, text, and what a reader holds afterwards."""
    worker = WorkerDouble(world)
    ids = [world.trigger(metadata={"n": number}) for number in range(3)]
    frames: list[tuple[str, str, dict[str, Any]]] = []

    async def follow() -> None:
        subscriber = ListSubscriber(watch_list(world.hub, world.reader, RunFilter(), size=4))

        async def take() -> None:
            event, frame = await subscriber.next()
            text = json.dumps(frame)
            subscriber.take_in(json.loads(text))
            held = {
                "order": subscriber.order,
                "counts": subscriber.counts,
                "runs": [subscriber.rows[run_id] for run_id in subscriber.order],
                "changed": sorted([*subscriber.whole, *subscriber.changed]),
            }
            frames.append((event, text, json.loads(json.dumps(held))))

        await take()
        for _ in range(60):
            kind = chance.randrange(8)
            if kind == 0:
                ids.append(world.trigger())
            elif kind == 1:
                for run in worker.claim(1):
                    worker.report(run, some_operation(chance))
                    if chance.random() < 0.5:
                        worker.fail(run, retry_after_ms=chance.choice([None, 0]))
            else:
                world.write(
                    chance.choice(ids[-4:]), *(some_operation(chance) for _ in range(chance.randint(1, 3)))
                )
            while await subscriber.comes_within(0.01):
                await take()
        await subscriber.close()

    run_async(follow)
    return frames


@pytest.mark.parametrize("seed", range(3))
def test_the_browser_holds_what_the_server_tells(
    modules: Page, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LIST_SECONDS", 0.001)
    with feed_world_at(tmp_path / "milepost.db") as world, ThreadPoolExecutor(1) as elsewhere:
        # Playwright has an event loop of its own in this thread.
        frames = elsewhere.submit(told, world, random.Random(seed)).result()
    assert sum(bool(json.loads(text).get("deltas")) for _, text, _ in frames) > 10
    held = modules.evaluate(FOLLOW, [[event, text] for event, text, _ in frames])
    for now, (_, _, wanted) in zip(held, frames, strict=True):
        assert now is not None
        assert (now["order"], now["known"]) == (wanted["order"], len(wanted["order"]))
        assert json.loads(now["counts"]) == wanted["counts"]
        assert sorted(now["changed"]) == wanted["changed"]
        assert json_equal([json.loads(run) for run in now["runs"]], wanted["runs"])


def test_a_frame_that_does_not_continue_what_is_here_is_noticed(modules: Page) -> None:
    run = {"id": "a", "metadata": {"n": 1}, "metadataVersion": 3, "status": "EXECUTING"}
    snapshot = ["snapshot", json.dumps({"rows": [run], "order": ["a"], "counts": {"EXECUTING": 1}})]

    def after(delta: dict[str, Any]) -> Any:
        frames = [snapshot, ["rows", json.dumps({"deltas": [delta]})]]
        return modules.evaluate(FOLLOW, frames)[1]

    increment = [{"type": "increment", "key": "n", "value": 1}]
    fitting = after(
        {"id": "a", "fromVersion": 3, "version": 4, "operations": increment, "run": {"status": "WAITING"}}
    )
    assert json.loads(fitting["runs"][0]) == {
        **run,
        "metadata": {"n": 2},
        "metadataVersion": 4,
        "status": "WAITING",
    }
    assert after({"id": "a", "fromVersion": 4, "version": 5, "operations": increment}) is None
    assert after({"id": "b", "fromVersion": 3, "version": 4, "operations": increment}) is None
    refused = [{"type": "increment", "key": "status", "value": 1}, {"type": "remove", "key": "n", "value": 1}]
    assert after({"id": "a", "fromVersion": 3, "version": 4, "operations": refused}) is None
    # A version without operations: what it held had been counted before.
    assert after({"id": "a", "fromVersion": 3, "version": 4})["changed"] == ["a"]
