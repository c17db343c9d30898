"""Operations that were not applied, as users see them in `MetadataFlushError.refused`."""

from dataclasses import dataclass
from typing import Any

from milepost.protocol.metadata import Refused


@dataclass(frozen=True)
class RefusedChange:
    """One operation that was not applied.

    Attributes:
        run_id: the run whose document refused it.
        operation: the operation as plain JSON, or None when it is not known.
        code: the stable code of the reason.
        message: the reason.
    """

    run_id: str
    operation: Any
    code: str
    message: str


def refused_change(wire: Refused) -> RefusedChange:
    """The same out of a message."""
    return RefusedChange(wire.run, wire.operation, wire.code, wire.message)
