"""Queues, as a task declares them."""

from dataclasses import dataclass

from milepost.errors import InvalidRequestError, UsageError
from milepost.model.names import check_name
from milepost.model.rates import parse_rate


@dataclass(frozen=True)
class Queue:
    """A queue by name. Tasks that name the same queue share its limit.

    Args:
        name: 1 to 256 characters, no control characters.
        concurrency: how many of its runs may be executing at once over all workers, at least 1; None for no limit. Runs that are
            triggered with a `concurrency_key` have this limit for each key by itself.
        rate: how many of its runs may start in a period, over all workers and whatever their keys: "10/s", "100/m", "500/h", "1000/d".
            No such period, wherever it begins, has more starts; so many may come at once when there were none before.
    """

    name: str
    concurrency: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "the name of a queue")
        except InvalidRequestError as error:
            raise UsageError(str(error)) from None
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(
                f"queue {self.name!r}: concurrency is at least 1, not {self.concurrency}; use None for no "
                f"limit, and to let nothing begin pause the queue"
            )
        if self.rate is not None:
            try:
                parse_rate(self.rate)
            except InvalidRequestError as error:
                raise UsageError(f"queue {self.name!r}: {error}") from None
