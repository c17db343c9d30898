"""Queues, as a task declares them."""

from dataclasses import dataclass

from milepost.errors import InvalidRequestError, UsageError
from milepost.model.names import check_name


@dataclass(frozen=True)
class Queue:
    """A queue by name. Tasks that name the same queue share its limit.

    Args:
        name: 1 to 256 characters, no control characters.
        concurrency: how many of its runs may be executing at once over all workers, at least 1; None for no limit.
    """

    name: str
    concurrency: int | None = None

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "the name of a queue")
        except InvalidRequestError as error:
            raise UsageError(str(error)) from None
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(
                f"queue {self.name!r}: concurrency is at least 1, not {self.concurrency}; use None for no limit"
            )
