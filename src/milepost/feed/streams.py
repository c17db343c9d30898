"""Event streams: what a subscriber is sent, from its first frame to its last.

Each is an async iterator of bytes, ready for the wire; a slow reader simply comes back later and finds a newer state (M82: it skips
intermediate states, never the last).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgspec

from milepost.engine.documents import Writer, join_steps
from milepost.engine.reading import Reader, state_fields
from milepost.feed.hub import Hub, Inbox, ListWatch, MatchWatch, RunTopic
from milepost.model.operations import collapse
from milepost.protocol.feed import (
    PING,
    BatchFrame,
    MatchingRunFrame,
    RunFrame,
    RunListFrame,
    SnapshotFrame,
    encode_event,
)
from milepost.protocol.metadata import MetadataDelta
from milepost.protocol.runs import RunPage
from milepost.protocol.work import InboxFrame
from milepost.store.runs import RunFilter

PING_SECONDS = 10.0
# A list is read again at most this often; a person cannot follow faster.
LIST_SECONDS = 0.25
# Runs that match a filter are read in groups of this size, and at most this often; the first after a quiet time at once.
MATCHES_READ = 100
MATCHES_SECONDS = 0.05
TOLD_MAX = 100_000
# Foreign writes to documents travel to a worker at most this often; ended children at once.
INBOX_SECONDS = 0.02

_encode = msgspec.json.Encoder().encode
_Result = TypeVar("_Result")


async def _in_reader(read: Callable[[], _Result]) -> _Result:
    return await asyncio.to_thread(read)


async def _woken(wake: asyncio.Event, seconds: float = PING_SECONDS) -> bool:
    """Wait for the event; False when it was quiet for so long that the connection should be shown to live."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    return True


async def watch_run(
    hub: Hub, reader: Reader, run_id: str, *, has_finished: asyncio.Event | None = None
) -> AsyncGenerator[bytes]:
    """One run: a snapshot, then deltas, an `end` when it has finished. Raises RunNotFoundError before the first frame.

    Args:
        has_finished: is set before the frame that tells of the run's end. With it the stream goes on from there, because children
            may still write to the document; and it says `log` when the run's log has grown.
    """
    wake = asyncio.Event()
    topic = hub.watch_run(run_id, wake)
    log_count = topic.log_count
    is_lasting = has_finished is not None
    has_finished = has_finished or asyncio.Event()
    try:
        frame, version, seen_at, is_final = await _snapshot(topic, reader)
        if is_final:
            has_finished.set()
        yield frame
        while is_lasting or not has_finished.is_set():
            if is_lasting and topic.log_count > log_count:
                log_count = topic.log_count
                yield encode_event("log", b"{}")
            if not await _woken(wake):
                yield PING
                continue
            if hub.is_closed:
                return
            wake.clear()
            steps = topic.newer_than(version)
            if steps is None:
                frame, version, seen_at, is_final = await _snapshot(topic, reader)
                if is_final:
                    has_finished.set()
                yield frame
                continue
            row = topic.row
            news = row if row is not None and row.updated_at > seen_at else None
            if not steps and news is None:
                continue
            reached = steps[-1].version if steps else version
            place = (version, reached, seen_at, news.updated_at if news else seen_at)
            frame = topic.frames.get(place)
            if frame is None:
                operations = collapse([operation for step in steps for operation in step.operations])
                frame = topic.frames[place] = encode_event(
                    "delta",
                    _encode(
                        RunFrame(
                            from_version=version if steps else None,
                            version=reached,
                            operations=operations or None,
                            run=_state_frame(topic) if news else None,
                        )
                    ),
                )
            version, seen_at = reached, place[3]
            if news is not None and news.status.is_final:
                has_finished.set()
            yield frame
        yield encode_event("end", _encode(RunFrame(version=version)))
    finally:
        hub.leave_run(topic, wake)


async def _snapshot(topic: RunTopic, reader: Reader) -> tuple[bytes, int, int, bool]:
    """The run as it is now: frame, version, time of its newest state, finished. Watchers that ask at once share one reading."""
    if topic.snapshot is None:
        topic.snapshot = asyncio.ensure_future(_in_reader(lambda: _read_snapshot(topic.run_id, reader)))
    return await asyncio.shield(topic.snapshot)


def _read_snapshot(run_id: str, reader: Reader) -> tuple[bytes, int, int, bool]:
    run = reader.run(run_id)
    frame = encode_event("snapshot", _encode(SnapshotFrame(run.metadata_version, run)))
    return frame, run.metadata_version, round(run.updated_at.timestamp() * 1_000_000), run.status.is_final


def _state_frame(topic: RunTopic) -> dict[str, Any]:
    """The changed fields of a run, named as on the wire; null takes a field away."""
    row = topic.row
    assert row is not None
    fields = {_camel(name): value for name, value in state_fields(row, topic.error).items()}
    if fields["error"] is None and not row.status.is_final:
        # Not known here: the error of the attempt before stays.
        del fields["error"]
    if topic.output is not None:
        fields["output"] = msgspec.Raw(topic.output.encode())
    return fields


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


async def watch_family(hub: Hub, reader: Reader, run_id: str, *, size: int) -> AsyncGenerator[bytes]:
    """One run with its children, until all of them have finished; one connection, because a browser has only six.

    The run is told as by `watch_run`, with `log` when its log has grown. Of the children, `size` are told as by `watch_list`, those
    first that a person wants to see first (`Reader.first_page`); these events are `children-snapshot` and `children-rows`.
    Raises RunNotFoundError before the first frame.
    """
    children = RunFilter(parent_id=run_id)
    is_settled = await _in_reader(lambda: reader.is_settled(run_id))
    if not is_settled:
        has_finished = asyncio.Event()
        run = watch_run(hub, reader, run_id, has_finished=has_finished)
        rows = watch_list(hub, reader, children, size=size, urgent_first=True)
        async with aclosing(_merged(run, _renamed(rows, "children"))) as frames:
            async for frame in frames:
                yield frame
                # Each event from the run's end on may tell of the last child.
                if has_finished.is_set() and frame is not PING:
                    is_settled = await _in_reader(lambda: reader.is_settled(run_id))
                    if is_settled:
                        break
    if not is_settled:
        # The server stops.
        return
    # Nothing changes any more: what is told now is the end of it, whatever was under way.
    frame, version, _, _ = await _in_reader(lambda: _read_snapshot(run_id, reader))
    yield frame
    rows = watch_list(hub, reader, children, size=size, urgent_first=True)
    async with aclosing(_renamed(rows, "children")) as frames:
        yield await anext(frames)
    yield encode_event("end", _encode(RunFrame(version=version)))


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
    wake = asyncio.Event()
    topic = hub.watch_batch(batch_id, wake)
    try:
        batch = await _in_reader(lambda: reader.batch_row(batch_id))
        run_count, finished_count = batch.known_count, batch.finished_count
        while True:
            yield encode_event("batch", _encode(BatchFrame(batch_id, run_count, finished_count)))
            if run_count is not None and finished_count >= run_count:
                break
            while not await _woken(wake):
                yield PING
            if hub.is_closed:
                return
            wake.clear()
            if topic.newest is not None:
                run_count = topic.newest.run_count if run_count is None else run_count
                finished_count = max(finished_count, topic.newest.finished_count)
        yield encode_event("end", _encode(BatchFrame(batch_id, run_count, finished_count)))
    finally:
        hub.leave_batch(batch_id, wake)


async def watch_list(
    hub: Hub, reader: Reader, filter: RunFilter, *, size: int, urgent_first: bool = False
) -> AsyncGenerator[bytes]:
    """The newest matching runs and the counts by status: in full first, then what is new or changed. Never ends by itself.

    `urgent_first` as for `Reader.first_page`.
    """
    watch = ListWatch(by_document=filter.metadata is not None)
    hub.lists.add(watch)
    event = "snapshot"
    order: list[str] = []
    counts: dict[str, int] = {}
    stale = True
    try:
        while True:
            changed = set(watch.changed)
            watch.changed.clear()
            watch.stale = False
            watch.wake.clear()
            before = order, counts
            if stale:
                order, counts = await _in_reader(
                    lambda: reader.first_page(filter, size=size, urgent_first=urgent_first)
                )
            new = [run_id for run_id in order if run_id in changed or run_id not in watch.shown]
            watch.shown = frozenset(order)
            rows = await _in_reader(lambda ids=new: reader.summaries(ids)) if new else []
            if event == "snapshot" or rows or before != (order, counts):
                yield encode_event(event, _encode(RunListFrame(rows=rows, order=order, counts=counts)))
            event = "rows"
            while not await _woken(watch.wake):
                yield PING
            if hub.is_closed:
                return
            await asyncio.sleep(LIST_SECONDS)
            stale = watch.stale
    finally:
        hub.lists.discard(watch)


async def watch_matching(hub: Hub, reader: Reader, filter: RunFilter) -> AsyncGenerator[bytes]:
    """All runs that match: each as it is now, newest first, then each that changes and matches, and once each that matches no more.

    It ends only when the reader is so slow that too many changed runs wait: then it connects anew and gets the present state. Of the
    runs that matched the last `TOLD_MAX` that were told are remembered, about 100 bytes each: of others it is not told that they left.
    """
    watch = MatchWatch(filter)
    told: dict[str, None] = {}
    hub.matches.add(watch)
    try:
        yield encode_event("begin", _encode(MatchingRunFrame()))
        after: str | None = None
        while True:
            read: Callable[[], RunPage] = partial(reader.page, filter, size=MATCHES_READ, after=after)
            page = await _in_reader(read)
            for run in page.data:
                _note_told(told, run.id)
                yield encode_event("run", _encode(MatchingRunFrame(run)))
            after = page.pagination.next
            if after is None:
                break
            if hub.is_closed or watch.has_overflown:
                return
        yield encode_event("present", _encode(MatchingRunFrame()))
        while True:
            while not await _woken(watch.wake):
                yield PING
            if hub.is_closed or watch.has_overflown:
                return
            watch.wake.clear()
            while watch.changed and not watch.has_overflown:
                ids = list(islice(watch.changed, MATCHES_READ))
                for run_id in ids:
                    del watch.changed[run_id]
                for match in await _in_reader(lambda ids=ids: reader.matching(filter, ids, told)):
                    if match.is_match:
                        _note_told(told, match.run.id)
                    else:
                        told.pop(match.run.id, None)
                    yield encode_event("run", _encode(MatchingRunFrame(match.run, match.is_match)))
            await asyncio.sleep(MATCHES_SECONDS)
    finally:
        hub.matches.discard(watch)


def _note_told(told: dict[str, None], run_id: str) -> None:
    """The last told are kept, in that order."""
    told.pop(run_id, None)
    told[run_id] = None
    if len(told) > TOLD_MAX:
        del told[next(iter(told))]


async def watch_inbox(hub: Hub, reader: Reader, worker_id: str) -> AsyncIterator[bytes]:
    """What the runs of a worker should know; see `InboxFrame`. A newer connection of the same worker takes the inbox over."""
    older = hub.inboxes.get(worker_id)
    inbox = hub.inboxes[worker_id] = Inbox()
    if older is not None:
        older.wake.set()
    last_deltas_at = 0.0
    loop = asyncio.get_running_loop()
    try:
        yield encode_event("inbox", _encode(InboxFrame(hello=True)))
        while True:
            if not await _woken(inbox.wake):
                yield PING
                continue
            if hub.is_closed or hub.inboxes.get(worker_id) is not inbox:
                return
            quiet = last_deltas_at + INBOX_SECONDS - loop.time()
            if quiet > 0 and not inbox.finished:
                await asyncio.sleep(quiet)
            finished, changes, overflown = inbox.take()
            deltas = [
                MetadataDelta(
                    run=run_id,
                    from_version=steps[0].version - 1,
                    version=steps[-1].version,
                    changes=join_steps(steps, Writer(run_id, attempt)),
                )
                for run_id, attempt, steps in changes
            ]
            for run_id in overflown:
                deltas.append(await _in_reader(lambda run_id=run_id: _whole(reader, run_id)))
            if deltas:
                last_deltas_at = loop.time()
            yield encode_event("inbox", _encode(InboxFrame(deltas=deltas, finished=finished)))
    finally:
        if hub.inboxes.get(worker_id) is inbox:
            del hub.inboxes[worker_id]


def _whole(reader: Reader, run_id: str) -> MetadataDelta:
    value, version, counted = reader.document(run_id)
    # Raw, because it is sent as it was read.
    metadata: Any = msgspec.Raw(value)
    return MetadataDelta(run=run_id, from_version=-1, version=version, counted=counted, metadata=metadata)
