"""Operations in portions that one request may hold, cut without changing their order."""

from __future__ import annotations

from milepost.model.jsonvalue import encode
from milepost.model.operations import Operation
from milepost.protocol.metadata import OPERATIONS_MAX
from milepost.protocol.work import TargetOperations

BYTES_MAX = 4 * 1024 * 1024


def cut(waiting: list[TargetOperations]) -> tuple[list[TargetOperations], list[TargetOperations]]:
    """What one request takes, at least one operation, and the rest. The order within each document is kept (M31)."""
    room_bytes, room = BYTES_MAX, OPERATIONS_MAX
    taken: list[TargetOperations] = []
    for position, change in enumerate(waiting):
        for index, operation in enumerate(change.operations):
            room_bytes -= _size(operation)
            room -= 1
            if (room_bytes < 0 or room < 0) and (index or taken):
                if index:
                    taken.append(TargetOperations(change.run, change.operations[:index]))
                rest = TargetOperations(change.run, change.operations[index:])
                return taken, [rest, *waiting[position + 1 :]]
        taken.append(change)
    return taken, []


def halve(
    changes: list[TargetOperations], count: int
) -> tuple[list[TargetOperations], list[TargetOperations]]:
    """The first `count` operations, and the rest. The order within each document is kept."""
    taken: list[TargetOperations] = []
    for position, change in enumerate(changes):
        if count < len(change.operations):
            if count:
                taken.append(TargetOperations(change.run, change.operations[:count]))
            rest = TargetOperations(change.run, change.operations[count:])
            return taken, [rest, *changes[position + 1 :]]
        taken.append(change)
        count -= len(change.operations)
    return taken, []


def _size(operation: Operation) -> int:
    """Bytes of the operation as it travels, its key and its id included."""
    try:
        return len(encode(operation)) + 1
    except ValueError:
        # Some text in it cannot be JSON: whoever sends it finds that out.
        return 64
