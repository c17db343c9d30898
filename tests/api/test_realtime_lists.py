"""The feeds of tags and batches that the official JavaScript clients poll (protocol, section 7)."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from api.test_watching import watching
from milepost.protocol.tokens import claims_of, sign
from milepost.server import realtime
from support.served import KEY, Answer, HttpWorker, Served, set_to

UP_TO_DATE = {"headers": {"control": "up-to-date"}}


@pytest.fixture
def tag() -> str:
    """A tag of this test's own."""
    return f"tag {time.monotonic_ns()}"


class Follower:
    """Polls as the official client does, and keeps what it is told."""

    def __init__(self, served: Served, path: str, *, key: str = KEY, **query: str) -> None:
        self.served = served
        self.path = path
        self.key = key
        self.query = query
        self.place: dict[str, str] = {"offset": "-1"}
        self.rows: dict[str, dict[str, Any]] = {}
        self.told: list[str] = []

    def poll(self, *, live: bool = False) -> Answer:
        """One request. What it told is the last of `told`."""
        query = {
            "log": "full",
            **self.query,
            **self.place,
            **({"live": "true", "cursor": ""} if live else {}),
        }
        answer = self.served.call("GET", self.path, key=self.key, query=query)
        assert answer.status == 200, answer.body
        assert ("electric-cursor" if live else "electric-schema") in answer.headers
        self.place = {name: answer.headers[f"electric-{name}"] for name in ("offset", "handle")}
        messages = answer.json
        assert ("electric-up-to-date" in answer.headers) == (messages[-1:] == [UP_TO_DATE])
        for message in messages:
            if message != UP_TO_DATE:
                self.rows.setdefault(message["key"], {}).update(message["value"])
        self.told.append(" ".join(message["key"] for message in messages if message != UP_TO_DATE))
        return answer

    def _waiting(self) -> int:
        return sum(bool(watch.wake._waiters) for watch in list(self.served.server.hub.rows))

    def until_told(self, change: Callable[[], Any]) -> str:
        """Make a change while a poll waits; which runs that poll has told."""
        thread = threading.Thread(target=lambda: self.poll(live=True))
        before = self._waiting()
        thread.start()
        while self._waiting() <= before:
            assert thread.is_alive(), f"there was something to tell before the change: {self.told[-1]}"
            time.sleep(0.001)
        change()
        thread.join(60)
        assert not thread.is_alive()
        return self.told[-1]


def tagged(served: Served, *tags: str, key: str = KEY, **query: str) -> Follower:
    return Follower(served, "/realtime/v1/runs", key=key, tags=",".join(tags), **query)


def token(scopes: list[str], *skipped: str, keys: list[str] | None = None) -> str:
    now = int(time.time())
    realtime = {"skipColumns": list(skipped)} if skipped else None
    claims = claims_of(scopes, now=now, expires_at=now + 60, metadata_keys=keys, realtime=realtime)
    return sign(claims, KEY.encode())


def test_each_change_of_a_tagged_run_is_told_once(served: Served, worker: HttpWorker, tag: str) -> None:
    first = served.trigger(tags=[tag], metadata={"n": 0})
    served.trigger(tags=["other"])
    run = worker.take(first)
    follower = tagged(served, tag)
    assert follower.poll().json[0]["headers"] == {"operation": "insert"}
    assert follower.told == [first]
    assert follower.until_told(lambda: worker.report(run, set_to("n", 1))) == first
    part = {"run": first, "key": "words", "writer": "w", "chunks": [1]}
    write = {"runs": [{"id": first, "attempt": 1, "parts": [part]}]}
    assert follower.until_told(lambda: served.post(f"/api/v1/workers/{worker.id}/chunks", write)) == first
    assert follower.rows[first]["realtimeStreams"] == '{"words"}'
    made: list[str] = []
    assert follower.until_told(lambda: made.append(served.trigger(tags=[tag]))) == made[0]
    assert follower.until_told(lambda: worker.finish(run, output="7")) == first
    row = follower.rows[first]
    assert (row["status"], row["output"], row["metadata"]) == ("COMPLETED_SUCCESSFULLY", "7", '{"n":1}')
    assert set(follower.rows) == {first, made[0]}
    # A tab that is seen again asks without waiting.
    follower.poll()
    assert follower.told[-1] == ""


def test_a_quiet_poll_and_other_runs_changes(
    served: Served, worker: HttpWorker, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "POLL_SECONDS", 0.5)
    mine, other = served.trigger(tags=[tag]), worker.take(served.trigger(tags=["other"]))
    follower = tagged(served, tag)
    follower.poll()
    timer = threading.Timer(0.1, lambda: worker.finish(other))
    timer.start()
    began = time.monotonic()
    place = dict(follower.place)
    follower.poll(live=True)
    assert time.monotonic() - began >= 0.5
    assert (follower.told, follower.place) == ([mine, ""], place)


def test_several_tags_mean_all_of_them(served: Served, worker: HttpWorker, tag: str) -> None:
    both = served.trigger(tags=[tag, "b", "c"])
    served.trigger(tags=[tag])
    served.trigger(tags=["b"])
    follower = tagged(served, tag, "b")
    follower.poll()
    assert list(follower.rows) == [both]
    assert list(tagged(served, f"{tag}x", "b").poll().json) == [UP_TO_DATE]


def test_how_old_runs_may_be_is_settled_with_the_first_answer(
    served: Served, worker: HttpWorker, tag: str
) -> None:
    old = served.trigger(tags=[tag])
    clock = served.clock
    ahead = clock.ahead_seconds
    try:
        clock.ahead_seconds += 3000
        new = served.trigger(tags=[tag])
        short, long = tagged(served, tag, createdAt="10m"), tagged(served, tag)
        short.poll()
        long.poll()
        assert (set(short.rows), set(long.rows)) == ({new}, {old, new})
        clock.ahead_seconds += 3000
        newest = served.trigger(tags=[tag])
        short.poll()
        assert set(short.rows) == {new, newest}
        again = tagged(served, tag, createdAt="10m")
        again.poll()
        assert set(again.rows) == {newest}
    finally:
        clock.ahead_seconds = ahead
    for span in ("soon", "1", "-1d", "1y", "99999999999d"):
        answer = served.call("GET", "/realtime/v1/runs", query={"tags": tag, "createdAt": span})
        assert (answer.status, answer.json["code"]) == (400, "bad_request"), span
        assert "createdAt" in json.dumps(answer.json)


@pytest.mark.parametrize("offset", ["5_7", "x", "_", "-2", "0_0", "9" * 40 + "_1", "1_" + "9" * 300, "é"])
def test_an_offset_of_another_feed_begins_anew(
    served: Served, worker: HttpWorker, tag: str, offset: str
) -> None:
    run_id = served.trigger(tags=[tag])
    for live in (False, True):
        follower = tagged(served, tag)
        follower.place = {"offset": offset, "handle": "runs-0"}
        follower.poll(live=live)
        assert follower.told == [run_id]


def test_a_feed_that_is_gone_loses_nothing(
    served: Served, worker: HttpWorker, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because nobody has polled it for long, or because the server has started anew."""
    monkeypatch.setattr(realtime, "LINGER_SECONDS", 0.01)
    run_id = served.trigger(tags=[tag], metadata={"n": 0})
    follower = tagged(served, tag)
    follower.poll()
    served.put_metadata(run_id, set_to("n", 1))
    until_let_go(served, tag)
    follower.poll(live=True)
    assert follower.told == [run_id, run_id]
    assert follower.rows[run_id]["metadata"] == '{"n":1}'


def test_many_bytes_come_in_several_answers(
    served: Served, worker: HttpWorker, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "ANSWER_BYTES", 2500)
    runs = [served.trigger(tags=[tag], metadata={"text": "x" * 1000}) for _ in range(7)]
    follower = tagged(served, tag)
    while "electric-up-to-date" not in follower.poll().headers:
        pass
    assert " ".join(filter(None, follower.told)) == " ".join(runs)
    assert len(follower.told) > 2


@pytest.mark.parametrize("query", ["", "tags=", "tags=,,", "createdAt=1h"])
def test_without_tags_nothing_is_told(served: Served, worker: HttpWorker, query: str) -> None:
    """A page that has lost its user's id is not shown everybody's runs."""
    served.trigger(tags=["a"])
    answer = served.call("GET", f"/realtime/v1/runs?offset=-1&{query}")
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "bad_request", "tags")


def test_feeds_are_let_go(
    served: Served, worker: HttpWorker, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(realtime, "FEEDS_MAX", 3)
    for number in range(5):
        served.trigger(tags=[f"{tag}{number}"])
        tagged(served, f"{tag}{number}").poll()
        assert len(feeds_of(served, tag)) <= 3
    until_let_go(served, tag)


def until_let_go(served: Served, tag: str) -> None:
    deadline = time.monotonic() + 10
    while feeds_of(served, tag):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def feeds_of(served: Served, tag: str) -> list[str]:
    return [
        name for watch in list(served.server.hub.rows) for name in watch.filter.tags if name.startswith(tag)
    ]


def test_a_batch(served: Served, worker: HttpWorker) -> None:
    made = served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}, {"task": "work"}]})
    served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}]})
    follower = Follower(served, f"/realtime/v1/batches/{made['id']}", key=token([f"read:batch:{made['id']}"]))
    follower.poll()
    assert follower.told == [" ".join(made["runs"])]
    run = worker.take(made["runs"][1])
    follower.poll()
    assert follower.until_told(lambda: worker.finish(run)) == made["runs"][1]
    answer = served.call("GET", "/realtime/v1/batches/batch_unknown?offset=-1")
    assert (answer.status, answer.json["code"]) == (404, "batch_not_found")
    for scopes in (["read:batch:other"], [f"read:runs:{made['runs'][0]}"], ["read:tags:a"]):
        answer = served.call("GET", f"/realtime/v1/batches/{made['id']}?offset=-1", key=token(scopes))
        assert answer.status == 403, scopes


def test_a_token_shows_its_runs_and_nothing_else(served: Served, worker: HttpWorker, tag: str) -> None:
    mine = served.trigger(tags=[tag, "shared"])
    other = served.trigger(tags=[f"{tag}:other", "shared"])
    bearer = token([f"read:tags:{tag}"])
    for tags in ((tag,), ("shared",)):
        follower = tagged(served, *tags, key=bearer)
        follower.poll()
        assert list(follower.rows) == [mine], tags
    follower = tagged(served, f"{tag}:other", key=bearer)
    follower.poll()
    assert follower.rows == {}
    # With its handle and offset somebody else sees no more.
    whole = tagged(served, "shared")
    whole.poll()
    assert {mine, other} <= whole.rows.keys()
    thief = tagged(served, "shared", key=bearer)
    thief.place = whole.place
    thief.poll()
    assert list(thief.rows) == [mine]


def test_hidden_keys_and_skipped_columns_are_not_told_at_all(
    served: Served, worker: HttpWorker, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "POLL_SECONDS", 0.4)
    run_id = served.trigger(tags=[tag], metadata={"shown": 1, "hidden": "secret"}, payload='"secret"')
    bearer = token([f"read:tags:{tag}"], "payload", "error", keys=["shown"])
    skipping = tagged(
        served, tag, key=token([f"read:tags:{tag}"], "metadata"), skipColumns="payload,nothing,id"
    )
    single = Follower(served, f"/realtime/v1/runs/{run_id}", key=bearer)
    several = tagged(served, tag, key=bearer)
    for follower in (skipping, single, several):
        assert "secret" not in follower.poll().body.decode()
        assert {"id", "friendlyId", "status"} <= follower.rows[run_id].keys()
        served.put_metadata(run_id, set_to("hidden", follower.path))
        follower.poll(live=True)
        assert follower.told == [run_id, ""], follower.path
    assert several.rows[run_id]["metadata"] == single.rows[run_id]["metadata"] == '{"shown":1}'
    assert {"metadata", "payload"}.isdisjoint(skipping.rows[run_id])
    assert {"payload", "error"}.isdisjoint(several.rows[run_id])
    assert several.until_told(lambda: served.put_metadata(run_id, set_to("shown", 2))) == run_id


def test_our_own_lists_leave_skipped_columns_out_too(served: Served, worker: HttpWorker, tag: str) -> None:
    """As the feed of one run does; also in what changes, of children, and on the connection of a page."""
    parent = served.trigger()
    run = worker.take(served.trigger(tags=[tag], metadata={"a": "secret"}, parentRunId=parent))
    bearer = token([f"read:tags:{tag}", f"read:runs:{parent}"], "error", "metadata")
    with (
        served.events("/api/v1/feed/runs", key=bearer) as rows,
        served.events("/api/v1/feed/matching-runs", key=bearer) as matching,
        served.events(f"/api/v1/runs/{parent}/feed?children=5", key=bearer) as family,
        watching(served, {"tag": tag}, {"run": run["id"]}, key=bearer) as page,
    ):
        feeds = (rows, matching, family, page)
        seen = [json.dumps(feed.next()) for feed in feeds]
        worker.fail(run, "the secret is out")
        for number, feed in enumerate(feeds):
            while "FAILED" not in seen[number]:
                seen[number] += json.dumps(feed.next())
    with served.events("/api/v1/feed/runs", key=bearer) as again:
        seen.append(json.dumps(again.next()))
    assert "FAILED" in seen[-1]
    assert [text for text in seen if "secret" in text] == []
