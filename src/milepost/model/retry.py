"""Retry and back-off: how often a failed run is tried again, and after how long. Pure: chance is passed in."""

import msgspec


class RetryRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The numbers of a task's retry rule, as worker and server share them. Users write `milepost.Retry`.

    Args:
        max_attempts: attempts in all, the first included; 1 means no retry. From 1 to 1,000.
        min_delay_seconds: the wait before the second attempt.
        max_delay_seconds: no wait is longer.
        factor: each wait is this many times the one before; from 1 to 100.
        jitter: spread each wait over 50 % to 100 % of its length, so that runs that failed together do not return together.

    Raises: ValueError when a number is outside its range.
    """

    max_attempts: int = 3
    min_delay_seconds: float = 1.0
    max_delay_seconds: float = 30.0
    factor: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 1000:
            raise ValueError(f"max_attempts must be from 1 to 1,000, not {self.max_attempts}")
        if not 0 <= self.min_delay_seconds <= self.max_delay_seconds:
            raise ValueError("delays must satisfy 0 <= min_delay_seconds <= max_delay_seconds")
        if not 1 <= self.factor <= 100:
            raise ValueError(f"factor must be from 1 to 100, not {self.factor}")

    def delay_ms(self, attempt: int, *, jitter: float, max_attempts: int | None = None) -> int | None:
        """The wait after failed attempt number `attempt` (from 1) in milliseconds, or None when that was the last one.

        Args:
            jitter: a number from 0 to 1, by chance; it is used only when the rule asks for jitter.
            max_attempts: a run's own limit, which wins over the task's.
        """
        if attempt >= (max_attempts or self.max_attempts):
            return None
        # The exponent is bounded so that a late attempt cannot overflow the float.
        seconds = min(self.max_delay_seconds, self.min_delay_seconds * self.factor ** min(attempt - 1, 64))
        if self.jitter:
            seconds *= 0.5 + 0.5 * jitter
        return int(seconds * 1000)


NO_RETRY = RetryRule(max_attempts=1)
