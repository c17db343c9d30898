"""What a run prints and logs is in its log as well as where it goes anyway, and each line belongs to the run that has written it."""

import asyncio
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from milepost import Context, metadata, task
from milepost.model.run import Outcome
from milepost.sdk import capture
from milepost.sdk.attempt import run_attempt, run_attempt_in_thread
from milepost.sdk.capture import capture_output, end_lines
from milepost.sdk.scope import RunScope
from sdk.here import HereLink, claimed, scope_of


class Streams:
    """What arrives below standard output and standard error."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._below = {name: io.BytesIO() for name in ("stdout", "stderr")}

    def install(self) -> None:
        """From now on. pytest puts its own streams back before the test itself begins, so each test calls it first."""
        patch = self._patch
        for name, below in self._below.items():
            stream = io.TextIOWrapper(below, encoding="utf-8", errors="backslashreplace", line_buffering=True)
            patch.setattr(sys, name, stream)
        # Put back afterwards.
        patch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
        capture_output()

    @property
    def out(self) -> str:
        sys.stdout.flush()
        return self._below["stdout"].getvalue().decode("utf-8", "replace")

    @property
    def err(self) -> str:
        sys.stderr.flush()
        return self._below["stderr"].getvalue().decode()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    return Streams(monkeypatch)


def lines_of(scope: RunScope) -> list[tuple[str, str, str]]:
    assert isinstance(scope.link, HereLink)
    return scope.link.lines


def ran(function: Callable[..., Any], payload: object = None) -> list[tuple[str, str, str]]:
    """What the log has of a run of this code: level, text, logger."""
    made = task(function)
    scope = scope_of(claimed(payload, task=made.id))
    outcome = run_attempt_in_thread(made, scope.run, scope)
    end_lines(scope)
    assert outcome == Outcome(), outcome.error
    return lines_of(scope)


def texts(lines: list[tuple[str, str, str]]) -> list[str]:
    return [text for _, text, _ in lines]


def test_prints_go_both_ways(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        print("one", 2)
        print("to the other", file=sys.stderr)
        sys.stdout.writelines(["three\n", "four\n"])
        print("a\nb", end="c\n")

    print("before any run")
    assert ran(work) == [
        ("info", "one 2", "stdout"),
        ("info", "to the other", "stderr"),
        ("info", "three", "stdout"),
        ("info", "four", "stdout"),
        ("info", "a", "stdout"),
        ("info", "bc", "stdout"),
    ]
    print("after it")
    assert streams.out == "before any run\none 2\nthree\nfour\na\nbc\nafter it\n"
    assert streams.err == "to the other\n"


def test_a_line_that_has_not_ended_is_one_at_the_end(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        print("loading", end="")
        print(".", end="")
        print(".", end="", flush=True)
        sys.stderr.write("and here")

    assert texts(ran(work)) == ["loading..", "and here"]
    assert streams.out == "loading.."


def test_a_progress_bar_is_the_line_that_is_seen_in_the_end(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        for percent in range(101):
            sys.stderr.write(f"\r{percent:3}%|{'#' * (percent // 10)}")
            sys.stderr.flush()
        sys.stderr.write("\n")
        for step in range(5):
            print(f"step {step}", end="\r")
        print()
        print("windows\r")
        sys.stdout.write("last\r")

    assert texts(ran(work)) == ["100%|##########", "step 4", "windows", "last"]


def test_bytes_are_heard_as_text(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        sys.stdout.buffer.write(b"caf\xc3\xa9\n")
        sys.stdout.buffer.writelines([b"broken \xff\n", memoryview(b"view\n")])
        sys.stdout.buffer.flush()

    assert texts(ran(work)) == ["café", "broken \\xff", "view"]
    assert "café\nbroken" in streams.out


def test_the_streams_are_what_they_were(streams: Streams) -> None:
    streams.install()
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        assert (stream.encoding, stream.errors, stream.line_buffering) == ("utf-8", "backslashreplace", True)
        assert not stream.isatty()
        stream.reconfigure(line_buffering=False)
        assert stream.buffer.writable()
    with pytest.raises(TypeError):
        sys.stdout.write(5)  # type: ignore[arg-type]
    print("x", end="")
    assert streams.out == "x"


def test_what_is_printed_at_once_is_bounded_and_accounted_for(streams: Streams) -> None:
    """A hundred megabytes cost the time of printing them, and not that of a million log lines."""
    streams.install()

    def work() -> None:
        print("".join(f"{number}\n" for number in range(2_000_000)), end="")

    began_at = time.monotonic()
    lines = ran(work)
    assert time.monotonic() - began_at < 30
    assert len(lines) < 200_000
    said = [int(text) for _, text, logger in lines if logger == "stdout"]
    [notice] = [text for _, text, logger in lines if logger == "milepost.log"]
    assert said == sorted(said)
    assert (said[0], said[-1]) == (0, 1_999_999)
    assert len(said) + int(notice.split()[0].replace(",", "")) == 2_000_000
    assert streams.out.count("\n") == 2_000_000


def test_a_line_without_an_end_is_bounded(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        for _ in range(300):
            sys.stdout.write("x" * 1000)

    scope = scope_of(claimed(task="work"))
    assert run_attempt_in_thread(task(id="work")(work), scope.run, scope) == Outcome()
    assert all(len(text) <= 34_000 for text in (scope.unended_lines or {}).values())
    end_lines(scope)
    assert sum(len(text) for _, text, _ in lines_of(scope)) == 300_000


def test_each_line_belongs_to_the_run_that_has_written_it(streams: Streams) -> None:
    streams.install()

    def speak(name: str) -> None:
        for number in range(200):
            sys.stdout.write(f"{name} ")
            time.sleep(0)
            sys.stdout.write(f"{number}\n")

    scopes = [scope_of(claimed(name, task="speak")) for name in ("a", "b", "c")]
    speaking = task(id="speak")(speak)
    threads = [
        threading.Thread(target=run_attempt_in_thread, args=(speaking, scope.run, scope)) for scope in scopes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scope, name in zip(scopes, "abc", strict=True):
        assert texts(lines_of(scope)) == [f"{name} {number}" for number in range(200)]


def test_tasks_of_one_loop_do_not_mix(streams: Streams) -> None:
    streams.install()

    async def speak(name: str) -> None:
        for number in range(20):
            print(name, number)
            await asyncio.sleep(0)

    scopes = [scope_of(claimed(name, task="speak")) for name in ("a", "b")]
    speaking = task(id="speak")(speak)

    async def all_at_once() -> None:
        await asyncio.gather(
            *(asyncio.create_task(run_attempt(speaking, scope.run, scope)) for scope in scopes)
        )

    asyncio.run(all_at_once())
    for scope, name in zip(scopes, "ab", strict=True):
        assert texts(lines_of(scope)) == [f"{name} {number}" for number in range(20)]


def test_a_thread_that_is_not_bound_just_prints(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        for target in (lambda: print("unbound"), metadata.bind(lambda: print("bound"))):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

    assert texts(ran(work)) == ["bound"]
    assert streams.out == "unbound\nbound\n"


def test_the_end_of_a_run_is_the_end_of_its_lines(streams: Streams) -> None:
    streams.install()
    later: list[Callable[[], None]] = []

    def work() -> None:
        later.append(metadata.bind(lambda: print("too late")))

    lines = ran(work)
    later[0]()
    assert lines == []
    assert streams.out == "too late\n"


def test_a_forked_child_just_prints(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        print("parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                print("child")
                logging.getLogger("app").warning("child")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    assert texts(ran(work)) == ["parent"]


# --- logging -----------------------------------------------------------------------------------------------


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger of its own, at INFO, that shows its lines nowhere."""
    logger = logging.Logger("app.orders", logging.INFO)
    logger.addHandler(logging.NullHandler())
    return logger


def test_logging_goes_into_the_log(streams: Streams, logger: logging.Logger) -> None:
    streams.install()

    def work() -> None:
        logger.info("%d orders", 3)
        logger.debug("not enabled")
        logger.critical("fire")
        try:
            raise KeyError("inner")
        except KeyError:
            logger.exception("failed")

    logger.info("outside of a run")
    lines = ran(work)
    assert lines[:2] == [("info", "3 orders", "app.orders"), ("error", "fire", "app.orders")]
    level, text, _ = lines[2]
    assert level == "error"
    assert text.startswith("failed\nTraceback")
    assert text.endswith("KeyError: 'inner'")
    assert len(lines) == 3


def test_a_record_is_there_once_whatever_its_handlers_print(streams: Streams, logger: logging.Logger) -> None:
    streams.install()

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("handled:", record.getMessage())
            # As a handler does whose library logs.
            logger.info("nested")

    def work(ctx: Context) -> None:
        logger.info("hello")
        ctx.logger.info("by the context")
        print("printed")

    logger.addHandler(logging.StreamHandler(sys.stderr))
    printing = Printing()
    printing.addFilter(lambda record: record.getMessage() != "nested")
    logger.addHandler(printing)
    assert texts(ran(work)) == ["hello", "by the context", "printed"]
    assert streams.err == "hello\nnested\n"
    assert streams.out == "handled: hello\nprinted\n"


def test_records_that_are_filtered_out_are_not_heard(streams: Streams, logger: logging.Logger) -> None:
    streams.install()
    logger.addFilter(lambda record: "secret" not in record.getMessage())

    def work() -> None:
        logger.info("secret")
        logger.info("public")

    assert texts(ran(work)) == ["public"]


def test_the_setting_up_of_logging_inside_a_task_works_as_ever(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams.install()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def work() -> None:
        logging.basicConfig(level=logging.INFO, format="MINE %(message)s")
        logging.getLogger("app").info("hello")

    assert texts(ran(work)) == ["hello"]
    assert streams.err == "MINE hello\n"


@pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), SystemExit(2), KeyboardInterrupt()])
def test_an_object_without_text_does_not_reach_the_run(
    error: BaseException, streams: Streams, logger: logging.Logger
) -> None:
    streams.install()

    class Broken:
        def __str__(self) -> str:
            raise error

    def work() -> None:
        logger.info(Broken())
        logger.info("%s", Broken())
        logger.info("%d", "x")

    lines = ran(work)
    assert len(lines) == 3
    assert all("could not be formatted" in text for text in texts(lines))


def test_what_prints_while_a_line_is_heard_is_a_line_of_its_own(streams: Streams) -> None:
    """A finalizer may print at any moment, also in the middle of another print."""
    streams.install()

    class Noisy:
        def __del__(self) -> None:
            print("finalized")

    class NoisyLink(HereLink):
        noisy: Any = None

        def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
            self.noisy = None
            super().log(scope, level, message, logger)

    def work() -> None:
        link.noisy = Noisy()
        print("outer")
        print("half", end="")
        link.noisy = Noisy()
        print(" and half")

    scope = scope_of(claimed(task="work"))
    link = NoisyLink(scope.link.server)  # type: ignore[attr-defined]
    scope.link = link
    assert run_attempt_in_thread(task(id="work")(work), scope.run, scope) == Outcome()
    assert sorted(texts(link.lines)) == ["finalized", "finalized", "half and half", "outer"]


def test_it_can_be_paused(streams: Streams) -> None:
    streams.install()

    def work() -> None:
        with capture.uncaptured():
            print("ours")
        print("theirs")

    assert texts(ran(work)) == ["theirs"]
    assert streams.out == "ours\ntheirs\n"
