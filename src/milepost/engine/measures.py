"""What is counted while the server works, for whoever asks for its metrics: plain numbers, each written by one thread.

Nothing here knows how metrics are told. So what happens thousands of times a second costs a fraction of a microsecond, without a lock
and without looking anything up.
"""

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what is quick and should stay so."""

WAITING_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Bounds for what may wait for long."""

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Bounds for how many."""


class Histogram:
    """How many observations there were up to each bound, and what they come to together.

    Any thread may read it; `counts` has one place more than there are bounds, for what is above all of them.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one; for the one thread that writes."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class EngineMeasures:
    """Of the engine; written by its thread.

    Attributes:
        claim_seconds: from when a run was due to when it was claimed, of each claimed run.
        told_seconds: from a commit of another server to when this one heard of it.
    """

    def __init__(self) -> None:
        self.claim_seconds = Histogram(WAITING_SECONDS)
        self.told_seconds = Histogram(SECONDS)


class CommitterMeasures:
    """Of the committer.

    Attributes:
        commit_seconds: how long each group of commands took, tries that failed included. Written by the committer's thread.
        commit_sizes: commands of each group.
        report_seconds: from when a report of a worker arrived to its answer, which is after its commit. Written by the event loop.
    """

    def __init__(self) -> None:
        self.commit_seconds = Histogram(SECONDS)
        self.commit_sizes = Histogram(SIZES)
        self.report_seconds = Histogram(SECONDS)
