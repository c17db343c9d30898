"""Triggers that come at once share a request: each has its own answer, none is lost or sent twice under another id, and nothing waits
for what does not come."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.scripted import Answer, Asked, Drop, ScriptedServer, request_ids, triggered
from milepost import AttemptOverError, Client, PayloadValidationError, UnavailableError, auth
from milepost.client import retries, together
from milepost.client.async_together import AsyncTogether
from milepost.client.calling import NamedAttempt, acting_as
from milepost.client.retries import Patience
from milepost.client.together import Sharing, Together
from milepost.client.transport import Reply, Request
from milepost.protocol.endpoints import REQUEST_ID_HEADER


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)


@pytest.fixture
def patient_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes out of turn."""
    monkeypatch.setattr(together, "LINE_SECONDS", 60.0)
    monkeypatch.setattr("milepost.client.async_together.LINE_SECONDS", 60.0)


class Gate:
    """Holds the first request up until `open`."""

    def __init__(self, server: ScriptedServer, answer: Callable[[Asked], Answer] = triggered) -> None:
        self.server = server
        self.holds = threading.Event()
        self._opened = threading.Event()
        self._answer = answer
        server.answer = self._hold

    def _hold(self, asked: Asked) -> Answer:
        if not self.holds.is_set():
            self.holds.set()
            assert self._opened.wait(30)
            return triggered(asked)
        return self._answer(asked)

    def open(self) -> None:
        self._opened.set()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def line_of(client: Client) -> int:
    """How many wait in line."""
    return len(client.connection._together._line)  # type: ignore[union-attr]  # pyright: ignore


Outcome = tuple[str, str | None] | Exception


def trigger_outcome(client: Client, payload: str) -> Outcome:
    try:
        handle = client.trigger("t", payload)
    except Exception as error:
        return error
    return handle.id, handle.public_access_token


def together_in_threads(client: Client, gate: Gate, payloads: list[str]) -> list[Outcome]:
    """What comes of triggers in threads of their own, all but the first while that is held up."""
    outcomes: dict[int, Outcome] = {}

    def work(number: int, payload: str) -> None:
        outcomes[number] = trigger_outcome(client, payload)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(payloads)]
    threads[0].start()
    assert gate.holds.wait(30)
    for thread in threads[1:]:
        thread.start()
    until(lambda: line_of(client) == len(payloads) - 1)
    gate.open()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return [outcomes[number] for number in range(len(payloads))]


def together_on_a_loop(client: Client, gate: Gate, payloads: list[str]) -> list[Outcome]:
    async def one(payload: str) -> Outcome:
        try:
            handle = await client.atrigger("t", payload)
        except Exception as error:
            return error
        return handle.id, handle.public_access_token

    async def main() -> list[Outcome]:
        first = asyncio.create_task(one(payloads[0]))
        assert await asyncio.to_thread(gate.holds.wait, 30)
        others = [asyncio.create_task(one(payload)) for payload in payloads[1:]]
        await asyncio.sleep(0)
        gate.open()
        outcomes = await asyncio.gather(first, *others)
        await client.async_transport.close()
        return outcomes

    return asyncio.run(main())


@pytest.fixture(params=[together_in_threads, together_on_a_loop])
def at_once(request: pytest.FixtureRequest, patient_line: None) -> Callable[..., list[Outcome]]:
    """Triggers payloads at once, in one of the two colours."""
    return request.param


def check_each_has_its_own(server: ScriptedServer, outcomes: list[Outcome]) -> None:
    """Each has the answer to its own request id, and no id was made for a second time."""
    ids = {request_id for asked in server.asked for request_id in request_ids(asked)}
    assert len(ids) == len(outcomes)
    named = {f"run of {request_id}": f"token of {request_id}" for request_id in ids}
    good = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert len(set(good)) == len(good)
    for run_id, token in good:
        assert named[run_id] == token


def test_those_that_come_meanwhile_share_a_request(
    server: ScriptedServer, client: Client, at_once: Callable[..., list[Outcome]]
) -> None:
    outcomes = at_once(client, Gate(server), ["p"] * 10)
    check_each_has_its_own(server, outcomes)
    assert all(isinstance(outcome, tuple) for outcome in outcomes)
    assert [len(request_ids(asked)) for asked in server.asked] == [1, 9]
    assert server.asked[0].path == "/api/v1/tasks/t/trigger"
    assert server.asked[1].path == "/api/v1/triggers"


def test_what_refuses_one_is_raised_for_that_one_alone(
    server: ScriptedServer, client: Client, at_once: Callable[..., list[Outcome]]
) -> None:
    outcomes = at_once(client, Gate(server), ["p", "refused", "p", "refused", "p"])
    check_each_has_its_own(server, outcomes)
    assert [type(outcome) for outcome in outcomes] == [
        tuple, PayloadValidationError, tuple, PayloadValidationError, tuple,
    ]  # fmt: skip
    assert len({str(outcome) for outcome in outcomes}) == 5
    assert [len(request_ids(asked)) for asked in server.asked] == [1, 4]


def shortened(asked: Asked) -> Answer:
    answer = triggered(asked)
    if asked.path.endswith("/triggers"):
        answer.body["answers"].pop()
    return answer


@pytest.mark.parametrize(
    ("fails", "comes_again"),
    [
        (Drop, True),
        (Answer(503, {"error": "stopping", "code": "unavailable"}), True),
        (Answer(500, {"error": "mistake", "code": "internal_error"}), True),
        (Answer(403, b"not let pass"), False),
        (Answer(404, {"error": "nothing there", "code": "not_found"}), False),
        (Answer(405, {"error": "not taken", "code": "method_not_allowed"}), False),
        (Answer(200, b"<html>"), True),
        (Answer(200, {"answers": []}), True),
        (shortened, True),
    ],
)
def test_where_the_shared_request_fails_each_is_sent_by_itself_under_the_same_id(
    server: ScriptedServer,
    client: Client,
    at_once: Callable[..., list[Outcome]],
    fails: Answer | type[Drop] | Callable[[Asked], Answer],
    comes_again: bool,
) -> None:
    def answer(asked: Asked) -> Answer:
        if not asked.path.endswith("/triggers"):
            return triggered(asked)
        if isinstance(fails, Answer):
            return fails
        if fails is Drop:
            raise Drop
        return fails(asked)  # type: ignore[return-value]

    outcomes = at_once(client, Gate(server, answer), ["p", "p", "refused", "p"])
    check_each_has_its_own(server, outcomes)
    assert [isinstance(outcome, tuple) for outcome in outcomes] == [True, True, False, True]
    shared = [request_ids(asked) for asked in server.asked if asked.path.endswith("/triggers")]
    alone = [request_ids(asked)[0] for asked in server.asked if not asked.path.endswith("/triggers")]
    assert set(shared[0]) < set(alone)
    assert len(alone) == len(set(alone)) == 4
    # A server of an earlier version is not asked again for what it does not know.
    server.asked.clear()
    try:
        at_once(client, Gate(server, answer), ["p"] * 3) if comes_again else trigger_in_crowd(client)
    finally:
        is_asked = any(asked.path.endswith("/triggers") for asked in server.asked)
        assert is_asked == comes_again


def trigger_in_crowd(client: Client) -> None:
    threads = [threading.Thread(target=client.trigger, args=("t",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_large_one_goes_by_itself_and_waits_for_nobody(
    server: ScriptedServer, client: Client, patient_line: None
) -> None:
    gate = Gate(server)
    first = threading.Thread(target=client.trigger, args=("t",))
    first.start()
    assert gate.holds.wait(30)
    assert client.trigger("t", "x" * together.BODY_BYTES_MAX).id
    gate.open()
    first.join()
    assert all(not asked.path.endswith("/triggers") for asked in server.asked)


def test_a_shared_request_is_no_larger_than_a_server_takes(
    server: ScriptedServer,
    client: Client,
    at_once: Callable[..., list[Outcome]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = at_once(client, Gate(server), ["p"] * (together.TRIGGERS_MAX + 50))
    check_each_has_its_own(server, outcomes)
    assert sorted(len(request_ids(asked)) for asked in server.asked) == [1, 49, together.TRIGGERS_MAX]
    server.asked.clear()
    large = "x" * 60_000
    check_each_has_its_own(server, at_once(client, Gate(server), ["p", *[large] * 30]))
    shared = [len(request_ids(asked)) for asked in server.asked if asked.path.endswith("/triggers")]
    assert max(shared) * 60_000 <= together.SHARED_BYTES_MAX + 2 * together.BODY_BYTES_MAX


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_nobody_waits_long_for_a_request_that_takes_long(
    server: ScriptedServer, client: Client, colour: str
) -> None:
    """The first is never answered while the others are."""
    gate = Gate(server)
    if colour == "blocking":
        first = threading.Thread(target=client.trigger, args=("t",))
        first.start()
        assert gate.holds.wait(30)
        threads = [threading.Thread(target=client.trigger, args=("t",)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert first.is_alive()
        gate.open()
        first.join()
    else:

        async def main() -> None:
            first = asyncio.create_task(client.atrigger("t"))
            assert await asyncio.to_thread(gate.holds.wait, 30)
            async with asyncio.timeout(30):
                await asyncio.gather(*(client.atrigger("t") for _ in range(5)))
            assert not first.done()
            gate.open()
            await first
            await client.async_transport.close()

        asyncio.run(main())
    assert sum(len(request_ids(asked)) for asked in server.asked) == 6


def test_a_signal_handler_may_trigger_while_its_thread_does(server: ScriptedServer, client: Client) -> None:
    """In line and under way: it waits for nothing that only its own thread could do."""
    made: list[str] = []
    gates = [Gate(server)]

    def handle(number: int, frame: Any) -> None:
        made.append(client.trigger("t", "of the handler").id)
        gates[0].open()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        # The main thread is under way, and its handler comes meanwhile.
        ringing = threading.Thread(
            target=lambda: gates[0].holds.wait(30) and os.kill(os.getpid(), signal.SIGUSR1)
        )
        ringing.start()
        client.trigger("t")
        ringing.join()
        # The main thread is in line behind another one.
        gates[0] = Gate(server)
        first = threading.Thread(target=client.trigger, args=("t",))
        first.start()
        assert gates[0].holds.wait(30)
        ringing = threading.Thread(
            target=lambda: until(lambda: line_of(client) > 0) or os.kill(os.getpid(), signal.SIGUSR1)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(together, "LINE_SECONDS", 0.5)
            ringing.start()
            client.trigger("t")
        ringing.join()
        first.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(made) == 2


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


def test_a_leader_that_is_interrupted_lets_the_others_go_on(patient_line: None) -> None:
    """And whoever waits may be interrupted too, whatever has been decided about it: nobody behind it is stuck."""
    holds, opened = threading.Event(), threading.Event()
    seen: list[str] = []

    def exchange(
        method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        if not holds.is_set():
            holds.set()
            assert opened.wait(30)
        if target.endswith("/triggers"):
            raise Interrupted
        seen.append(headers[REQUEST_ID_HEADER])
        return Reply(200, b"{}", {})

    triggers = Together(exchange, Sharing("key"))
    outcomes: list[str] = []

    def work(number: int) -> None:
        try:
            triggers.exchange("t", request_of(number))
            outcomes.append("answered")
        except Interrupted:
            outcomes.append("interrupted")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    threads[0].start()
    assert holds.wait(30)
    for thread in threads[1:]:
        thread.start()
    until(lambda: len(triggers._line) == 5)  # pyright: ignore[reportPrivateUsage]
    opened.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(outcomes) == ["answered"] * 5 + ["interrupted"]
    assert len(set(seen)) == 5
    # The turn is back.
    work(7)
    assert outcomes[-1] == "answered"


class Held:
    """An exchange of which the first waits until it is let go."""

    def __init__(self) -> None:
        self.holds, self.opened = threading.Event(), threading.Event()
        self.triggers = Together(self._exchange, Sharing("key"))
        self.first = threading.Thread(target=self.triggers.exchange, args=("t", request_of(0)))
        self.first.start()
        assert self.holds.wait(30)

    def _exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        if not self.holds.is_set():
            self.holds.set()
            assert self.opened.wait(30)
        return Reply(200, b"{}", {})

    def end_first(self) -> None:
        self.opened.set()
        self.first.join()


def test_who_is_interrupted_when_it_is_its_turn_passes_it_on(
    patient_line: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    wait = together._Waiting.wait  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(together._Waiting, "wait", lambda own, seconds: wait(own, seconds) and interrupt())  # pyright: ignore

    def interrupt() -> None:
        raise Interrupted

    def waiter() -> None:
        with pytest.raises(Interrupted):
            held.triggers.exchange("t", request_of(1))

    waiting = threading.Thread(target=waiter)
    waiting.start()
    until(lambda: len(held.triggers._line) == 1)  # pyright: ignore[reportPrivateUsage]
    held.end_first()
    waiting.join()
    assert list(held.triggers._turn) == [True]  # pyright: ignore[reportPrivateUsage]


def test_who_stands_in_line_too_late_to_be_seen_goes_by_itself(patient_line: None) -> None:
    """The last request ended after it was found under way, and before somebody was in line."""
    held = Held()

    class Line(deque[Any]):
        def append(self, own: Any) -> None:
            held.end_first()
            super().append(own)

    held.triggers._line = Line()  # pyright: ignore[reportPrivateUsage]
    began = time.monotonic()
    assert held.triggers.exchange("t", request_of(1)).status == 200
    assert time.monotonic() - began < 30


def request_of(number: int) -> Request:
    return Request("POST", f"/tasks/{number}", b"{}", {REQUEST_ID_HEADER: str(number)}, Patience(None))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_of_its_parent(
    server: ScriptedServer, client: Client, patient_line: None
) -> None:
    gate = Gate(server)
    threads = [threading.Thread(target=client.trigger, args=("t",)) for _ in range(3)]
    threads[0].start()
    assert gate.holds.wait(30)
    for thread in threads[1:]:
        thread.start()
    until(lambda: line_of(client) == 2)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.trigger("t").id else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0) == (child, 0)
    gate.open()
    for thread in threads:
        thread.join()
    ids = [request_id for asked in server.asked for request_id in request_ids(asked)]
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_an_attempt_that_is_over_waits_no_longer(
    server: ScriptedServer, client: Client, patient_line: None, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken into a shared request that is not answered."""
    first, shared, opened = threading.Event(), threading.Event(), threading.Event()

    def answer(asked: Asked) -> Answer:
        is_shared = asked.path.endswith("/triggers")
        if not first.is_set():
            first.set()
            until(is_waiting)
        elif is_shared:
            shared.set()
            assert opened.wait(30)
        return triggered(asked)

    server.answer = answer
    attempt = NamedAttempt("run_1", 1)
    waiting = threading.Event()

    def is_waiting() -> bool:
        return waiting.is_set() or line_of(client) == 2

    if colour == "blocking":
        # Long enough for all to be in line.
        monkeypatch.setattr(together, "LINE_SECONDS", 1.0)
        others = [threading.Thread(target=client.trigger, args=("t",)) for _ in range(2)]
        others[0].start()
        assert first.wait(30)
        others[1].start()
        until(lambda: line_of(client) == 1)

        def end() -> None:
            assert shared.wait(30)
            attempt.lose()

        ending = threading.Thread(target=end)
        ending.start()
        with acting_as(attempt), pytest.raises(AttemptOverError, match="no answer in time"):
            client.trigger("t")
        opened.set()
        for thread in (*others, ending):
            thread.join()
    else:

        async def as_attempt() -> None:
            with acting_as(attempt), pytest.raises(AttemptOverError, match="no answer in time"):
                await client.atrigger("t")

        async def main() -> None:
            tasks = [asyncio.create_task(client.atrigger("t"))]
            await asyncio.to_thread(first.wait, 30)
            tasks.append(asyncio.create_task(client.atrigger("t")))
            await asyncio.sleep(0)
            late = asyncio.create_task(as_attempt())
            await asyncio.sleep(0)
            waiting.set()
            assert await asyncio.to_thread(shared.wait, 30)
            attempt.lose()
            await late
            opened.set()
            await asyncio.gather(*tasks)
            await client.async_transport.close()

        asyncio.run(main())


def test_the_bearer_of_a_public_token_sends_each_by_itself(server: ScriptedServer) -> None:
    server.answer = triggered
    token = auth.create_public_token({"read": {"runs": True}}, client=Client(server.url, "key"))
    trigger_in_crowd(Client(server.url, token))
    assert [len(request_ids(asked)) for asked in server.asked] == [1] * 8
    assert all(asked.path == "/api/v1/tasks/t/trigger" for asked in server.asked)


def test_a_loop_that_has_ended_is_let_go(server: ScriptedServer, client: Client) -> None:
    server.answer = triggered
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(client.atrigger("t") for _ in range(20)))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


# --- whatever happens meanwhile ------------------------------------------------------------------------------


class Chancy:
    """Exchanges that take a while, and fail now and then, in all ways there are."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        # How often each trigger has reached the server.
        self.reached: dict[str, int] = {}

    def outcome(self, target: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        kind = self.chance.random()
        if kind < 0.1:
            raise UnavailableError("did not come there")
        shared = target.endswith("/triggers")
        asked = Asked("POST", target, {}, headers, together.msgspec.json.decode(body or b"{}"))
        for request_id in request_ids(asked):
            self.reached[request_id] = self.reached.get(request_id, 0) + 1
        if kind < 0.2:
            raise UnavailableError("the answer was lost")
        if shared and kind < 0.3:
            return Reply(self.chance.choice([500, 503]), b"{}", {})
        answer = triggered(asked)
        return Reply(answer.status, together.msgspec.json.encode(answer.body), answer.headers)


@contextmanager
def line_seconds(seconds: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "LINE_SECONDS", seconds)
        patch.setattr("milepost.client.async_together.LINE_SECONDS", seconds)
        yield


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), hurries=st.booleans())
def test_coroutines_are_answered_each_by_its_own_whatever_happens(
    seed: int, count: int, hurries: bool
) -> None:
    chance = random.Random(seed)
    server = Chancy(chance)

    async def exchange(
        method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        reply = server.outcome(target, body, headers)
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        return reply

    async def one(triggers: AsyncTogether, number: int) -> None:
        for _ in range(chance.randrange(10)):
            await asyncio.sleep(0)
        while True:
            try:
                reply = await triggers.exchange("t", request_of(number))
            except UnavailableError:
                continue
            break
        assert reply.status == 200
        assert together.msgspec.json.decode(reply.content)["id"] == f"run of {number}"
        assert reply.headers.get("x-trigger-jwt") == f"token of {number}"
        assert server.reached[str(number)] >= 1

    async def main() -> None:
        triggers = AsyncTogether(exchange, Sharing("key"))
        tasks = [asyncio.create_task(one(triggers, number)) for number in range(count)]
        cancelled: set[int] = set()
        while not all(task.done() for task in tasks):
            if chance.random() < 0.2:
                number = chance.randrange(count)
                if tasks[number].cancel():
                    cancelled.add(number)
            await asyncio.sleep(0)
        for number, task in enumerate(tasks):
            assert (number in cancelled and task.cancelled()) or task.exception() is None
        # Nothing is thought to be under way, and the next one goes at once.
        for line in triggers._lines.values():  # pyright: ignore[reportPrivateUsage]
            state = line._under_way, len(line._waiting), line._timer  # pyright: ignore[reportPrivateUsage]
            assert state == (0, 0, None)

    with line_seconds(0.0 if hurries else 60.0):
        asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 60.0])
def test_threads_are_answered_each_by_its_own_whatever_happens(seconds: float) -> None:
    chance = random.Random(seconds)
    server = Chancy(chance)

    def exchange(
        method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        time.sleep(chance.choice([0.0, 0.0, 0.0003]))
        reply = server.outcome(target, body, headers)
        time.sleep(chance.choice([0.0, 0.0, 0.0003]))
        if chance.random() < 0.02:
            raise Interrupted
        return reply

    triggers = Together(exchange, Sharing("key"))
    faults: list[str] = []

    def work(thread: int) -> None:
        for number in range(thread * 1000, thread * 1000 + 100):
            while True:
                try:
                    reply = triggers.exchange("t", request_of(number))
                except (UnavailableError, Interrupted):
                    continue
                break
            found = together.msgspec.json.decode(reply.content)["id"], reply.headers.get("x-trigger-jwt")
            if found != (f"run of {number}", f"token of {number}"):
                faults.append(f"{number} was answered {found}")

    with line_seconds(seconds):
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert faults == []
    assert len(server.reached) == 1600
    assert list(triggers._turn) == [True]  # pyright: ignore[reportPrivateUsage]
