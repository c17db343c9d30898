"""Logs on their way to the server: bounded in bytes, in order, each line once or counted as missing; and nobody ever waits."""

import re
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.protocol.runs import LogLine
from milepost.protocol.work import log_line_size
from milepost.worker import log_book
from milepost.worker.log_book import AttemptLog, LogBook, Part, body_of

MISSING = re.compile(r"([\d,]+) lines \(([\d,]+) bytes\) were left out here")


@dataclass
class Store:
    """Takes the parts of a book as the server does."""

    book: LogBook
    body_bytes_max: int = 10**9
    lines: dict[str, list[LogLine]] = field(default_factory=lambda: defaultdict(list[LogLine]))
    sequences: dict[str, int] = field(default_factory=dict[str, int])
    largest_body: int = 0

    def take(self, *, loses_reply: bool = False) -> bool:
        """Take one request; False when there is none."""
        parts = self.book.take()
        if not parts:
            return False
        self._send(list(parts), loses_reply)
        return True

    def take_everything(self) -> None:
        while not self.book.is_empty:
            self.take()

    def _send(self, parts: list[Part], loses_reply: bool) -> None:
        body = body_of(parts)
        if len(body) > self.body_bytes_max:
            if len(parts) > 1:
                self._send(parts[:1], loses_reply)
                self._send(parts[1:], loses_reply)
            elif self.book.divide(parts[0]):
                self._send(parts, loses_reply)
            return
        self.largest_body = max(self.largest_body, len(body))
        for item in msgspec.json.decode(body)["runs"]:
            if item["sequence"] > self.sequences.get(item["id"], 0):
                self.sequences[item["id"]] = item["sequence"]
                self.lines[item["id"]] += msgspec.convert(item["lines"], list[LogLine])
        if not loses_reply:
            for part in parts:
                self.book.acknowledged(part)

    def said(self, run_id: str) -> list[str]:
        """What the code has said, as far as it is here."""
        return [line.message for line in self.lines[run_id] if line.logger == "user"]

    def missing(self, run_id: str) -> int:
        """How many lines are said to be missing."""
        found = [MISSING.match(line.message) for line in self.lines[run_id]]
        return sum(int(one[1].replace(",", "")) for one in found if one)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the limits small."""

    def shrink(**limits: int) -> None:
        for name, value in limits.items():
            monkeypatch.setattr(log_book, name, value)

    return shrink


def test_lines_leave_in_order_with_what_they_say() -> None:
    book = LogBook(lambda: None)
    log = book.open("run_1", 3)
    book.add(log, "info", "one \ud800 \0 🚲", "user")
    book.add(log, "error", "two", "user")
    [part] = book.take() or []
    [item] = msgspec.json.decode(body_of([part]))["runs"]
    assert (item["id"], item["attempt"], item["sequence"]) == ("run_1", 3, 1)
    assert [(line["level"], line["message"], line["logger"]) for line in item["lines"]] == [
        ("info", "one \\ud800 \0 🚲", "user"),
        ("error", "two", "user"),
    ]
    # The same again, until it is acknowledged.
    assert book.take() == [part]
    book.add(log, "info", "three", "user")
    book.acknowledged(part)
    [part] = book.take() or []
    assert part.sequence == 2


def test_a_line_that_is_too_long_is_cut() -> None:
    book = LogBook(lambda: None)
    log, store = book.open("run_1", 1), Store(book)
    book.add(log, "info", "🚲" * 100_000, "user" * 1000)
    store.take()
    [line] = store.lines["run_1"]
    assert line.message.endswith("🚲... (67,232 more characters)")
    assert len(line.logger) == 200


def test_the_link_is_woken_once_for_what_comes_together() -> None:
    woken: list[int] = []
    book = LogBook(lambda: woken.append(1))
    log = book.open("run_1", 1)
    for _ in range(5):
        book.add(log, "info", "x", "user")
    assert len(woken) == 1
    Store(book).take_everything()
    book.add(log, "info", "x", "user")
    assert len(woken) == 2


def test_while_the_server_is_away_the_newest_lines_wait_and_a_line_counts_the_others() -> None:
    book = LogBook(lambda: None)
    log = book.open("run_1", 1)
    for number in range(75_000):
        book.add(log, "info", f"{number} " + "x" * 1000, "user")
    assert log.waiting_bytes <= log_book.WAITING_BYTES_MAX
    store = Store(book)
    store.take_everything()
    said = store.said("run_1")
    assert said[-1].startswith("74999 ")
    assert len(said) > 900
    assert len(said) + store.missing("run_1") == 75_000
    assert "could not be sent as fast as they came" in store.lines["run_1"][0].message


def test_a_log_keeps_its_beginning_and_its_end() -> None:
    """What people look for in a log that is too long is how it ended."""
    book = LogBook(lambda: None)
    book.limit(100_000)
    log, store = book.open("run_1", 1), Store(book)
    for number in range(10_000):
        book.add(log, "info", f"{number} " + "x" * 100, "user")
        store.take()
    assert "as many bytes as an attempt may log" in store.lines["run_1"][-1].message
    assert book.is_empty
    book.end(log)
    store.take_everything()
    said = [int(line.split()[0]) for line in store.said("run_1")]
    assert said[0] == 0
    assert said[-1] == 9999
    assert len(said) + store.missing("run_1") == 10_000
    assert sum(map(log_line_size, store.lines["run_1"])) <= 100_000
    assert book.is_clear(log)


def test_all_logs_together_are_bounded_and_each_keeps_a_little(small: Callable[..., None]) -> None:
    small(ALL_WAITING_BYTES_MAX=20_000, WAITING_BYTES_MIN=500)
    book = LogBook(lambda: None)
    logs = [book.open(f"run_{number}", 1) for number in range(100)]
    for _ in range(50):
        for log in logs:
            book.add(log, "info", "x" * 50, "user")
    assert sum(log.waiting_bytes for log in logs) <= 20_000 + 100 * 500
    assert all(log.lines for log in logs)
    store = Store(book)
    store.take_everything()
    assert all(len(store.said(log.run_id)) + store.missing(log.run_id) == 50 for log in logs)


def test_a_loud_run_does_not_hold_up_the_lines_of_the_others() -> None:
    book = LogBook(lambda: None)
    loud, quiet = book.open("run_loud", 1), book.open("run_quiet", 1)
    for _ in range(200):
        book.add(loud, "info", "x" * 20_000, "user")
    book.add(quiet, "info", "hello", "user")
    store = Store(book)
    store.take()
    assert store.said("run_quiet") == ["hello"]
    assert store.largest_body <= log_book.REQUEST_BYTES_MAX + 200_000


def test_what_the_server_does_not_take_is_found_and_told() -> None:
    book = LogBook(lambda: None)
    log, other = book.open("run_1", 1), book.open("run_2", 1)
    for number in range(40):
        book.add(log, "info", f"{number} " + "x" * (20_000 if number == 7 else 100), "user")
        book.add(other, "info", f"{number}", "user")
    store = Store(book, body_bytes_max=3000)
    store.take_everything()
    assert [int(line.split()[0]) for line in store.said("run_1")] == [n for n in range(40) if n != 7]
    assert store.missing("run_1") == 1
    assert store.said("run_2") == [str(number) for number in range(40)]


def test_a_server_that_takes_nothing_ends_all_the_same() -> None:
    book = LogBook(lambda: None)
    log = book.open("run_1", 1)
    book.add(log, "info", "x" * 1000, "user")
    Store(book, body_bytes_max=10).take_everything()
    assert book.is_clear(log)


def test_adding_interrupted_by_adding_loses_nothing() -> None:
    """A finalizer or a signal handler may log at any moment, also while a line is being added in the same thread."""
    book = LogBook(lambda: None)
    log, store = book.open("run_1", 1), Store(book)

    class Line(bytes):
        """Logs something while the book holds its lock."""

        def __len__(self) -> int:
            nonlocal depth
            if depth < 3:
                depth += 1
                book.add(log, "info", f"inner {depth}", "user")
            return super().__len__()

    depth = 0
    book._queue.append((log, Line(b'{"at":1,"level":"info","message":"outer","logger":"user"}')))
    book.add(log, "info", "last", "user")
    store.take_everything()
    assert sorted(store.said("run_1")) == ["inner 1", "inner 2", "inner 3", "last", "outer"]


def test_nobody_waits_for_a_thread_that_is_held_up() -> None:
    book = LogBook(lambda: None)
    log = book.open("run_1", 1)
    with book._lock:
        book.add(log, "info", "while it is held", "user")
        assert book.take() is None
        assert not book.is_clear(log)
        for _ in range(2 * log_book.QUEUE_LINES_MAX):
            book.add(log, "info", "x", "user")
    store = Store(book)
    store.take_everything()
    assert store.said("run_1")[0] == "while it is held"
    assert len(store.said("run_1")) + store.missing("run_1") == 2 * log_book.QUEUE_LINES_MAX + 1


def test_many_threads_lose_nothing() -> None:
    book = LogBook(lambda: None)
    book.limit(10**9)
    logs = [book.open(f"run_{number}", 1) for number in range(4)]
    store, stop = Store(book), threading.Event()

    def log_much(name: int) -> None:
        for number in range(1500):
            book.add(logs[number % 4], "info", f"{name} {number}", "user")

    def send() -> None:
        while not stop.is_set() or not book.is_empty:
            store.take()

    sender = threading.Thread(target=send)
    threads = [threading.Thread(target=log_much, args=(name,)) for name in range(6)]
    for thread in (sender, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    sender.join()
    for log in logs:
        said = store.said(log.run_id)
        assert len(said) + store.missing(log.run_id) == 6 * 1500 // 4
        for name in range(6):
            own = [int(line.split()[1]) for line in said if line.startswith(f"{name} ")]
            assert own == sorted(own)


LINE = st.builds(
    lambda text, times: text * times, st.sampled_from(["x", "\0", "🚲", "\ud800", "\n"]), st.integers(0, 90)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), LINE),
        st.tuples(st.just("add"), st.integers(0, 2), LINE),
        st.tuples(st.just("take"), st.booleans(), st.none()),
        st.tuples(st.just("end"), st.integers(0, 2), st.none()),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    limit=st.sampled_from([4096, 6000, 10**6]),
    waiting=st.sampled_from([300, 2000, 10**6]),
    request_bytes=st.sampled_from([200, 1000, 10**6]),
    body=st.sampled_from([400, 10**9]),
)
def test_whatever_is_logged_is_bounded_in_order_and_accounted_for(
    steps: list[tuple[str, Any, Any]], limit: int, waiting: int, request_bytes: int, body: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("WAITING_BYTES_MAX", waiting),
            ("ALL_WAITING_BYTES_MAX", 2 * waiting),
            ("WAITING_BYTES_MIN", 100),
            ("REQUEST_BYTES_MAX", request_bytes),
            ("SHARE_BYTES_MIN", request_bytes // 2),
        ):
            patch.setattr(log_book, name, value)
        book = LogBook(lambda: None)
        book.limit(limit)
        logs: list[AttemptLog] = [book.open(f"run_{number}", 1) for number in range(3)]
        store, said = Store(book, body_bytes_max=body), defaultdict[str, list[str]](list)
        for kind, what, text in steps:
            if kind == "add":
                log = logs[what]
                line = f"{len(said[log.run_id])} {text}"
                said[log.run_id].append(line.encode("utf-8", "backslashreplace").decode())
                book.add(log, "info", line, "user")
                assert log.waiting_bytes <= min(waiting, limit)
                assert sum(log.waiting_bytes for log in logs) <= 2 * waiting + 3 * 100
            elif kind == "take":
                store.take(loses_reply=what)
            else:
                book.end(logs[what])
        for log in logs:
            book.end(log)
        store.take_everything()
        for log in logs:
            assert book.is_clear(log)
            there = store.said(log.run_id)
            places = [said[log.run_id].index(line) for line in there]
            assert places == sorted(set(places))
            assert len(there) + store.missing(log.run_id) == len(said[log.run_id])
            assert sum(map(log_line_size, store.lines[log.run_id])) <= limit
