"""Queues, as a task declares them."""

from dataclasses import dataclass

from milepost.errors import UsageError


@dataclass(frozen=True)
class Queue:
    """A queue by name. Tasks that name the same queue share its limit.

    Args:
        name: at least one character.
        concurrency: how many of its runs may be executing at once over all workers, at least 1; None for no limit.
    """

    name: str
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("a queue's name has at least one character")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(
                f"queue {self.name!r}: concurrency is at least 1, not {self.concurrency}; use None for no limit"
            )
