"""The children that later attempts of a run may find again, as the engine remembers them: a hint, the rows decide.

What an attempt may find is read once, when it triggers for the first time, so that ten thousand children are not looked through for
each trigger; and the attempts before it are over, so nothing is added.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection

from milepost.engine.commands import AttemptRef, TriggerItem
from milepost.protocol.triggering import JSON_TYPE, SUPER_JSON_TYPE
from milepost.store import idempotency as store
from milepost.store.idempotency import EarlierChild
from milepost.store.runs import INLINE_CHARACTERS

# Of all runs whose later attempts trigger; beyond it those of the run that has asked least lately are forgotten, and read again.
CHILDREN_REMEMBERED = 200_000
LARGE_PAYLOADS_READ = 20


class EarlierChildren:
    """The children that the attempts of a run before one had when it first triggered, by what they are.

    Only grows: which of them were given out is what their rows say. `next` is how many of each kind need not be looked at any more.
    """

    def __init__(self, attempt: int, children: Sequence[EarlierChild]) -> None:
        self.attempt = attempt
        self.count = len(children)
        self.next: dict[bytes, int] = {}
        self._kinds: dict[bytes, list[str]] = {}
        # Those whose payloads have not been read yet, by task and type, the newest first.
        self._unread: dict[tuple[str, str | None], list[str]] = {}
        for child in children:
            if child.is_large:
                self._unread.setdefault((child.task, child.payload_type), []).append(child.id)
            else:
                kind = kind_of(child.task, child.payload, child.payload_type)
                self._kinds.setdefault(kind, []).append(child.id)
        for ids in self._unread.values():
            ids.reverse()

    def child(self, item: TriggerItem, kind: bytes, position: int, connection: Connection) -> str | None:
        """The id of the child at a position among those of a kind."""
        payload, type_ = item.payload, type_of(item)
        unread = None
        if payload is not None and len(payload) > INLINE_CHARACTERS:
            unread = self._unread.get((item.task, type_))
        while position >= len(self._kinds.get(kind, ())) and unread:
            ids = [unread.pop() for _ in range(min(LARGE_PAYLOADS_READ, len(unread)))]
            found = store.large_payloads(connection, ids)
            for run_id in ids:
                other = kind_of(item.task, found.get(run_id), type_)
                self._kinds.setdefault(other, []).append(run_id)
        ids = self._kinds.get(kind, ())
        return ids[position] if position < len(ids) else None


class RememberedChildren:
    """The earlier children of runs whose later attempts trigger."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, EarlierChildren] = OrderedDict()
        self._count = 0

    def of(self, attempt: AttemptRef, connection: Connection) -> EarlierChildren:
        """Those of one run, as of the attempt under way."""
        known = self._runs.get(attempt.run)
        if known is None or known.attempt != attempt.number:
            if known is not None:
                self._count -= known.count
            found = store.earlier_children(connection, attempt.run, attempt.number)
            known = self._runs[attempt.run] = EarlierChildren(attempt.number, found)
            self._count += known.count
            while self._count > CHILDREN_REMEMBERED and len(self._runs) > 1:
                oldest = next(iter(self._runs))
                if oldest == attempt.run:
                    self._runs.move_to_end(oldest)
                    continue
                self._count -= self._runs.pop(oldest).count
        self._runs.move_to_end(attempt.run)
        return known

    def gave(self, positions: Iterable[tuple[tuple[str, bytes], int]]) -> None:
        """It is committed that children of these kinds, up to these positions, need not be looked at any more."""
        for (run_id, kind), position in positions:
            known = self._runs.get(run_id)
            if known is not None:
                known.next[kind] = position

    def forget(self, run_id: str) -> None:
        """The attempt of a run is over: a later one reads anew."""
        known = self._runs.pop(run_id, None)
        if known is not None:
            self._count -= known.count

    def __len__(self) -> int:
        return len(self._runs)

    def clear(self) -> None:
        """Forget everything: what was read may belong to a transaction that has failed."""
        self._runs.clear()
        self._count = 0


def kind_of(task: str, payload: str | None, payload_type: str | None) -> bytes:
    """What is the same for children that are the same: the task, and the payload as a value. In objects the order does not matter."""
    said = payload
    if payload is not None and payload_type in (JSON_TYPE, SUPER_JSON_TYPE):
        try:
            said = json.dumps(json.loads(payload, parse_float=_finite), sort_keys=True)
        except (ValueError, RecursionError):
            # It is compared as the text that it is.
            said = payload
    text = msgspec.json.encode((task, payload_type if payload is not None else None, said))
    return hashlib.blake2b(text, digest_size=16).digest()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that no float holds")
    return number


def type_of(item: TriggerItem) -> str | None:
    """How the payload of a trigger is encoded."""
    return None if item.payload is None else item.options.payload_type or JSON_TYPE
