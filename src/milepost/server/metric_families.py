"""The numbers of a server as metrics of Prometheus. Loaded when somebody asks for them for the first time."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from milepost.engine.measures import Histogram
from milepost.errors import UnavailableError
from milepost.model.run import RunStatus
from milepost.server.metric_sources import METRICS_HELP, Sources
from milepost.server.traffic import RouteMeasures
from milepost.store.announcements import newest_announcement
from milepost.store.due_runs import DueRuns, due_runs
from milepost.store.run_counts import ALL, load_counts

logger = logging.getLogger("milepost.server")

# Queues that are told one by one, and places (a task and a queue) that are looked at for them.
QUEUES_MAX = 1000
PLACES_MAX = 2000
# Due runs that are counted of one place, and of all together, though of each at least a few.
COUNTED_MAX = 10_000
COUNTED_TOGETHER = 100_000
COUNTED_LEAST = 50


class MetricFamilies:
    """All metrics of the server and of its process.

    Args:
        clock: the engine's wall clock, microseconds since 1970.
    """

    def __init__(self, sources: Sources, clock: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(sources, clock))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """As text, with the numbers of this moment. Any thread may call it."""
        return generate_latest(self._registry)


class _Reading(msgspec.Struct, frozen=True):
    """What was read of the database."""

    counts: Mapping[str, int]
    due: Sequence[DueRuns]
    limit: int
    left_out: int
    now: int
    newest_announcement: int | None


class _ServerCollector(Collector):
    """Puts the numbers into metrics, in a thread: each is read in one step."""

    def __init__(self, sources: Sources, clock: Callable[[], int]) -> None:
        self._sources = sources
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on nothing that is registered beside it."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the server."""
        sources = self._sources
        database = "postgresql" if sources.store.is_shared else "sqlite"
        build = _gauge("milepost_build_info", ["version", "database"])
        build.add_metric([sources.version, database], 1)
        yield build
        yield _value("milepost_ready", sources.readiness.is_ready)
        yield _value("milepost_draining", sources.readiness.is_draining)
        yield from self._of_database()
        yield from self._of_commits()
        yield from self._of_feeds()
        yield from self._of_requests()
        yield from self._of_upkeep()

    def _of_database(self) -> Iterator[Metric]:
        store = self._sources.store
        try:
            reading = self._read()
        except (UnavailableError, SQLAlchemyError) as error:
            logger.debug("the database cannot be read for metrics now: %s", error)
            reading = None
        yield _value("milepost_database_up", reading is not None)
        connections = _gauge("milepost_database_connections", ["state"])
        in_use = store.readers_in_use
        connections.add_metric(["in_use"], in_use)
        connections.add_metric(["free"], store.reader_count - in_use)
        yield connections
        if reading is None:
            return
        runs = _gauge("milepost_runs", ["status"])
        for status in RunStatus:
            runs.add_metric([status], reading.counts.get(status, 0))
        yield runs
        depth = _gauge("milepost_queue_due_runs", ["queue"])
        age = _gauge("milepost_queue_oldest_due_age_seconds", ["queue"])
        counts: dict[str, int] = {}
        oldest: dict[str, int] = {}
        for due in reading.due:
            counts[due.queue] = counts.get(due.queue, 0) + due.count
            oldest[due.queue] = min(oldest.get(due.queue, due.oldest_at), due.oldest_at)
        for queue, count in counts.items():
            depth.add_metric([queue], count)
            age.add_metric([queue], max(0, reading.now - oldest[queue]) / 1_000_000)
        yield depth
        yield age
        yield _value("milepost_queue_due_runs_limit", reading.limit)
        yield _value("milepost_queues_left_out", reading.left_out)
        heard = self._sources.engine.heard_number
        if reading.newest_announcement is not None and heard is not None:
            yield _value("milepost_announcements_behind", max(0, reading.newest_announcement - heard))

    def _read(self) -> _Reading:
        state = self._sources.engine.state
        pairs = set(state.keyed.copy())
        places = sorted({*state.places.copy(), *pairs}, key=lambda place: (place[1], place[0]))
        queues = list(dict.fromkeys(queue for _, queue in places))
        # Always the same ones, so that what is told of a queue has no gaps.
        told = set(queues[:QUEUES_MAX])
        looked_at = [place for place in places if place[1] in told][:PLACES_MAX]
        limit = COUNTED_MAX
        if looked_at:
            limit = min(COUNTED_MAX, max(COUNTED_LEAST, COUNTED_TOGETHER // len(looked_at)))
        store, now = self._sources.store, self._clock()
        with store.read() as connection:
            return _Reading(
                load_counts(connection, ALL),
                [
                    *due_runs(connection, looked_at, limit=limit, now=now),
                    *due_runs(
                        connection,
                        [place for place in looked_at if place in pairs],
                        limit=limit,
                        now=now,
                        keyed=True,
                    ),
                ],
                limit,
                len(queues) - len({queue for _, queue in looked_at}),
                now,
                newest_announcement(connection) if store.is_shared else None,
            )

    def _of_commits(self) -> Iterator[Metric]:
        engine, committer = self._sources.engine, self._sources.committer
        yield _histogram("milepost_claim_wait_seconds", engine.measures.claim_seconds)
        yield _histogram("milepost_commit_seconds", committer.measures.commit_seconds)
        yield _histogram("milepost_commit_commands", committer.measures.commit_sizes)
        yield _histogram("milepost_report_seconds", committer.measures.report_seconds)
        yield _value("milepost_parked_claims", committer.parked_count)

    def _of_feeds(self) -> Iterator[Metric]:
        sources = self._sources
        lags = sources.hub.lags
        lag = HistogramMetricFamily(
            "milepost_feed_lag_seconds", METRICS_HELP["milepost_feed_lag_seconds"], labels=["feed"]
        )
        for feed, histogram in (
            ("run", lags.of_runs),
            ("stream", lags.of_streams),
            ("batch", lags.of_batches),
            ("inbox", lags.of_inboxes),
        ):
            lag.add_metric([feed], *_parts(histogram))
        yield lag
        subscribers = _gauge("milepost_subscribers", ["route"])
        for route in sources.traffic.routes:
            if route.is_stream:
                subscribers.add_metric([route.path], route.open)
        yield subscribers
        if sources.listener is not None:
            yield _histogram("milepost_announcement_delay_seconds", sources.engine.measures.told_seconds)
            yield _value("milepost_notifications_active", sources.listener.is_notified)

    def _of_requests(self) -> Iterator[Metric]:
        labels = ["method", "route"]
        name = "milepost_http_requests_total"
        requests = CounterMetricFamily(name, METRICS_HELP[name], labels=[*labels, "status"])
        name = "milepost_http_request_seconds"
        seconds = HistogramMetricFamily(name, METRICS_HELP[name], labels=labels)
        for route in self._sources.traffic.routes:
            for status, count in _statuses(route):
                requests.add_metric([route.method, route.path, str(status)], count)
            if not route.is_stream and any(route.seconds.counts):
                seconds.add_metric([route.method, route.path], *_parts(route.seconds))
        yield requests
        yield seconds

    def _of_upkeep(self) -> Iterator[Metric]:
        rounds = _counter("milepost_upkeep_rounds_total", ["job"])
        seconds = _counter("milepost_upkeep_seconds_total", ["job"])
        done = _counter("milepost_upkeep_done_total", ["job"])
        last = _gauge("milepost_upkeep_last_done_timestamp_seconds", ["job"])
        for job, measures in self._sources.upkeep.measures.items():
            rounds.add_metric([job], measures.rounds)
            seconds.add_metric([job], measures.seconds)
            done.add_metric([job], measures.done)
            if measures.finished_at is not None:
                last.add_metric([job], measures.finished_at)
        yield from (rounds, seconds, done, last)


def _statuses(route: RouteMeasures) -> list[tuple[int, int]]:
    # A client that has gone before it was answered is told as such a one is elsewhere.
    return [(status or 499, count) for status, count in sorted(route.statuses.copy().items())]


def _gauge(name: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS_HELP[name], labels=labels)


def _counter(name: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS_HELP[name], labels=labels)


def _value(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS_HELP[name], value=float(value))


def _histogram(name: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, total = _parts(histogram)
    return HistogramMetricFamily(name, METRICS_HELP[name], buckets=buckets, sum_value=total)


def _parts(histogram: Histogram) -> tuple[Any, float]:
    """Cumulative counts by bound, as the form wants them, and the sum."""
    counts, total = list(histogram.counts), histogram.total
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*histogram.bounds, None), counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound is None else repr(float(bound)), so_far))
    return buckets, total
