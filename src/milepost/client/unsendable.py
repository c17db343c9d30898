"""What cannot be sent, and how that is told."""

from __future__ import annotations

from milepost.client.comparison import Place
from milepost.errors import MetadataValueError
from milepost.model.jsonvalue import to_json
from milepost.model.typed import Misfit


class Unsendable(Misfit):
    """A value has the shape, and what would arrive of it is not equal to it."""


def nowhere(_: Place, __: object) -> bool:
    """What a codec says of a text in which nothing is left open."""
    return False


def unstorable(value: object) -> list[tuple[str, str]] | None:
    """What in a value has no JSON form by our own rules, for a message that names the place; None when they know nothing."""
    try:
        to_json(value)
    except MetadataValueError as error:
        place, _, reason = error.message.rpartition(": ")
        return [(place, reason)]
    except Exception:  # a serializer of the user's
        return None
    return None
