"""Watching all runs that match a filter: what such a watcher is sent, and what is remembered of it.

Cost follows the change: as long as the operations on a document are about other places than the filter is, nobody reads the document.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial

import msgspec

from milepost.engine.announcements import LoggedChange
from milepost.feed.hub import Hub, MatchWatch, decides
from milepost.feed.steps import (
    Place,
    RunNews,
    Step,
    camel,
    leave_out,
    place_of,
    run_delta,
    shown_changes,
    step_from,
)
from milepost.feed.waiting import in_reader, woken
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.protocol.feed import PING, MatchingRunFrame, RunDelta, encode_event
from milepost.protocol.runs import RunSummary
from milepost.reading.fields import STATE_FIELDS
from milepost.reading.lists import RunMatch
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter

# Runs that match a filter are read in groups of this size, and at most this often; the first after a quiet time at once.
MATCHES_READ = 100
MATCHES_SECONDS = 0.05
TOLD_MAX = 100_000
RULED_OUT_MAX = 10_000
# Bytes of documents that a reader of matching runs keeps.
HELD_BYTES_MAX = 64 * 1024 * 1024

_encode = msgspec.json.Encoder().encode


async def watch_matching(
    hub: Hub, reader: Reader, filter: RunFilter, view: View = WHOLE_VIEW
) -> AsyncGenerator[bytes]:
    """All runs that match: each as it is now, newest first, then each that changes and matches, and once each that matches no more.

    A run is told as a whole first and by deltas then; see `MatchingRunFrame`. What is known of runs is bounded, see `Told`. The stream
    ends only when the reader is so slow that too many changed runs wait: then it connects anew and gets the present state.

    Args:
        view: what the reader is shown of the runs that match; the filter looks at no other keys of documents.
    """
    watch = MatchWatch(filter)
    told = Told(filter, view)
    keys = view.keys
    hub.matches.add(watch)
    try:
        yield encode_event("begin", _encode(MatchingRunFrame()))
        after: str | None = None
        all_are_told = False
        while True:
            if all_are_told:
                while not await woken(watch.wake):
                    yield PING
            else:
                watch.unread_below = None
                page = await in_reader(
                    partial(reader.page, filter, size=MATCHES_READ, after=after, keys=keys)
                )
                after = page.pagination.next
                watch.leave_unread(after)
                for run in page.data:
                    yield told.tell_whole(run, is_match=True)
            if hub.is_closed or watch.has_overflown:
                return
            watch.wake.clear()
            # Also between two pages, so that however long these take, nothing piles up.
            changed = list(watch.changed)
            for first in range(0, len(changed), MATCHES_READ):
                ids = changed[first : first + MATCHES_READ]
                unclear = [run_id for run_id in ids if told.must_read(run_id, watch.changed[run_id])]
                found: dict[str, RunMatch] = {}
                if unclear:
                    found = await in_reader(partial(reader.matching, filter, unclear, told.matching, keys))
                if hub.is_closed or watch.has_overflown:
                    return
                for frame in [told.tell(watch, run_id, found.get(run_id)) for run_id in ids]:
                    if frame is not None:
                        yield frame
                if watch.has_overflown:
                    return
            if forgotten := told.forget():
                yield forgotten
            if all_are_told:
                await asyncio.sleep(MATCHES_SECONDS)
            elif after is None:
                all_are_told = True
                yield encode_event("present", _encode(MatchingRunFrame()))
    finally:
        hub.matches.discard(watch)


class Told:
    """What one watcher of matching runs has been told, and whose documents it therefore keeps; makes the frames.

    Bounded. Of the runs that match the last `TOLD_MAX` that were told are remembered, about 200 bytes each; of others it is not told
    that they left. As many documents are kept as have `HELD_BYTES_MAX` together. Of the runs that do not match the last
    `RULED_OUT_MAX` are remembered, so that their documents need not be read again for changes that do not matter to the filter.
    """

    def __init__(self, filter: RunFilter, view: View = WHOLE_VIEW) -> None:
        self._filter = filter
        self._keys = view.keys
        self._skipped = view.skipped
        # In the order in which they were told last.
        self.matching: dict[str, Place] = {}
        # The runs of which the reader keeps the document, with its bytes, about.
        self._held: dict[str, int] = {}
        self._held_bytes = 0
        # The version at which a document did not match; None where it is not the document that does not.
        self._ruled_out: dict[str, int | None] = {}
        self._forgotten: list[str] = []

    def must_read(self, run_id: str, news: RunNews) -> bool:
        """Whether what to tell of these news can only be known from the store."""
        place = self.matching.get(run_id)
        if place is not None:
            step = step_from(place, news, self._keys)
            if step is None:
                return True
            return not step.is_empty and (run_id not in self._held or self._is_decisive(step.changes))
        if run_id not in self._ruled_out:
            return True
        version = self._ruled_out[run_id]
        if self._filter.statuses and news.row is not None:
            return True
        return version is not None and self._is_decisive(news.newer_than(version))

    def _is_decisive(self, changes: Sequence[LoggedChange] | None) -> bool:
        filter = self._filter.metadata
        return filter is not None and (changes is None or decides(filter, changes))

    def tell(self, watch: MatchWatch, run_id: str, found: RunMatch | None) -> bytes | None:
        """What to tell of a run that has changed; None for nothing. `found` is what was read of it, where it had to be.

        News that are newer than what was read stay with the watch.
        """
        news = watch.changed[run_id]
        place = self.matching.get(run_id)
        if found is None or found.run is None:
            watch.take(run_id)
            if found is not None:
                self._rule_out(run_id, None)
            elif self._ruled_out.get(run_id) is not None:
                self._rule_out(run_id, news.version)
            step = None if place is None else step_from(place, news, self._keys)
            if step is None:
                return None
            if step.is_empty:
                # Past what is hidden.
                self.matching[run_id] = step.place
                return None
            matches = (
                news.row is None or not self._filter.statuses or news.row.status in self._filter.statuses
            )
            return self._tell_delta(
                run_delta(run_id, step, matches=matches, skipped=self._skipped),
                step.place,
                step.changes,
                step.is_final,
            )
        run, reached = found.run, place_of(found.run)
        leave_out(run, self._skipped)
        if news.version <= reached.version and (news.row is None or news.row.updated_at <= reached.seen_at):
            watch.take(run_id)
        if place is None and not found.is_match:
            self._rule_out(run_id, reached.version)
            return None
        if place is not None and place.is_at(reached):
            return None
        changes = None if place is None or run_id not in self._held else _up_to(reached.version, place, news)
        if place is None or changes is None:
            return self.tell_whole(run, is_match=found.is_match)
        changes = shown_changes(changes, self._keys)
        reached = reached._replace(told=reached.version if changes else place.told)
        step = Step(place.told, reached, changes, None)
        delta = run_delta(run_id, step, matches=found.is_match)
        if news.row is not None:
            told = [name for name in STATE_FIELDS if name not in self._skipped]
            delta.run = {camel(name): getattr(run, name) for name in told}
        return self._tell_delta(delta, reached, changes, run.status.is_final)

    def tell_whole(self, run: RunSummary, *, is_match: bool) -> bytes:
        """Tell a run as a whole."""
        leave_out(run, self._skipped)
        keeps = is_match and not run.status.is_final
        self._note(
            run.id, place_of(run), is_match=is_match, held_bytes=len(bytes(run.metadata)) if keeps else None
        )
        return encode_event("run", _encode(MatchingRunFrame(run, is_match)))

    def forget(self) -> bytes | None:
        """Have the reader let go what is beyond the bounds; None when nothing is."""
        while len(self.matching) > TOLD_MAX:
            run_id = next(iter(self.matching))
            del self.matching[run_id]
            if run_id in self._held:
                self._let_go(run_id)
                self._forgotten.append(run_id)
        while self._held_bytes > HELD_BYTES_MAX:
            run_id = next(iter(self._held))
            self._let_go(run_id)
            self._forgotten.append(run_id)
        if not self._forgotten:
            return None
        forgotten, self._forgotten = self._forgotten, []
        return encode_event("forget", _encode(MatchingRunFrame(ids=forgotten)))

    def _tell_delta(
        self, delta: RunDelta, reached: Place, changes: Sequence[LoggedChange], is_final: bool
    ) -> bytes:
        keeps = delta.matches and not is_final
        held_bytes = self._held[delta.id] + sum(change.size for change in changes) if keeps else None
        self._note(delta.id, reached, is_match=delta.matches, held_bytes=held_bytes)
        return encode_event("delta", _encode(delta))

    def _note(self, run_id: str, place: Place, *, is_match: bool, held_bytes: int | None) -> None:
        self.matching.pop(run_id, None)
        self._ruled_out.pop(run_id, None)
        self._let_go(run_id)
        if is_match:
            self.matching[run_id] = place
        else:
            self._rule_out(run_id, place.version)
        if held_bytes is not None:
            self._held[run_id] = held_bytes
            self._held_bytes += held_bytes

    def _let_go(self, run_id: str) -> None:
        self._held_bytes -= self._held.pop(run_id, 0)

    def _rule_out(self, run_id: str, version: int | None) -> None:
        self._ruled_out.pop(run_id, None)
        self._ruled_out[run_id] = version
        if len(self._ruled_out) > RULED_OUT_MAX:
            del self._ruled_out[next(iter(self._ruled_out))]


def _up_to(version: int, place: Place, news: RunNews) -> list[LoggedChange] | None:
    """The steps from a place to exactly this version; None when they are not at hand."""
    changes = [change for change in news.newer_than(place.version) or () if change.version <= version]
    reached = changes[-1].version if changes else place.version
    return changes if reached == version else None
