"""Retry rules: what they take, what they refuse, which errors are tried again, and what a catch_error hook may decide."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from milepost import AbortTaskRun, Caught, Retry, Task, TooLargeError, UsageError, hooks, task
from milepost.errors import ConfigurationError
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.sdk.attempt import run_attempt_in_thread
from milepost.sdk.settings import default_retry, task_settings
from sdk.here import HereLink, claimed, scope_of


def attempt(work: Task[Any, Any], **fields: Any) -> tuple[Outcome, HereLink]:
    scope = scope_of(claimed(**{"task": work.id, "attempt": 1, **fields}))
    assert isinstance(scope.link, HereLink)
    return run_attempt_in_thread(work, scope.run, scope), scope.link


def failing(error: BaseException, **options: Any) -> Task[Any, Any]:
    def work() -> None:
        raise error

    return task(id=f"fails with {type(error).__name__}", **options)(work)


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    task_settings.cache_clear()
    default_retry.cache_clear()
    yield
    task_settings.cache_clear()
    default_retry.cache_clear()


@pytest.mark.parametrize("delay", [timedelta(seconds=90), 90, 90.0, "90s", "1m30s"])
def test_delays_as_users_write_them(delay: Any) -> None:
    retry = Retry(max_attempts=5, factor=3, min_delay=delay, max_delay="1h", jitter=False)
    assert retry.rule == RetryRule(
        max_attempts=5, factor=3.0, min_delay_seconds=90.0, max_delay_seconds=3600.0, jitter=False
    )
    assert (retry.min_delay, retry.max_delay) == (timedelta(seconds=90), timedelta(hours=1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 30)),
        ({"min_delay": 60}, (60, 60)),
        ({"max_delay": 0.5}, (0.5, 0.5)),
        ({"max_delay": 0}, (0, 0)),
    ],
)
def test_one_delay_alone_moves_the_other_ones_default(
    given: dict[str, Any], expected: tuple[float, float]
) -> None:
    rule = Retry(**given).rule
    assert (rule.min_delay_seconds, rule.max_delay_seconds) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_attempts": 0}, "max_attempts must be from 1 to 1,000, not 0"),
        ({"max_attempts": 1001}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts is a whole number"),
        ({"max_attempts": True}, "max_attempts is a whole number"),
        ({"factor": 0.5}, "factor must be from 1 to 100"),
        ({"factor": "2"}, "factor is a number"),
        ({"jitter": 0.5}, "jitter is True or False"),
        ({"min_delay": -1}, "min_delay: a duration cannot be negative"),
        ({"min_delay": "soon"}, "min_delay: 'soon' is no duration"),
        ({"min_delay": float("nan")}, "min_delay"),
        ({"max_delay": [1]}, "max_delay: a duration is"),
        ({"max_delay": "400d"}, "max_delay is at most 365 days"),
        ({"min_delay": 20, "max_delay": "10s"}, "min_delay .* is longer than max_delay"),
        ({"retry_on": "ConnectionError"}, "retry_on takes exception types"),
        ({"give_up_on": ValueError("x")}, "not iterable|give_up_on takes exception types"),
        ({"retry_on": [int]}, "retry_on takes exception types, such as ConnectionError, not <class 'int'>"),
        ({"retry_on": []}, "retry_on is empty"),
        ({"retry_on": FileNotFoundError, "give_up_on": OSError}, "retry_on names FileNotFoundError, and give_up_on"),
        ({"retry_on": [OSError, AbortTaskRun]}, "AbortTaskRun, which is never retried"),
        ({"retry_on": TooLargeError}, "TooLargeError, which is never retried"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused_where_it_is_written(given: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Retry(**given)


def test_what_is_no_rule_is_refused_at_decoration() -> None:
    with pytest.raises(UsageError, match=r"retry is a Retry, such as Retry\(max_attempts=5\), not 5"):
        task(id="work", retry=5)(lambda: None)  # type: ignore[call-overload]


GROUP = ExceptionGroup("both", [ConnectionError("a"), ValueError("b")])
CONNECTIONS = ExceptionGroup("connections", [ConnectionError("a"), ConnectionResetError("b")])


@pytest.mark.parametrize(
    ("rule", "error", "is_retried"),
    [
        ({}, ValueError("x"), True),
        ({"retry_on": ConnectionError}, ConnectionResetError(), True),
        ({"retry_on": ConnectionError}, ValueError("x"), False),
        ({"retry_on": (ConnectionError, ValueError)}, ValueError("x"), True),
        ({"give_up_on": ValueError}, UnicodeError("x"), False),
        ({"give_up_on": [ValueError]}, KeyError("x"), True),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, FileNotFoundError(), False),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, TimeoutError(), True),
        ({"retry_on": ConnectionError}, GROUP, False),
        ({"retry_on": ConnectionError}, CONNECTIONS, True),
        ({"give_up_on": ValueError}, GROUP, False),
        ({"retry_on": Exception, "give_up_on": ValueError}, GROUP, False),
        ({"retry_on": Exception}, AbortTaskRun("x"), False),
        ({"retry_on": Exception}, UsageError("x"), False),
        ({"retry_on": Exception}, TooLargeError("x"), False),
    ],
)
def test_which_errors_are_tried_again(rule: dict[str, Any], error: BaseException, is_retried: bool) -> None:
    outcome, _ = attempt(failing(error, retry=Retry(max_attempts=3, **rule)))
    assert (outcome.retry_after_ms is not None) is is_retried
    assert outcome.error is not None
    assert outcome.error.name == type(error).__name__


def test_a_hook_changes_the_error() -> None:
    work = failing(ValueError("raw"), retry=Retry(jitter=False))
    work.catch_error(lambda error: Caught(error=RuntimeError(f"seen: {error}")))
    outcome, _ = attempt(work)
    assert outcome.error is not None
    assert (outcome.error.name, outcome.error.message) == ("RuntimeError", "seen: raw")
    assert outcome.retry_after_ms == 1000


def test_a_hook_skips_the_retry_and_the_error_stays() -> None:
    seen: list[str] = []
    work = failing(ValueError("raw"), retry=Retry(max_attempts=9))
    work.catch_error(lambda: Caught(skip_retrying=True))
    work.on_failure(lambda error: seen.append(repr(error)))
    outcome, _ = attempt(work)
    assert outcome.retry_after_ms is None
    assert outcome.error is not None
    assert outcome.error.name == "ValueError"
    assert seen == ["ValueError('raw')"]


@pytest.mark.parametrize("rule", [{}, {"retry_on": OSError}, {"give_up_on": ValueError}])
def test_a_hook_sets_the_time_whatever_the_types_say(rule: dict[str, Any]) -> None:
    work = failing(ValueError("busy"), retry=Retry(max_attempts=2, **rule))
    work.catch_error(lambda: Caught(retry_in="90s"))
    assert attempt(work)[0].retry_after_ms == 90_000
    assert attempt(work, attempt=2, charged=1)[0].retry_after_ms is None


def test_a_hook_sets_a_moment() -> None:
    work = failing(ValueError("busy"))
    at = datetime.now(UTC) + timedelta(hours=1)
    work.catch_error(lambda: Caught(retry_at=at))
    pause = attempt(work)[0].retry_after_ms
    assert pause is not None
    assert 3_590_000 < pause <= 3_600_000
    late = failing(KeyError("late"))
    late.catch_error(lambda: Caught(retry_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert attempt(late)[0].retry_after_ms == 0


@pytest.mark.parametrize("error", [AbortTaskRun("no"), UsageError("wrong"), TooLargeError("big")])
def test_no_hook_gives_a_final_error_another_attempt(error: BaseException) -> None:
    work = failing(error)
    work.catch_error(lambda: Caught(retry_in=1))
    assert attempt(work)[0].retry_after_ms is None


def test_the_last_hook_that_says_something_about_retrying_decides() -> None:
    work = failing(ValueError("x"))
    hooks.catch_error(lambda: Caught(skip_retrying=True))
    work.catch_error(lambda: Caught(error=KeyError("y")))
    outcome, _ = attempt(work)
    assert outcome.retry_after_ms is None
    assert outcome.error is not None
    assert outcome.error.name == "KeyError"
    work.catch_error(lambda: Caught(retry_in=5))
    assert attempt(work)[0].retry_after_ms == 5000


def test_a_word_that_means_nothing_is_told_and_changes_nothing() -> None:
    work = failing(ValueError("x"), retry=Retry(jitter=False))
    work.catch_error(lambda: True)
    outcome, link = attempt(work)
    assert outcome.retry_after_ms == 1000
    assert any("returned bool, which says nothing" in line[1] for line in link.lines)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"retry_at": datetime(2030, 1, 1)}, "needs a time zone"),
        ({"retry_at": datetime(9000, 1, 1, tzinfo=UTC)}, "at most 365 days"),
        ({"retry_at": "tomorrow"}, "retry_at is a datetime"),
        ({"retry_in": "later"}, "retry_in: 'later' is no duration"),
        ({"retry_in": 1, "skip_retrying": True}, "say one of"),
        ({"error": "text"}, "error is an exception"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Caught(**given)


@pytest.mark.usefixtures("fresh_settings")
def test_the_rule_of_tasks_that_have_none_comes_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.milepost]\nretry_max_attempts = 7\nretry_min_delay = "5s"\nretry_jitter = false\n'
    )
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("MILEPOST_RETRY_MIN_DELAY", "10s")
    plain, own = failing(ValueError("x")), failing(KeyError("x"), retry=Retry(max_attempts=2))
    assert plain.describe().retry == RetryRule(max_attempts=7, min_delay_seconds=10, jitter=False)
    assert attempt(plain)[0].retry_after_ms == 10_000
    assert own.describe().retry == RetryRule(max_attempts=2)


@pytest.mark.usefixtures("fresh_settings")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("retry_max_attempt = 7", r"\[tool.milepost\] has no setting 'retry_max_attempt'"),
        ('retry_max_attempts = "many"', "wrong setting retry_max_attempts"),
        ("retry_max_attempts = 0", "the retry rule from the settings cannot be: max_attempts"),
        ('retry_min_delay = "soon"', "min_delay: 'soon'"),
        ("retry_max_attempts = ", "pyproject.toml cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.milepost]\n{line}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        default_retry()
