"""Event streams: what a subscriber is sent, from its first frame to its last.

Each is an async iterator of bytes, ready for the wire; a slow reader simply comes back later and finds a newer state (M82: it skips
intermediate states, never the last).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from milepost.engine.documents import Writer, join_steps
from milepost.errors import UnavailableError
from milepost.feed.hub import Hub, ListWatch, Queued, RunTopic, Snapshot
from milepost.feed.steps import Place, Step, leave_out, place_of, run_delta, step_from
from milepost.feed.waiting import PING_SECONDS, in_reader, woken
from milepost.model.counted import pack
from milepost.model.run import RunStatus
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.protocol.feed import (
    PING,
    BatchFrame,
    RunDelta,
    RunFrame,
    RunListFrame,
    SnapshotFrame,
    encode_event,
)
from milepost.protocol.metadata import MetadataDelta
from milepost.protocol.runs import RunObject
from milepost.protocol.streams import StreamSummary
from milepost.protocol.work import InboxFrame
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter, RunRow

# A list is read again at most this often; a person cannot follow faster.
LIST_SECONDS = 0.25
# What takes long to read is read more seldom: the reading takes one part in so many of the time.
READING_SHARE = 10
# So often it is looked up whether anybody can take a queued run.
QUEUED_SECONDS = 2.0
# Foreign writes to documents travel to a worker at most this often; ended children at once.
INBOX_SECONDS = 0.02

logger = logging.getLogger("milepost.feed")
_encode = msgspec.json.Encoder().encode


async def watch_run(
    hub: Hub,
    reader: Reader,
    run_id: str,
    *,
    view: View = WHOLE_VIEW,
    has_finished: asyncio.Event | None = None,
    is_lasting: bool = False,
) -> AsyncGenerator[bytes]:
    """One run: a snapshot, then deltas, an `end` when it has finished. Raises RunNotFoundError before the first frame.

    How its children stand is told with the snapshot, and again when that has changed, a few times a second at most. Of a queued run it
    is told whether anybody can take it, with the snapshot and when that has changed, a few seconds later. Its streams are told with
    the snapshot, when one has begun or a writer has ended, and at the run's end.

    Args:
        has_finished: is set before the frame that tells of the run's end.
        is_lasting: go on from there, because children may still write to the document; and say `log` when the run's log has grown,
            and `streams` when a stream of it has begun or ended.
    """
    wake = hub.new_wake(hub.lags.of_runs)
    topic = hub.watch_run(run_id, wake, view)
    log_count = topic.log_count
    stream_count = told_stream_count = topic.stream_count
    has_finished = has_finished or asyncio.Event()
    try:
        frame, place, counted_by, is_final, queued = await _snapshot(topic, reader)
        if is_final:
            has_finished.set()
        yield frame
        while is_lasting or not has_finished.is_set():
            if is_lasting and topic.log_count > log_count:
                log_count = topic.log_count
                yield encode_event("log", b"{}")
            if is_lasting and topic.stream_count > stream_count:
                stream_count = topic.stream_count
                yield encode_event("streams", b"{}")
            if not await woken(wake, PING_SECONDS if queued is None else QUEUED_SECONDS):
                told, queued = queued, _looked_up(queued, reader)
                yield PING if queued == told else _queued_frame(place, queued)
                continue
            if hub.is_closed:
                return
            wake.clear()
            _count_children_soon(topic, reader)
            step = step_from(place, topic.news, view.keys)
            if step is None:
                frame, place, counted_by, is_final, queued = await _snapshot(topic, reader)
                if is_final:
                    has_finished.set()
                yield frame
                continue
            if step.newest is not None:
                told, queued = queued, _queued(step.newest.row)
                if told is not None and told.reason is not None:
                    yield _queued_frame(place, queued)
            if step.is_final:
                has_finished.set()
                if topic.children_changed and not is_lasting:
                    # Nothing will follow that could tell.
                    await _count_children(topic, reader)
            counts = topic.child_counts if topic.counted_by > counted_by else None
            found: list[StreamSummary] | None = None
            if topic.stream_count > told_stream_count or (step.is_final and topic.has_streams):
                told_stream_count = topic.stream_count
                found = await streams_of(topic, reader)
            if step.is_empty and counts is None and found is None:
                place = step.place
                continue
            key = (
                *place,
                *step.place,
                topic.counted_by if counts is not None else 0,
                told_stream_count if found is not None else -1,
            )
            frame = topic.frames.get(key)
            if frame is None:
                frame = topic.frames[key] = _run_frame(step, counts, found, view.skipped)
            place, counted_by = step.place, max(counted_by, topic.counted_by)
            yield frame
        yield encode_event("end", _encode(RunFrame(version=place.told)))
    finally:
        wake.close()
        hub.leave_run(topic, wake)


async def _snapshot(topic: RunTopic, reader: Reader) -> Snapshot:
    """The run as it is now. Watchers that ask at once share one reading."""
    if topic.snapshot is None:
        topic.snapshot = asyncio.ensure_future(_take_snapshot(topic, reader))
        topic.snapshot.add_done_callback(_look_at_failure)
    return await asyncio.shield(topic.snapshot)


async def _take_snapshot(topic: RunTopic, reader: Reader) -> Snapshot:
    if not topic.hears_late:
        return await _read_for_all(topic, reader)
    async with topic.turn:
        # Who asks from now on may come from another server, and know more than this reading will find.
        topic.snapshot = None
        return await _read_for_all(topic, reader)


async def _read_for_all(topic: RunTopic, reader: Reader) -> Snapshot:
    reading = topic.begin_reading()
    frame, place, run = await in_reader(lambda: _read_snapshot(topic.run_id, reader, topic.view))
    topic.take_in_counts(run.child_counts, reading)
    topic.has_streams = topic.has_streams or bool(run.streams)
    queued = Queued(run.task_identifier, run.queued_reason) if run.is_queued else None
    return Snapshot(frame, place, reading, run.status.is_final, queued)


async def streams_of(topic: RunTopic, reader: Reader) -> list[StreamSummary]:
    """The run's streams. Watchers that ask at once share one reading."""
    if topic.streams_reading is None:
        reading = asyncio.ensure_future(in_reader(lambda: reader.streams(topic.run_id)))
        topic.streams_reading = reading
        reading.add_done_callback(lambda done: _forget(topic, done))
    return await asyncio.shield(topic.streams_reading)


def _forget(topic: RunTopic, reading: asyncio.Future[list[StreamSummary]]) -> None:
    """What is asked from now on is read anew."""
    if topic.streams_reading is reading:
        topic.streams_reading = None
    _look_at_failure(reading)


def _look_at_failure(task: asyncio.Future[Any]) -> None:
    """Whoever asked is told of it; when they have all gone meanwhile, nobody is."""
    if not task.cancelled():
        task.exception()


def _read_snapshot(run_id: str, reader: Reader, view: View) -> tuple[bytes, Place, RunObject]:
    run = reader.snapshot(run_id, view)
    leave_out(run, view.skipped)
    frame = encode_event("snapshot", _encode(SnapshotFrame(run.metadata_version, run)))
    return frame, place_of(run), run


def _queued(row: RunRow) -> Queued | None:
    return Queued(row.task, None) if row.status in (RunStatus.PENDING_VERSION, RunStatus.QUEUED) else None


def _looked_up(queued: Queued | None, reader: Reader) -> Queued | None:
    """The same with the reason of this moment."""
    return queued and Queued(queued.task, reader.queued_reason(queued.task))


def _queued_frame(place: Place, queued: Queued | None) -> bytes:
    run = {"queuedReason": queued and queued.reason}
    return encode_event("delta", _encode(RunFrame(version=place.told, run=run)))


def _count_children_soon(topic: RunTopic, reader: Reader) -> None:
    if topic.children_changed and topic.counting is None:
        topic.counting = asyncio.ensure_future(_keep_counting(topic, reader))


async def _keep_counting(topic: RunTopic, reader: Reader) -> None:
    """Count the children as long as they change, for a small part of the time only."""
    loop = asyncio.get_running_loop()
    try:
        while topic.children_changed:
            await asyncio.sleep(topic.count_at - loop.time())
            began = loop.time()
            await _count_children(topic, reader)
            topic.count_at = began + paused_for(loop.time() - began)
    except (SQLAlchemyError, UnavailableError) as error:
        # Tried again when the next one changes.
        topic.children_changed = True
        logger.warning("the children of run %s cannot be counted now: %s", topic.run_id, error)
    finally:
        topic.counting = None


async def _count_children(topic: RunTopic, reader: Reader) -> None:
    topic.children_changed = False
    reading = topic.begin_reading()
    counts = await in_reader(lambda: reader.child_counts(topic.run_id, topic.view))
    topic.take_in_counts(counts, reading)


def paused_for(took_seconds: float) -> float:
    """How long after its begin a reading that took so long is done again at the earliest."""
    return max(LIST_SECONDS, took_seconds * READING_SHARE)


def _run_frame(
    step: Step, counts: dict[str, int] | None, streams: list[StreamSummary] | None, skipped: frozenset[str]
) -> bytes:
    run = step.state(with_output="output" not in skipped, with_error="error" not in skipped)
    if streams is not None:
        run = {**(run or {}), "streams": streams}
    if counts is not None:
        run = {**(run or {}), "childCounts": counts}
    frame = RunFrame(
        from_version=step.from_version, version=step.place.told, operations=step.operations, run=run
    )
    return encode_event("delta", _encode(frame))


async def watch_family(
    hub: Hub, reader: Reader, run_id: str, *, size: int, view: View = WHOLE_VIEW
) -> AsyncGenerator[bytes]:
    """One run with its children, until all of them have finished; one connection, because a browser has only six.

    The run is told as by `watch_run`, with `log` when its log has grown. Of the children, `size` are told as by `watch_list`, those
    first that a person wants to see first (`Reader.first_page`); these events are `children-snapshot` and `children-rows`.
    Raises RunNotFoundError before the first frame.
    """
    children = RunFilter(parent_id=run_id, shown=view.runs)
    is_settled = await in_reader(lambda: reader.is_settled(run_id, view))
    if not is_settled:
        has_finished = asyncio.Event()
        run = watch_run(hub, reader, run_id, view=view, has_finished=has_finished, is_lasting=True)
        rows = watch_list(hub, reader, children, size=size, urgent_first=True, view=view)
        async with aclosing(_merged(run, _renamed(rows, "children"))) as frames:
            async for frame in frames:
                yield frame
                # Each event from the run's end on may tell of the last child.
                if has_finished.is_set() and frame is not PING:
                    is_settled = await in_reader(lambda: reader.is_settled(run_id, view))
                    if is_settled:
                        break
    if not is_settled:
        # The server stops.
        return
    # Nothing changes any more: what is told now is the end of it, whatever was under way.
    frame, place, _ = await in_reader(lambda: _read_snapshot(run_id, reader, view))
    yield frame
    rows = watch_list(hub, reader, children, size=size, urgent_first=True, view=view)
    async with aclosing(_renamed(rows, "children")) as frames:
        yield await anext(frames)
    yield encode_event("end", _encode(RunFrame(version=place.told)))


async def _renamed(frames: AsyncGenerator[bytes], prefix: str) -> AsyncGenerator[bytes]:
    """The same events under names that begin with the prefix."""
    async with aclosing(frames):
        async for frame in frames:
            yield frame.replace(b"event: ", f"event: {prefix}-".encode(), 1) if frame is not PING else frame


async def _merged(*streams: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The frames of several streams as they come; the first is asked first. Ends with the last of them."""
    upcoming = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while upcoming:
            done, _ = await asyncio.wait(upcoming, return_when=asyncio.FIRST_COMPLETED)
            for future in [future for future in upcoming if future in done]:
                stream = upcoming.pop(future)
                try:
                    frame = future.result()
                except StopAsyncIteration:
                    continue
                upcoming[asyncio.ensure_future(anext(stream))] = stream
                yield frame
    finally:
        for future in upcoming:
            future.cancel()
        # Shielded, because a reader that vanishes cancels whatever is awaited from here on.
        await asyncio.shield(asyncio.ensure_future(_closed(list(upcoming), streams)))


async def _closed(
    upcoming: Sequence[asyncio.Future[bytes]], streams: Sequence[AsyncGenerator[bytes]]
) -> None:
    """Wait for what was cancelled, then close the streams."""
    await asyncio.gather(*upcoming, return_exceptions=True)
    for stream in streams:
        await stream.aclose()


async def watch_batch(hub: Hub, reader: Reader, batch_id: str) -> AsyncIterator[bytes]:
    """One batch: how many of its runs have ended, until all have. Raises BatchNotFoundError before the first frame."""
    wake = hub.new_wake(hub.lags.of_batches)
    topic = hub.watch_batch(batch_id, wake)
    try:
        batch = await in_reader(lambda: reader.batch_row(batch_id))
        run_count, finished_count = batch.known_count, batch.finished_count
        while True:
            yield encode_event("batch", _encode(BatchFrame(batch_id, run_count, finished_count)))
            if run_count is not None and finished_count >= run_count:
                break
            while not await woken(wake):
                yield PING
            if hub.is_closed:
                return
            wake.clear()
            if topic.newest is not None:
                run_count = topic.newest.run_count if run_count is None else run_count
                finished_count = max(finished_count, topic.newest.finished_count)
        yield encode_event("end", _encode(BatchFrame(batch_id, run_count, finished_count)))
    finally:
        wake.close()
        hub.leave_batch(batch_id, wake)


async def watch_list(
    hub: Hub,
    reader: Reader,
    filter: RunFilter,
    *,
    size: int,
    urgent_first: bool = False,
    view: View = WHOLE_VIEW,
) -> AsyncGenerator[bytes]:
    """The newest matching runs and the counts by status: in full first, then what is new or changed. Never ends by itself.

    A run that comes onto the page is told as a whole; what changes of it then, as deltas. `urgent_first` as for `Reader.first_page`.
    Which runs match is up to the filter; the view says what is shown of them.
    """
    watch = ListWatch(filter)
    hub.lists.add(watch)
    loop = asyncio.get_running_loop()
    places: dict[str, Place] = {}
    order: list[str] | None = None
    counts: dict[str, int] | None = None
    read_at = loop.time()
    try:
        while True:
            before = order, counts
            watch.wake.clear()
            if hub.is_closed and order is not None:
                # Its wake-up came while this one slept, and has just been cleared.
                return
            if order is None or (watch.is_stale and loop.time() >= read_at):
                began = loop.time()
                watch.is_stale = False
                order, counts = await in_reader(
                    lambda: reader.first_page(filter, size=size, urgent_first=urgent_first)
                )
                read_at = began + paused_for(loop.time() - began)
                # From here on what changes of them is kept, and read below.
                watch.shown = frozenset(order)
                places = {run_id: place for run_id, place in places.items() if run_id in watch.shown}
            deltas, whole = _list_deltas(watch, places, view)
            whole += [run_id for run_id in order if run_id not in places]
            rows = await in_reader(lambda ids=whole: reader.summaries(ids, view.keys)) if whole else []
            for run in rows:
                leave_out(run, view.skipped)
            places |= {run.id: place_of(run) for run in rows}
            frame = RunListFrame(
                rows=rows,
                deltas=deltas,
                order=None if order == before[0] else order,
                counts=None if counts == before[1] else counts,
            )
            if rows or deltas or frame.order is not None or frame.counts is not None:
                yield encode_event("snapshot" if before[0] is None else "rows", _encode(frame))
            while not await woken(watch.wake, read_at - loop.time() if watch.is_stale else PING_SECONDS):
                if watch.is_stale and loop.time() >= read_at:
                    break
                yield PING
            if hub.is_closed:
                return
            await asyncio.sleep(LIST_SECONDS)
    finally:
        hub.lists.discard(watch)


def _list_deltas(watch: ListWatch, places: dict[str, Place], view: View) -> tuple[list[RunDelta], list[str]]:
    """What has changed of the runs shown, and the ones that have to be told as a whole. Takes all news of the watch."""
    deltas: list[RunDelta] = []
    whole: list[str] = []
    for run_id in list(watch.changed):
        news = watch.take(run_id)
        place = places.get(run_id)
        if place is None:
            # It is not shown any more, or is told as a whole anyway.
            continue
        step = step_from(place, news, view.keys)
        if step is None:
            whole.append(run_id)
            continue
        places[run_id] = step.place
        if not step.is_empty:
            deltas.append(run_delta(run_id, step, skipped=view.skipped))
    return deltas, whole


async def watch_inbox(hub: Hub, reader: Reader, worker_id: str) -> AsyncIterator[bytes]:
    """What the runs of a worker should know; see `InboxFrame`. A newer connection of the same worker takes the inbox over."""
    older = hub.inboxes.get(worker_id)
    inbox = hub.inboxes[worker_id] = hub.new_inbox()
    if older is not None:
        older.wake.set()
    last_deltas_at = 0.0
    loop = asyncio.get_running_loop()
    try:
        yield encode_event("inbox", _encode(InboxFrame(hello=True)))
        while True:
            if not await woken(inbox.wake):
                yield PING
                continue
            quiet = last_deltas_at + INBOX_SECONDS - loop.time()
            if quiet > 0 and not hub.is_closed:
                await inbox.quiet(quiet)
            # Looked at after the rest, because the wake-up for it may have come meanwhile, and is cleared now.
            if hub.is_closed or hub.inboxes.get(worker_id) is not inbox:
                return
            frame = inbox.take_frame()
            changes, overflown = inbox.take_documents()
            frame.deltas = [
                MetadataDelta(
                    run=run_id,
                    from_version=steps[0].version - 1,
                    version=steps[-1].version,
                    changes=join_steps(steps, Writer(run_id, attempt)),
                )
                for run_id, attempt, steps in changes
            ]
            for run_id in overflown:
                frame.deltas.append(await in_reader(lambda run_id=run_id: _whole(reader, run_id)))
            if frame.deltas:
                last_deltas_at = loop.time()
            yield encode_event("inbox", _encode(frame))
    finally:
        inbox.wake.close()
        if hub.inboxes.get(worker_id) is inbox:
            del hub.inboxes[worker_id]


def _whole(reader: Reader, run_id: str) -> MetadataDelta:
    value, version, counted = reader.document(run_id)
    # Raw, because it is sent as it was read.
    metadata: Any = msgspec.Raw(value)
    return MetadataDelta(
        run=run_id, from_version=-1, version=version, counted=pack(counted), metadata=metadata
    )
