"""The table of jobs: what the upkeep does, how often, and how much of it one command does. A new job is a row here and a name."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Protocol

import msgspec

from milepost.engine.commands import (
    Command,
    DeleteLogLines,
    DeleteOldTree,
    DeletePayloads,
    EndUnheededRuns,
    IndexDocuments,
    PruneAnnouncements,
    PruneAnswers,
    PruneHistory,
    PruneKeys,
    PruneStreams,
    PruneUsedTokens,
    PruneWaitpoints,
    ReleaseLostRuns,
)
from milepost.engine.jobs import JobName
from milepost.store.database import Store
from milepost.upkeep.old_history import prunable
from milepost.upkeep.old_runs import cutoffs_of, old_log_lines, old_payloads, old_roots

logger = logging.getLogger("milepost.server")

FORGET_SECONDS = 600.0
# Beyond their end. A run that is tried again later than that waits anew.
WAITPOINTS_KEPT_MICROSECONDS = 30 * 86_400_000_000


class UpkeepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the upkeep, as the server's settings have them. What is kept for ever is None."""

    lease_seconds: float
    grace_seconds: float
    history_days: float
    stream_days: float
    keep_completed_runs: timedelta | None = None
    keep_failed_runs: timedelta | None = None
    keep_canceled_runs: timedelta | None = None
    keep_logs: timedelta | None = None
    keep_payloads: timedelta | None = None


class Progress:
    """What a server remembers from one round to the next: up to which run all payloads are deleted that ever will be."""

    def __init__(self) -> None:
        self.payloads_done_to = ""


class Workshop(Protocol):
    """What jobs work with."""

    settings: UpkeepSettings
    store: Store
    progress: Progress

    def clock(self) -> int:
        """Microseconds since 1970."""
        ...

    def age_clock(self) -> int:
        """The same by a clock that is never set back."""
        ...

    async def submit(self, command: Command) -> int:
        """Carry out a command; its result."""
        ...


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job of the upkeep.

    Args:
        period: seconds between two rounds.
        batch: how much one command does at most: runs, documents, rows.
        work: one round, which yields after each command.
        gives_way_after: seconds after which a round ends while others write too; without it a round ends when nothing is left.
        forgets: it deletes what is old. That is done once in a period by any server, and not by a clock that is not trusted; the other
            jobs are done by each server that finds work for them, in turns.
        for_several: there is nothing to do where the server is alone on its database.
    """

    name: JobName
    period: Callable[[UpkeepSettings], float]
    batch: int
    work: Callable[[Workshop, int], AsyncIterator[None]]
    gives_way_after: float | None = None
    forgets: bool = False
    for_several: bool = False


async def _release_lost(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Give up what lost workers held."""
    lost, found = 0, batch
    while found == batch:
        found = await workshop.submit(ReleaseLostRuns(batch))
        lost += found
        yield
    if lost:
        logger.warning("%d runs were held by workers that stopped answering", lost)


async def _end_unheeded(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """End what was asked to end long ago and is executed still, as far as its worker says."""
    ended, found = 0, batch
    while found == batch:
        found = await workshop.submit(EndUnheededRuns(batch))
        ended += found
        yield
    if ended:
        logger.warning("%d cancelled runs were ended that their workers had not ended", ended)


async def _index(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Index documents that were written lately."""
    while await workshop.submit(IndexDocuments(batch)):
        yield


async def _forget_history(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """One walk over all logs of documents: changes that are older than the settings go."""
    settings = workshop.settings
    cutoff = workshop.clock() - int(settings.history_days * 86_400_000_000)
    # After the grace time nobody writes, after the lease no worker repeats a report.
    settled_before = workshop.age_clock() - int((settings.grace_seconds + settings.lease_seconds) * 1_000_000)
    after: str | None = ""
    while after is not None:
        step = await asyncio.to_thread(
            prunable, workshop.store, cutoff=cutoff, settled_before=settled_before, rows=batch, after=after
        )
        if step.logs:
            await workshop.submit(PruneHistory(step.logs))
        yield
        after = step.next


async def _forget_streams(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Streams of runs that ended before the time in the settings go."""
    before = workshop.clock() - int(workshop.settings.stream_days * 86_400_000_000)
    while await workshop.submit(PruneStreams(before, batch)) == batch:
        yield


async def _forget_runs(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Runs that have finished long enough ago go, each tree once all of it may."""
    settings, now = workshop.settings, workshop.clock()
    cutoffs = cutoffs_of(
        now,
        completed=settings.keep_completed_runs,
        failed=settings.keep_failed_runs,
        canceled=settings.keep_canceled_runs,
    )
    if not cutoffs:
        return
    # After the grace time nobody writes, after the lease no worker repeats a report.
    settled_before = workshop.age_clock() - int((settings.grace_seconds + settings.lease_seconds) * 1_000_000)
    after: str | None = ""
    while after is not None:
        roots, after = await asyncio.to_thread(
            old_roots,
            workshop.store,
            after=after,
            limit=batch,
            cutoffs=cutoffs,
            settled_before=settled_before,
        )
        for root_id in roots:
            command = DeleteOldTree(
                root_id, {status.value: at for status, at in cutoffs.items()}, settled_before, batch
            )
            while await workshop.submit(command) >= batch:
                yield
            yield


async def _forget_logs(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Log lines of runs that have finished long enough ago go."""
    kept = workshop.settings.keep_logs
    if kept is None:
        return
    finished_before = workshop.clock() - kept // timedelta(microseconds=1)
    after: int | None = 0
    while after is not None:
        numbers, after = await asyncio.to_thread(
            old_log_lines, workshop.store, after=after, finished_before=finished_before, limit=batch
        )
        if numbers:
            await workshop.submit(DeleteLogLines(numbers))
        yield


async def _forget_payloads(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Payloads of runs that have finished long enough ago go. Where all runs are done, the next round does not look again."""
    kept = workshop.settings.keep_payloads
    if kept is None:
        return
    finished_before = workshop.clock() - kept // timedelta(microseconds=1)
    after: str | None = workshop.progress.payloads_done_to
    is_whole = True
    while after is not None:
        found = await asyncio.to_thread(
            old_payloads, workshop.store, after=after, limit=batch, finished_before=finished_before
        )
        if found.ids and await workshop.submit(DeletePayloads(found.ids)) < len(found.ids):
            # Another server does it.
            return
        if is_whole and found.done_to is not None:
            workshop.progress.payloads_done_to = found.done_to
        is_whole = is_whole and found.done_to == found.next
        after = found.next
        yield


async def _forget_waitpoints(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Tokens and waits that have ended long ago go."""
    before = workshop.age_clock() - WAITPOINTS_KEPT_MICROSECONDS
    while await workshop.submit(PruneWaitpoints(before, batch)) == batch:
        yield


async def _forget_answers(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Answers that nobody will ask for again go."""
    while await workshop.submit(PruneAnswers(batch)) == batch:
        yield


async def _forget_used_tokens(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Tokens that would be refused by their age go."""
    while await workshop.submit(PruneUsedTokens(batch)) == batch:
        yield


async def _forget_keys(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """Idempotency keys that stand for nothing any more go."""
    while await workshop.submit(PruneKeys(batch)) == batch:
        yield


async def _forget_announcements(workshop: Workshop, batch: int) -> AsyncIterator[None]:
    """What servers on one database have told each other goes."""
    while await workshop.submit(PruneAnnouncements(batch)) == batch:
        yield


def _seconds(period: float) -> Callable[[UpkeepSettings], float]:
    return lambda settings: period


def _forgets(
    name: JobName,
    batch: int,
    work: Callable[[Workshop, int], AsyncIterator[None]],
    *,
    seconds: float = FORGET_SECONDS,
    for_several: bool = False,
) -> Job:
    """A job that deletes what is old. Each command takes a few milliseconds of the committer's time."""
    return Job(
        name=name, period=_seconds(seconds), batch=batch, work=work, forgets=True, for_several=for_several
    )


JOBS = {
    job.name: job
    for job in (
        # Several times per lease.
        Job(
            name=JobName.LEASES,
            period=lambda settings: min(1.0, settings.lease_seconds / 4),
            batch=1000,
            work=_release_lost,
        ),
        Job(name=JobName.STOPS, period=_seconds(5.0), batch=100, work=_end_unheeded),
        Job(name=JobName.INDEX, period=_seconds(1.0), batch=20, work=_index, gives_way_after=0.3),
        _forgets(JobName.HISTORY, 250, _forget_history),
        _forgets(JobName.STREAMS, 100, _forget_streams),
        _forgets(JobName.RUNS, 100, _forget_runs),
        _forgets(JobName.LOGS, 500, _forget_logs),
        _forgets(JobName.PAYLOADS, 500, _forget_payloads),
        _forgets(JobName.WAITPOINTS, 100, _forget_waitpoints),
        _forgets(JobName.ANSWERS, 100, _forget_answers),
        _forgets(JobName.USED_TOKENS, 100, _forget_used_tokens),
        _forgets(JobName.IDEMPOTENCY_KEYS, 100, _forget_keys),
        _forgets(JobName.ANNOUNCEMENTS, 1000, _forget_announcements, seconds=60.0, for_several=True),
    )
}
