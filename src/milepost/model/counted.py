"""Which `once` ids were counted (M46): an id counts once per run and key, whatever the attempt.

Of a key and an id a digest of fixed size is kept, so what an id costs does not depend on their length. The server keeps the
digests in a table; a worker's own view of a document remembers the newest of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from milepost.model.jsonvalue import encode
from milepost.model.path import normal, parse

__all__ = ["ID_BYTES", "KNOWN_MAX", "KnownIds", "id_of", "id_over_all_keys", "pack", "unpack"]

ID_BYTES = 12
"""Bytes of a digest. Among ten million ids of one run two are alike with a probability of one in 10^15."""

KNOWN_MAX = 5000
"""Ids that a worker is told when it claims a run, and that its view remembers at least."""


def id_of(key: str, once: str) -> bytes:
    """What stands for an id and the key that it is counted for: BLAKE2b over the JSON array of the key's segments and the id.

    The key counts by the place that it means: `a`, `$.a` and `$["a"]` are one key, and so are `$.l.0` and `$.l[0]`.

    Raises: like `parse`.
    """
    return _digest([*normal(parse(key)), once])


def id_over_all_keys(once: str) -> bytes:
    """What stands for an id that was counted before ids were counted by key: it counts for every key of its run."""
    return _digest([once])


def _digest(parts: list[str | int]) -> bytes:
    return hashlib.blake2b(encode(parts), digest_size=ID_BYTES).digest()


def pack(ids: Iterable[bytes]) -> bytes:
    """Digests in a row, for the wire."""
    return b"".join(ids)


def unpack(data: bytes) -> Iterator[bytes]:
    """The digests in a row."""
    return (data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES))


class KnownIds:
    """The newest ids, in bounded memory: at least `KNOWN_MAX` of them, at most twice as many (1 MB)."""

    __slots__ = ("_newer", "_older")

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._newer: set[bytes] = set(ids)
        self._older: set[bytes] = set()

    def __contains__(self, id: bytes) -> bool:
        return id in self._newer or id in self._older

    def __len__(self) -> int:
        return len(self._newer | self._older)

    def add(self, id: bytes) -> None:
        """Remember an id; half of the others are forgotten when there are too many."""
        if len(self._newer) >= KNOWN_MAX:
            self._older, self._newer = self._newer, set[bytes]()
        self._newer.add(id)

    def discard(self, id: bytes) -> None:
        """Forget an id."""
        self._newer.discard(id)
        self._older.discard(id)

    def copy(self) -> KnownIds:
        """The same ids, apart from these."""
        copied = KnownIds(self._newer)
        copied._older = set(self._older)
        return copied
