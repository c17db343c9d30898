"""What the user's objects do when they are made text harms nothing."""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from milepost import Context, task
from milepost.model.run import Outcome
from milepost.sdk import safe_text
from milepost.sdk.attempt import describe_error, run_attempt_in_thread
from milepost.sdk.safe_text import text_of
from sdk.here import HereLink, claimed, scope_of


def raising(error: Any, *methods: str) -> type[Any]:
    """A class whose methods raise an error."""

    def fail(self: object, *arguments: object) -> Any:
        raise error

    return type("Broken", (), dict.fromkeys(methods or ("__str__", "__repr__"), fail))


class Deep:
    def __repr__(self) -> str:
        return f"{self!r}"


class NoText:
    def __str__(self) -> Any:
        return 5

    __repr__ = __str__


class OddText(str):
    """A text whose own methods cannot be trusted."""

    def __str__(self) -> str:
        return self

    def encode(self, *arguments: Any, **more: Any) -> Any:
        raise ValueError("no")

    isascii = __len__ = __getitem__ = __format__ = __mod__ = encode  # pyright: ignore[reportAssignmentType]


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError("no")


class OfOddClass(metaclass=Meta):
    def __str__(self) -> str:
        raise ValueError("no")


BROKEN = [
    raising(ValueError("no"))(),
    raising(RecursionError())(),
    raising(MemoryError())(),
    raising(SystemExit(3))(),
    raising(KeyboardInterrupt())(),
    raising(GeneratorExit())(),
    raising(asyncio.CancelledError())(),
    raising(type("Base", (BaseException,), {})())(),
    Deep(),
    NoText(),
    OddText("odd"),
    OfOddClass(),
    "lone \ud800",
]


@pytest.mark.parametrize("value", BROKEN, ids=lambda value: "value")
def test_an_object_without_text_fails_no_run(value: Any) -> None:
    @task
    def work(ctx: Context) -> int:
        ctx.logger.info(value)
        ctx.logger.info("%s and %r", value, value)
        ctx.logger.info("%(a)s", {"a": value})
        ctx.logger.info("%d", value)
        ctx.logger.error("x", exc_info=value, extra={"message": value, "run_id": value, "name": "x"})
        ctx.logger.error("x", extra=value)
        ctx.logger.info("the end")
        return 1

    scope = scope_of(claimed(task="work"))
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        assert run_attempt_in_thread(work, scope.run, scope) == Outcome(output="1")
    finally:
        logging.getLogger().removeHandler(handler)
    assert isinstance(scope.link, HereLink)
    texts = [text for _, text, _ in scope.link.lines]
    assert texts[-1] == "the end"
    assert len([text for text in texts if "Python's logging did not take" not in text]) == 7
    for text in texts:
        text.encode()


def test_an_object_that_takes_long_is_made_text_once(caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []

    class Slow:
        def __str__(self) -> str:
            made.append(1)
            return "slow"

    @task
    def work(ctx: Context) -> None:
        ctx.logger.warning("it is %s", Slow())

    scope = scope_of(claimed(task="work"))
    assert run_attempt_in_thread(work, scope.run, scope) == Outcome()
    assert made == [1]
    assert [record.getMessage() for record in caplog.records] == ["it is slow"]


def test_a_handler_that_raises_fails_no_run() -> None:
    class Handler(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise ValueError("disk full")

    @task
    def work(ctx: Context) -> int:
        ctx.logger.warning("hello")
        return 1

    scope = scope_of(claimed(task="work"))
    handler = Handler()
    logging.getLogger("milepost.run").addHandler(handler)
    try:
        assert run_attempt_in_thread(work, scope.run, scope) == Outcome(output="1")
    finally:
        logging.getLogger("milepost.run").removeHandler(handler)
    assert isinstance(scope.link, HereLink)
    assert [text for _, text, _ in scope.link.lines] == [
        "hello",
        "Python's logging did not take this line: ValueError: disk full",
    ]


# --- errors ------------------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class BadNotes(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise ValueError("no")


class BadCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit(1)


def broken_errors() -> Iterator[BaseException]:
    for failure in (ValueError("no"), RecursionError(), MemoryError(), SystemExit(1), KeyboardInterrupt()):
        methods = {
            "__str__": raising(failure).__dict__["__str__"],
            "__repr__": raising(failure).__dict__["__repr__"],
        }
        yield type("Broken", (Exception,), methods)()
    yield type("NoText", (Exception,), {"__str__": lambda self: 5})()
    lone = type("Lone", (Exception,), {"__module__": "builtins"})
    lone.__qualname__ = "Lone \ud800"
    yield lone("lone \udfff")
    yield BadNotes("notes")
    yield BadCause("cause")
    noted = ValueError("noted")
    noted.__notes__ = [NoText(), raising(ValueError("no"))(), "a note", "\ud800"]  # type: ignore[list-item]
    yield noted
    noted = ValueError("noted")
    noted.__notes__ = 5  # type: ignore[assignment]
    yield noted
    yield SystemExit(raising(ValueError("no"))())
    group: BaseException = ValueError("x" * 50)
    for _ in range(100):
        group = ExceptionGroup("group", [group, NoTextError()])
    yield group
    yield ExceptionGroup("wide", [ValueError(str(number)) for number in range(2000)])
    chained = ValueError("first")
    for number in range(500):
        following = ValueError(f"{number}")
        following.__cause__ = chained
        chained = following
    yield chained
    yield ValueError("\0" * 100_000)
    yield ValueError("🚲" * 100_000)


class NoTextError(Exception):
    def __str__(self) -> str:
        raise BaseException("no")


@pytest.mark.parametrize("error", list(broken_errors()), ids=lambda error: "error")
def test_any_error_can_be_described(error: BaseException) -> None:
    described = describe_error(raised(error))
    for text in (described.message, described.name, described.stack_trace):
        assert text
        text.encode()
    assert len(described.message) < 11_000
    assert described.stack_trace is not None
    assert len(described.stack_trace) < 21_000


def test_a_traceback_whose_source_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*arguments: Any, **more: Any) -> Any:
        raise LookupError("no source")

    error = raised(ValueError("out of ink"))
    with monkeypatch.context() as patch:
        patch.setattr("linecache.getline", unreadable)
        patch.setattr("linecache.checkcache", unreadable)
        described = describe_error(error)
    assert (described.name, described.message) == ("ValueError", "out of ink")
    assert "out of ink" in (described.stack_trace or "")


def test_a_traceback_begins_with_the_users_code() -> None:
    @task
    def work() -> None:
        raise ValueError("out of ink")

    scope = scope_of(claimed(task="work"))
    outcome = run_attempt_in_thread(work, scope.run, scope)
    assert outcome.error is not None
    lines = (outcome.error.stack_trace or "").splitlines()
    assert __file__ in lines[1]
    assert lines[-1] == "ValueError: out of ink"


def test_text_is_what_str_says_where_it_says_something() -> None:
    assert text_of(5) == "5"
    assert text_of("x", repr) == "'x'"
    assert text_of("lone \ud800") == "lone \\ud800"
    assert traceback.TracebackException is not None
    assert safe_text.line_of("x" * 40_000).endswith("x... (7,232 more characters)")
