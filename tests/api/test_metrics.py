"""`/metrics`: the numbers are those of what was done, their form is that of Prometheus, and a scrape costs little."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from milepost.engine.jobs import JobName
from milepost.engine.measures import Histogram
from milepost.protocol.endpoints import ENDPOINTS
from milepost.server import metric_families, metrics
from milepost.server.metric_sources import METRICS_HELP
from milepost.server.metrics import CONTENT_TYPE
from milepost.store.due_runs import due_runs
from support.served import PATIENCE_SECONDS, HttpWorker, Served, offer, set_to

Sample = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "READING_SHARE", 0)
    served = Served(tmp_path / "data")
    yield served
    served.stop()


class Scraped:
    """What one scrape has told."""

    def __init__(self, served: Served) -> None:
        answer = served.call("GET", "/metrics")
        assert answer.status == 200, answer
        self.families = list(text_string_to_metric_families(answer.body.decode()))
        self._samples: Sample = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._samples.get((name, tuple(sorted(labels.items()))))

    def names(self) -> set[str]:
        return {family.name for family in self.families}


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_every_metric_is_told_and_none_that_is_not_in_the_table(served: Served) -> None:
    worker = HttpWorker(served)
    worker.finish(worker.take(served.trigger()))
    served.trigger()
    asyncio.run_coroutine_threadsafe(served.server.upkeep.do(JobName.LEASES), served.loop).result(20)
    told = Scraped(served)
    # Counters are named without their ending by the parser.
    names = {name for name in told.names() if name.startswith("milepost_")}
    of_several = {
        "milepost_announcement_delay_seconds",
        "milepost_announcements_behind",
        "milepost_notifications_active",
    }
    assert names == {name.removesuffix("_total") for name in METRICS_HELP} - of_several
    assert {"process_resident_memory_bytes", "process_open_fds"} <= told.names()
    for name, text in METRICS_HELP.items():
        assert name.startswith("milepost_")
        assert text.endswith(".")


def test_queues_are_told_with_their_depth_and_age(served: Served) -> None:
    worker = HttpWorker(
        served, "worker_1", offer("work"), offer("other", queue="shared"), offer("third", queue="shared")
    )
    told = Scraped(served)
    assert told("milepost_queue_due_runs", queue="shared") is None
    served.trigger("other")
    for _ in range(3):
        served.trigger("third")
    served.trigger("work")
    served.clock.ahead_seconds = 100
    told = Scraped(served)
    assert told("milepost_queue_due_runs", queue="shared") == 4
    assert told("milepost_queue_due_runs", queue="task/work") == 1
    age = told("milepost_queue_oldest_due_age_seconds", queue="shared")
    assert age is not None
    assert 100 <= age < 100 + PATIENCE_SECONDS
    assert told("milepost_runs", status="QUEUED") == 5
    assert told("milepost_runs", status="COMPLETED") == 0
    assert told("milepost_queues_left_out") == 0
    for run in worker.claim(10):
        worker.finish(run)
    told = Scraped(served)
    assert told("milepost_queue_due_runs", queue="shared") is None
    assert told("milepost_queue_oldest_due_age_seconds", queue="shared") is None
    assert told("milepost_runs", status="COMPLETED") == 5
    # From due to claimed, which the clock that was set forward has made long.
    assert told("milepost_claim_wait_seconds_count") == 5
    assert told("milepost_claim_wait_seconds_bucket", le="60.0") == 0
    assert told("milepost_claim_wait_seconds_bucket", le="300.0") == 5


def test_very_many_queues_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_families, "QUEUES_MAX", 20)
    monkeypatch.setattr(metric_families, "COUNTED_MAX", 5)
    HttpWorker(served)
    items = [{"task": "work", "options": {"queue": {"name": f"queue {number:03}"}}} for number in range(50)]
    served.post("/api/v2/tasks/batch", {"items": items})
    served.post(
        "/api/v2/tasks/batch",
        {"items": [{"task": "work", "options": {"queue": {"name": "queue 003"}}}] * 10},
    )
    told = Scraped(served)
    shown = [number for number in range(50) if told("milepost_queue_due_runs", queue=f"queue {number:03}")]
    assert shown == list(range(20))
    assert told("milepost_queues_left_out") == 30
    assert told("milepost_queue_due_runs", queue="queue 003") == 5
    assert told("milepost_queue_due_runs_limit") == 5
    assert told("milepost_runs", status="QUEUED") == 60


def test_a_scrape_looks_into_indexes_and_at_kept_counts_only(served: Served) -> None:
    HttpWorker(served)
    for _ in range(3):
        served.trigger()
    store = served.server._store
    plans: list[str] = []

    def explain(statement: str, values: Any) -> None:
        with store.read() as connection:
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values):
                plans.append(row[3])

    statements: list[tuple[str, Any]] = []
    with store.read() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(lambda text: statements.append((text, ())))
        due_runs(connection, [("work", "task/work"), ("none", "none")], limit=10, now=2**60)
        driver.set_trace_callback(None)
    [(statement, _)] = [one for one in statements if one[0].startswith("SELECT")]
    explain(statement, ())
    searches = [plan for plan in plans if "runs" in plan]
    assert searches
    assert all(
        "USING COVERING INDEX runs_due" in plan or "USING INDEX runs_due" in plan for plan in searches
    ), plans


def test_who_scrapes_often_gets_the_same_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 3600.0)
    readings: list[int] = []
    read = metric_families._ServerCollector._read
    monkeypatch.setattr(
        metric_families._ServerCollector, "_read", lambda self: readings.append(1) or read(self)
    )
    first = served.call("GET", "/metrics").body
    assert all(served.call("GET", "/metrics").body == first for _ in range(5))
    assert len(readings) == 1


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=1.0.0",
        "text/plain;version=abc",
        "application/openmetrics-text;version=",
        ";;;=,",
        "x" * 5000,
    ],
    ids=lambda accept: accept[:20],
)
def test_whatever_form_is_asked_for_the_same_is_told(served: Served, accept: str) -> None:
    answer = served.call("GET", "/metrics", headers={"accept": accept})
    assert answer.status == 200
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert "milepost_ready" in {
        family.name for family in text_string_to_metric_families(answer.body.decode())
    }


def test_requests_are_counted_by_route_and_never_by_what_was_asked(served: Served) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    before = Scraped(served)
    for _ in range(3):
        served.get(f"/api/v3/runs/{run_id}")
    for number in range(5):
        served.call("GET", f"/api/v3/runs/run_{number}")
        served.call("GET", f"/nothing/{number}")
    served.call("GET", f"/api/v3/runs/{run_id}", key=None)
    told = Scraped(served)

    def more(name: str, **labels: str) -> float:
        return (told(name, **labels) or 0) - (before(name, **labels) or 0)

    route = {"method": "GET", "route": "/api/v3/runs/{run}"}
    assert more("milepost_http_requests_total", **route, status="200") == 3
    assert more("milepost_http_requests_total", **route, status="404") == 5
    assert more("milepost_http_requests_total", **route, status="401") == 1
    assert more("milepost_http_request_seconds_count", **route) == 9
    assert more("milepost_http_requests_total", method="", route="", status="404") == 5
    known = {endpoint.path for endpoint in ENDPOINTS} | {""}
    for family in told.families:
        for sample in family.samples:
            assert sample.labels.get("route", "") in known
            assert run_id not in str(sample.labels)


def test_subscribers_lag_claims_and_reports_are_told(served: Served) -> None:
    worker = HttpWorker(served)
    run_id = served.trigger()
    run = worker.take(run_id)
    path = "/api/v1/runs/{run}/feed"
    with served.events(f"/api/v1/runs/{run_id}/feed") as feed:
        feed.next()
        until(lambda: Scraped(served)("milepost_subscribers", route=path) == 1)
        for number in range(5):
            worker.report(run, set_to("number", number))
            feed.until(lambda event, data, number=number: data.get("version") == number + 1)
        # The last one is known to be sent when its reader's turn comes again.
        until(lambda: (Scraped(served)("milepost_feed_lag_seconds_count", feed="run") or 0) >= 4)
        told = Scraped(served)
        total = told("milepost_feed_lag_seconds_sum", feed="run")
        assert total is not None
        assert 0 < total < 5 * PATIENCE_SECONDS
    until(lambda: Scraped(served)("milepost_subscribers", route=path) == 0)
    assert told("milepost_report_seconds_count") == 5
    commits = told("milepost_commit_seconds_count")
    assert commits is not None
    assert commits >= 8
    assert told("milepost_commit_commands_count") == commits
    assert told("milepost_parked_claims") == 0


def test_jobs_of_the_upkeep_are_told(served: Served) -> None:
    def do(job: JobName) -> None:
        asyncio.run_coroutine_threadsafe(served.server.upkeep.do(job), served.loop).result(20)

    worker = HttpWorker(served)
    run_id = served.trigger()
    worker.report(worker.take(run_id), set_to("a", 1))
    before = Scraped(served)
    served.put_metadata(run_id, {"type": "set", "key": "b", "value": 1})
    do(JobName.INDEX)
    do(JobName.ANSWERS)
    told = Scraped(served)
    done = told("milepost_upkeep_done_total", job="index")
    assert done is not None
    assert done >= 1
    rounds = (before("milepost_upkeep_rounds_total", job="index") or 0) + 1
    assert (told("milepost_upkeep_rounds_total", job="index") or 0) >= rounds
    at = told("milepost_upkeep_last_done_timestamp_seconds", job="index")
    assert at is not None
    assert abs(at - time.time()) < PATIENCE_SECONDS
    assert told("milepost_upkeep_done_total", job="history") == 0


def test_a_database_that_is_away_takes_the_rest_away_from_nobody(served: Served, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    told = Scraped(served)
    assert told("milepost_database_up") == 0
    assert told("milepost_runs", status="QUEUED") is None
    assert told("milepost_commit_seconds_count") is not None
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    assert Scraped(served)("milepost_database_up") == 1


def test_who_may_scrape(served: Served, tmp_path: Path) -> None:
    assert served.call("GET", "/metrics", key=None).status == 401
    assert served.call("GET", "/metrics", key="wrong").status == 401
    token = served.post("/api/v1/auth/public-tokens", {"scopes": ["read:runs", "admin"]})["token"]
    assert served.call("GET", "/metrics", key=token).status == 403
    opened = Served(tmp_path / "open", metrics="open")
    try:
        answer = opened.call("GET", "/metrics", key=None)
        assert answer.status == 200
        assert b"tr_dev_test_key" not in answer.body
        # Nothing else is opened by it.
        assert opened.call("GET", "/api/v1/runs", key=None).status == 401
    finally:
        opened.stop()


def test_a_histogram_counts_what_is_at_a_bound_below_it() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0, 1, 1.5, 2, 5, 5.1, 100):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 2]
    assert histogram.total == pytest.approx(114.6)
