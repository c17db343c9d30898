"""What a trigger says of retries and of triggers that mean one run, as it travels; and what cannot be said."""

from datetime import timedelta
from typing import Any

import pytest

from milepost import Debounce, Retry, UsageError
from milepost.client.requests import trigger_options
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.protocol.triggering import DebounceOption
from milepost.sdk.attempt import run_attempt_in_thread
from milepost.sdk.task import task
from sdk.here import claimed, scope_of


def test_a_rule_of_retries_travels_as_its_numbers() -> None:
    said = trigger_options(
        {"retry": Retry(7, factor=3, min_delay="2s", max_delay="1m", jitter=False)}, has_payload=False
    )
    assert said.retry == RetryRule(
        max_attempts=7, factor=3.0, min_delay_seconds=2.0, max_delay_seconds=60.0, jitter=False
    )


@pytest.mark.parametrize(
    ("retry", "words"),
    [
        (Retry(3, retry_on=OSError), "stand at the task"),
        (Retry(3, give_up_on=OSError), "stand at the task"),
        (3, "such as Retry"),
        (RetryRule(), "such as Retry"),
    ],
)
def test_a_rule_that_cannot_travel_is_refused(retry: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trigger_options({"retry": retry}, has_payload=False)


def test_the_rule_of_the_trigger_takes_the_place_of_the_tasks() -> None:
    @task(id="fails", retry=Retry(max_attempts=1))
    def fails() -> None:
        raise OSError("out of ink")

    def outcome(**run: Any) -> Outcome:
        scope = scope_of(claimed(**{"task": "fails", "attempt": 1, **run}))
        return run_attempt_in_thread(fails, scope.run, scope)

    rule = RetryRule(max_attempts=3, min_delay_seconds=5, jitter=False)
    assert outcome().retry_after_ms is None
    assert outcome(retry=rule).retry_after_ms == 5000
    assert outcome(retry=rule, charged=1, attempt=2).retry_after_ms == 10_000
    assert outcome(retry=rule, charged=2, attempt=3).retry_after_ms is None
    assert outcome(retry=rule, max_attempts=1).retry_after_ms is None


def test_a_debounce_travels_as_spans() -> None:
    said = trigger_options(
        {"debounce": Debounce("k", timedelta(seconds=90), mode="trailing", max_delay=0.5)}, has_payload=False
    )
    assert said.debounce == DebounceOption(key="k", delay="90000ms", mode="trailing", max_delay="500ms")
    assert trigger_options({"debounce": Debounce("k", "5s")}, has_payload=False).debounce == DebounceOption(
        key="k", delay="5000ms"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "5s"), "not empty"),
        (("k", "soon"), "delay of a debounce"),
        (("k", 0), "more than nothing"),
        (("k", "5s", "last"), "leading or trailing"),
        (("k", "5s", "leading", "-1s"), "max_delay of a debounce"),
    ],
)
def test_a_debounce_that_cannot_be_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Debounce(*arguments)


def test_what_is_no_debounce_is_refused() -> None:
    with pytest.raises(UsageError, match="is a Debounce"):
        trigger_options({"debounce": "k"}, has_payload=False)
