"""The module in a page of another origin, with nothing but a token: runs, tags, streams, metadata."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3
from playwright.sync_api import BrowserContext, Page

import milepost.server.client
from browser.conftest import Tokens
from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, append, increment, set_, until_unwatched

FILES = Path(milepost.server.client.__file__).parent
GZIP_BYTES_MAX = 15_000
VECTORS = Path(__file__).parents[1] / "vectors"

COLLECT = """
([name, ...args]) => {
  window.seen = [];
  window.states = [];
  window.done = null;
  const [options] = args.splice(-1);
  (async () => {
    for await (const item of milepost[name](...args, { ...options, onConnection: (state) => states.push(state) })) seen.push(item);
  })().then(() => { done = "ended"; }, (error) => { done = { name: error.name, status: error.status, message: error.message }; });
}
"""


def test_the_module_is_small() -> None:
    assert len(gzip.compress((FILES / "milepost.js").read_bytes(), 9)) < GZIP_BYTES_MAX


@pytest.mark.parametrize(
    ("name", "kind"),
    [("milepost.js", "text/javascript; charset=utf-8"), ("milepost.d.ts", "text/plain; charset=utf-8")],
)
def test_files_are_served_to_every_origin_and_kept_by_their_tag(
    server: RunningServer, name: str, kind: str
) -> None:
    url = f"{server.url}/client/{name}"
    answer = urllib3.request("GET", url, headers={"origin": "https://anyone.example"})
    assert (answer.status, answer.data) == (200, (FILES / name).read_bytes())
    assert answer.headers["content-type"] == kind
    assert answer.headers.getlist("access-control-allow-origin") == ["*"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    for known, status in ((tag, 304), (f'"other", W/{tag}', 304), ('"other"', 200)):
        again = urllib3.request("GET", url, headers={"if-none-match": known})
        assert (again.status, again.headers["etag"]) == (status, tag)
        assert bool(again.data) == (status == 200)
    assert urllib3.request("HEAD", url).status == 200
    assert urllib3.request("POST", url).status == 405


def test_a_run_is_watched_to_its_end(client: Page, worker: FakeWorker, tokens: Tokens) -> None:
    run_id = worker.start("work", json.dumps({"rows": 3}))
    client.evaluate(COLLECT, ["watch", run_id, {"token": tokens.run(run_id)}])
    client.wait_for_function("seen.length === 1")
    worker.report(run_id, set_("progress", 0.5), append("steps", "one"), set_("$.user.name", "Ada"))
    client.wait_for_function("seen.at(-1).metadata.progress === 0.5")
    worker.report(run_id, increment("count", 2), append("steps", "two"), set_("$.user.id", 7))
    worker.complete(run_id, '{"ok": true}')
    client.wait_for_function("done === 'ended'")
    last = client.evaluate("seen.at(-1)")
    assert last["metadata"] == {
        "progress": 0.5,
        "steps": ["one", "two"],
        "user": {"name": "Ada", "id": 7},
        "count": 2,
    }
    assert (last["status"], last["output"], last["isSuccess"]) == ("COMPLETED", {"ok": True}, True)
    assert client.evaluate("seen[0].metadata") == {}
    assert client.evaluate("states") == ["connecting", "live", "ended"]


def test_the_callback_form_stops(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    client.evaluate(
        "([id, token]) => { window.seen = []; window.stop = milepost.watch(id, { token }, (run) => seen.push(run)); }",
        [run_id, tokens.run(run_id)],
    )
    client.wait_for_function("seen.length === 1")
    client.evaluate("stop()")
    until_unwatched(server)
    worker.report(run_id, set_("progress", 1))
    assert client.evaluate("seen.length") == 1


def test_a_signal_ends_an_iteration(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    found = client.evaluate(
        """async ([id, token]) => {
          const controller = new AbortController();
          try {
            for await (const run of milepost.watch(id, { token, signal: controller.signal })) controller.abort();
          } catch (error) { return error.name; }
        }""",
        [run_id, tokens.run(run_id)],
    )
    assert found == "AbortError"
    until_unwatched(server)


def test_a_loop_that_is_left_gives_the_connection_back(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    client.evaluate(
        "async ([id, token]) => { for await (const run of milepost.watch(id, { token })) break; }",
        [run_id, tokens.run(run_id)],
    )
    until_unwatched(server)


@pytest.mark.parametrize("kind", ["expired", "foreign", "rubbish", "unknown run", "none"])
def test_what_cannot_be_shown_is_said(client: Page, worker: FakeWorker, tokens: Tokens, kind: str) -> None:
    run_id, other = worker.start("work"), worker.start("work")
    token: str | None = {
        "expired": tokens.run(run_id, expires_in=time.time() + 1) if kind == "expired" else "",
        "foreign": tokens.run(other),
        "rubbish": "ey.e30.x",
        "unknown run": tokens.make({"read": {"runs": True}}),
        "none": None,
    }[kind]
    if kind == "expired":
        time.sleep(1.1)  # Tokens count whole seconds of the wall clock.
    watched = "run_nobody" if kind == "unknown run" else run_id
    client.evaluate(COLLECT, ["watch", watched, {"token": token}])
    client.wait_for_function("done !== null")
    done = client.evaluate("done")
    assert done["name"] == "MilepostError"
    assert done["status"] == {"foreign": 403, "unknown run": 404}.get(kind, 401)
    words = {
        "expired": "expired",
        "foreign": "read on runs",
        "unknown run": "run_nobody",
        "none": "secret key",
    }
    assert words.get(kind, "invalid") in done["message"]
    assert client.evaluate("seen") == []
    assert client.evaluate("states.at(-1)") == "refused"


def test_a_bad_token_of_one_does_not_harm_the_others(
    client: Page, worker: FakeWorker, tokens: Tokens
) -> None:
    runs = [worker.start("work") for _ in range(4)]
    credentials = ["ey.e30.x", tokens.run(runs[1]), tokens.run(runs[0]), tokens.run(runs[3])]
    client.evaluate(
        """(pairs) => {
          window.told = {};
          for (const [id, token] of pairs) {
            milepost.watch(id, { token, onError: (error) => { told[id] = error.status; } }, (run) => { told[id] = run.status; });
          }
        }""",
        list(zip(runs, credentials, strict=True)),
    )
    client.wait_for_function("Object.keys(told).length === 4")
    assert client.evaluate("told") == {runs[0]: 401, runs[1]: "EXECUTING", runs[2]: 403, runs[3]: "EXECUTING"}


def test_a_token_that_has_expired_is_asked_for_again(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    short, long = tokens.run(run_id, expires_in=time.time() + 2), tokens.run(run_id)
    client.evaluate(
        """([id, short, long]) => {
          window.asked = 0;
          window.newest = null;
          milepost.watch(id, { token: async () => (asked++ === 0 ? short : long) }, (run) => { newest = run; });
        }""",
        [run_id, short, long],
    )
    client.wait_for_function("newest !== null")
    time.sleep(2.1)
    server.stop()
    server.start()
    worker.register()
    worker.report(run_id, set_("progress", 1))
    client.wait_for_function("newest.metadata.progress === 1")
    assert client.evaluate("asked") == 2


def test_runs_with_a_tag(client: Page, worker: FakeWorker, tokens: Tokens) -> None:
    first, other = worker.trigger("work", tags=["user:1"]), worker.trigger("work", tags=["user:2"])
    worker.claim()
    token = tokens.make({"read": {"tags": ["user:1"]}})
    client.evaluate(
        """(token) => {
          window.told = {};
          window.isPresent = false;
          milepost.watchTag("user:1", { token, period: "1d", onPresent: () => { isPresent = true; } }, (run) => {
            told[run.id] = [run.status, run.metadata];
          });
        }""",
        token,
    )
    client.wait_for_function("isPresent")
    worker.report(first, set_("progress", 0.25))
    worker.report(other, set_("progress", 0.75))
    second = worker.start("work", tags=["user:1"])
    worker.report(first, increment("progress", 0.25))
    worker.complete(first)
    client.wait_for_function(f"told['{first}']?.[0] === 'COMPLETED' && told['{second}']?.[0] === 'EXECUTING'")
    assert client.evaluate("told") == {first: ["COMPLETED", {"progress": 0.5}], second: ["EXECUTING", {}]}
    client.evaluate(
        "(token) => milepost.watchTag('user:2', { token, onError: (e) => { window.no = e.status; } }, (r) => { window.no = r; })",
        token,
    )
    # A tag that the token does not show has no runs for it, as in a list.
    worker.report(other, set_("progress", 1))
    worker.report(second, set_("progress", 1))
    client.wait_for_function(f"told['{second}'][1].progress === 1")
    assert client.evaluate("window.no") is None


def test_metadata_is_written(client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens) -> None:
    run_id = worker.start("work")
    token = tokens.make(
        {"read": {"runs": [run_id]}, "write": {"metadata": {run_id: ["approved", "votes", "log"]}}}
    )
    found = client.evaluate(
        """async ([id, token]) => {
          const writer = milepost.metadata(id, { token });
          const document = await writer.set("approved", true).increment("votes", 2).append("log", { by: "Ada" });
          await milepost.metadata(id, { token }).decrement("votes").send();
          const failures = [];
          for (const [key, value] of [["other", 1], ["votes", NaN], ["log", undefined], ["", 1]]) {
            try { await writer.set(key, value); failures.push(null); }
            catch (error) { failures.push([error.name, error.status ?? 0]); }
          }
          try { await milepost.metadata(id, { token }).increment("log").set("approved", false); }
          catch (error) { failures.push([error.code, error.refused.length]); }
          return [document, failures];
        }""",
        [run_id, token],
    )
    assert found[0] == {"approved": True, "votes": 2, "log": [{"by": "Ada"}]}
    assert found[1] == [
        ["MilepostError", 403],
        ["TypeError", 0],
        ["TypeError", 0],
        ["TypeError", 0],
        ["wrong_metadata_type", 1],
    ]
    document = server.request("GET", f"/api/v1/runs/{run_id}/metadata")["metadata"]
    assert document == {"approved": False, "votes": 1, "log": [{"by": "Ada"}]}


def test_vectors_of_operations(client: Page) -> None:
    """What the server sends has been applied there, so the cases are those in which nothing was refused."""
    cases: list[dict[str, Any]] = []
    for name in ("operations.json", "reference.json"):
        content = json.loads((VECTORS / name).read_text(encoding="utf-8"))
        cases += [*content["cases"], *content.get("differs", [])]
    # Ids that were counted before are not in the log; integers beyond 2^53 are not JavaScript's.
    cases = [
        case
        for case in cases
        if not case["refusals"] and not case.get("counted") and '"once"' not in json.dumps(case)
    ]
    cases = [case for case in cases if not _has_large(case)]
    assert len(cases) > 50
    results = client.evaluate(
        """(cases) => cases.map(({ before, operations }) => {
          const untouched = JSON.stringify(before);
          const after = milepost.applyOperations(before, operations);
          return [after, JSON.stringify(before) === untouched];
        })""",
        cases,
    )
    for case, (after, is_pure) in zip(cases, results, strict=True):
        assert after == case["after"], case
        assert is_pure, case


def _has_large(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_large, value.values()))
    if isinstance(value, list):
        return any(map(_has_large, value))
    return isinstance(value, int | float) and abs(value) > 2**53


def test_a_stream_is_read_in_order_and_to_its_end(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "a/b ö")
    writer.write("a", {"b": 1}, {"$bytes": "AAE="})
    client.evaluate(COLLECT, ["stream", run_id, "a/b ö", {"token": tokens.run(run_id), "records": True}])
    client.wait_for_function("seen.length === 3")
    writer.write("c", end=True)
    client.wait_for_function("done === 'ended'")
    found = client.evaluate(
        "seen.map(({ value, index, attempt, at }) => [value instanceof Uint8Array ? [...value] : value, index, attempt, at > 0])"
    )
    assert found == [["a", 0, 1, True], [{"b": 1}, 1, 1, True], [[0, 1], 2, 1, True], ["c", 3, 1, True]]
    client.evaluate(COLLECT, ["stream", run_id, "a/b ö", {"token": tokens.run(run_id), "start": 3}])
    client.wait_for_function("done === 'ended'")
    assert client.evaluate("seen") == ["c"]


def test_a_reader_that_is_slow_misses_nothing(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "rows")
    for first in range(0, 40_000, 8000):
        writer.write(*range(first, first + 8000), end=first == 32_000)
    client.evaluate(
        """([id, token]) => {
          window.iteration = milepost.stream(id, "rows", { token })[Symbol.asyncIterator]();
          return iteration.next();
        }""",
        [run_id, tokens.run(run_id)],
    )
    # What waits in the page is bounded: the rest stays on the server until it is wanted.
    client.wait_for_function("iteration.watch.isPaused")
    assert client.evaluate("iteration.items.size") <= 10_001
    total = client.evaluate(
        """async () => {
          let next = 1;
          for (;;) {
            const { done, value } = await iteration.next();
            if (done) return next;
            if (value !== next) throw new Error(`${value} instead of ${next}`);
            next += 1;
          }
        }"""
    )
    assert total == 40_000


def test_the_server_restarts_and_the_network_goes(
    client: Page, context: BrowserContext, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "tokens")
    writer.write(0, 1, 2)
    client.evaluate(COLLECT, ["stream", run_id, "tokens", {"token": tokens.run(run_id)}])
    client.evaluate(
        "([id, token]) => { milepost.watch(id, { token }, (run) => { window.newest = run; }); }",
        [run_id, tokens.run(run_id)],
    )
    client.wait_for_function("seen.length === 3 && window.newest")
    server.stop()
    client.wait_for_function("states.at(-1) === 'reconnecting'")
    server.start()
    worker.register()
    writer.write(3, 4)
    worker.report(run_id, append("steps", 1))
    client.wait_for_function("seen.length === 5 && newest.metadata.steps?.length === 1")
    context.set_offline(True)
    client.wait_for_function("states.at(-1) === 'reconnecting'")
    writer.write(5, 6)
    worker.report(run_id, append("steps", 2))
    context.set_offline(False)
    client.wait_for_function("seen.length === 7 && newest.metadata.steps.length === 2")
    writer.write(7, end=True)
    client.wait_for_function("done === 'ended'")
    assert client.evaluate("seen") == list(range(8))
