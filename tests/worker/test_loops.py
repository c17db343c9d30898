"""The event loop that runs share: whatever one run raises on it, that run fails with it, and the others go on."""

import asyncio
import contextvars
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import uvloop

from milepost import Retry, hooks, task
from milepost.model.run import Outcome
from milepost.protocol.work import ClaimedRun
from milepost.sdk import registry
from milepost.sdk.attempt import run_attempt
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.worker.loops import run_shared, shared_loop

KINDS: dict[str, type[asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.Loop,
}

# A signal, as the plugin sends it otherwise, would end nothing here.
pytestmark = pytest.mark.timeout(method="thread")

NEIGHBOUR_SECONDS = 0.2


class DeafLink:
    """A link that takes everything and says nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def wake(self, scope: RunScope) -> None: ...

    def flush(self, scope: RunScope) -> Future[None]:
        raise NotImplementedError

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        raise NotImplementedError

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        self.lines.append(message)


@pytest.fixture(autouse=True)
def fresh_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_tasks", {})
    monkeypatch.setattr(hooks, "_hooks", {})


class House:
    """A shared loop in this thread, as an executor has it."""

    def __init__(self, kind: type[asyncio.AbstractEventLoop]) -> None:
        self.loop = shared_loop(kind)
        self.is_uvloop = kind is uvloop.Loop
        self.strays: list[BaseException] = []
        self.link = DeafLink()

    def run(self, *functions: Callable[..., Any], **hooks: Any) -> list[Outcome]:
        """Run functions as runs beside each other, until all have ended."""
        outcomes: dict[int, Outcome] = {}
        registry._tasks.clear()

        async def live(number: int, function: Callable[..., Any]) -> None:
            work = task(id=f"work-{number}", retry=Retry(max_attempts=1), **hooks)(function)
            run = ClaimedRun(id=f"run_{number}", task=work.id, attempt=1, queue="q", root_id=f"run_{number}")
            scope = RunScope(run, Buffer.of(run, limit=1000), self.link)
            outcomes[number] = await run_attempt(work, run, scope)

        def ended(each: "asyncio.Task[None]") -> None:
            left.discard(each)
            if not left:
                self.loop.stop()

        tasks = [
            self.loop.create_task(live(number, function), context=contextvars.Context())
            for number, function in enumerate(functions)
        ]
        left = set(tasks)
        for each in tasks:
            each.add_done_callback(ended)
        run_shared(self.loop, lambda: not left, self.strays.append)
        for each in tasks:
            each.result()
        return [outcomes[number] for number in range(len(functions))]


@pytest.fixture(params=KINDS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    made = House(KINDS[request.param])
    yield made
    left = asyncio.all_tasks(made.loop)
    for each in left:
        each.cancel()
    if left:
        made.loop.run_until_complete(asyncio.wait(left))
    made.loop.close()


async def neighbour() -> str:
    """Is disturbed by nothing."""
    for _ in range(20):
        await asyncio.sleep(NEIGHBOUR_SECONDS / 20)
    return "fine"


# Each raises ERROR below the run's own task.
BELOW = """
async def raises():
    raise ERROR

async def raises_later():
    await asyncio.sleep(0)
    raise ERROR

def raises_plain(*args):
    raise ERROR

async def in_gather():
    await asyncio.gather(raises(), asyncio.sleep(60))

async def in_gather_with_others():
    await asyncio.gather(*(asyncio.sleep(60) for _ in range(3)), raises_later())

async def in_gather_that_returns_errors():
    await asyncio.gather(raises_later(), raises(), return_exceptions=True)
    await asyncio.sleep(60)

async def in_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(raises_later())
        group.create_task(asyncio.sleep(60))

async def in_group_in_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(in_group())
        await asyncio.sleep(60)

async def in_several_tasks():
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(raises_later())

async def in_task_awaited():
    await asyncio.create_task(raises_later())

async def in_task_that_nobody_awaits():
    background = asyncio.create_task(raises_later())
    await asyncio.sleep(60)

async def in_task_of_a_task():
    async def child():
        background = asyncio.create_task(raises_later())
        await asyncio.sleep(60)
    await asyncio.create_task(child())

async def in_shield():
    await asyncio.shield(raises_later())

async def in_wait_for():
    await asyncio.wait_for(raises_later(), 60)

async def in_wait():
    await asyncio.wait({asyncio.create_task(raises_later())})
    await asyncio.sleep(60)

async def in_callback():
    asyncio.get_running_loop().call_soon(raises_plain)
    await asyncio.sleep(60)

async def in_callback_of_its_own_context():
    asyncio.get_running_loop().call_soon(raises_plain, context=contextvars.copy_context())
    await asyncio.sleep(60)

async def in_later_callback():
    asyncio.get_running_loop().call_later(0.001, raises_plain)
    await asyncio.sleep(60)

async def in_callback_at():
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time(), raises_plain)
    await asyncio.sleep(60)

async def in_callback_from_a_thread():
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(loop.call_soon_threadsafe, raises_plain)
    await asyncio.sleep(60)

async def in_done_callback():
    done = asyncio.create_task(asyncio.sleep(0))
    done.add_done_callback(raises_plain)
    await asyncio.sleep(60)

async def in_reader():
    one, other = socket.socketpair()
    with one, other:
        loop = asyncio.get_running_loop()
        def read():
            loop.remove_reader(one)
            raise ERROR
        loop.add_reader(one, read)
        other.send(b"x")
        await asyncio.sleep(60)

async def in_writer():
    one, other = socket.socketpair()
    with one, other:
        loop = asyncio.get_running_loop()
        def write():
            loop.remove_writer(one)
            raise ERROR
        loop.add_writer(one, write)
        await asyncio.sleep(60)

async def in_thread():
    await asyncio.to_thread(raises_plain)

async def in_coroutine_from_a_thread():
    loop = asyncio.get_running_loop()
    def thread():
        asyncio.run_coroutine_threadsafe(raises_later(), loop).result()
    await asyncio.to_thread(thread)

async def in_generator():
    async def numbers():
        yield 1
        raise ERROR
    await asyncio.create_task(asyncio.wait_for(anext(numbers()), 60))
    async for _ in numbers():
        pass

async def and_swallows_the_cancel():
    background = asyncio.create_task(raises_later())
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "fine after all"

async def in_a_timeout():
    async with asyncio.timeout(60):
        await asyncio.gather(raises_later(), asyncio.sleep(60))
"""
ERRORS = [SystemExit(4), SystemExit(0), KeyboardInterrupt(), KeyboardInterrupt("by hand")]
CASES = [
    name for name in re.findall(r"^async def (\w+)", BELOW, re.MULTILINE) if not name.startswith("raises")
]


def case(name: str, error: BaseException) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"ERROR": error}
    exec("import asyncio, contextvars, socket\n" + BELOW, namespace)
    return namespace[name]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_what_would_end_a_program_ends_the_run(house: House, name: str, error: BaseException) -> None:
    seen: list[str] = []
    neighbours = [neighbour, neighbour]
    bad, *others = house.run(
        case(name, error), *neighbours, on_failure=lambda error: seen.append(repr(error))
    )
    assert [other.output for other in others] == ['"fine"'] * len(others)
    assert bad.error is not None
    assert bad.error.name == type(error).__name__
    assert seen == [repr(error)]
    assert not house.strays


@pytest.mark.parametrize("name", ["in_gather", "in_task_that_nobody_awaits", "in_callback"])
def test_several_runs_at_once_fail_each_with_its_own(house: House, name: str) -> None:
    *bad, other = house.run(*(case(name, SystemExit(number)) for number in range(5)), neighbour)
    assert other.output == '"fine"'
    for number, outcome in enumerate(bad):
        assert outcome.error is not None
        assert f"sys.exit({number})" in outcome.error.message
    assert not house.strays


def test_the_code_cleans_up_behind_itself(house: House) -> None:
    seen: list[str] = []

    async def work() -> None:
        background = asyncio.create_task(case("raises", SystemExit(3))())
        try:
            async with asyncio.timeout(60):
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")
        await background

    [outcome] = house.run(work)
    assert outcome.error is not None
    assert outcome.error.name == "SystemExit"
    assert seen == ["cleaned up"]


def test_hooks_and_what_they_start_are_no_different(house: House) -> None:
    async def fine() -> str:
        return "fine"

    async def exits() -> None:
        await asyncio.gather(case("raises", SystemExit(5))(), asyncio.sleep(60))

    first, other = house.run(fine, neighbour, on_start=exits)
    assert first.error is not None
    assert first.error.name == other.error.name == "SystemExit"  # type: ignore[union-attr]
    # The run is decided by then; the hook's error is in its log.
    first, other = house.run(fine, neighbour, on_success=exits)
    assert (first.output, other.output) == ('"fine"', '"fine"')
    assert any("SystemExit: 5" in line for line in house.link.lines)


def test_what_a_run_leaves_running_ends_nothing(house: House) -> None:
    told: list[dict[str, Any]] = []
    house.loop.set_exception_handler(lambda loop, context: told.append(context))
    kept: list[Any] = []

    async def leaves() -> str:
        async def later() -> None:
            await asyncio.sleep(NEIGHBOUR_SECONDS / 4)
            raise SystemExit(9)

        kept.append(asyncio.create_task(later()))
        return "left"

    first, other = house.run(leaves, neighbour)
    assert (first.output, other.output) == ('"left"', '"fine"')
    assert [context["message"] for context in told] == [
        "what run run_0 of task work-0 has left running has ended with SystemExit(9)"
    ]


@pytest.mark.parametrize("call", ["stop", "close"])
def test_the_loop_belongs_to_all(house: House, call: str) -> None:
    async def work() -> None:
        getattr(asyncio.get_running_loop(), call)()

    async def in_callback() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(getattr(loop, call), context=contextvars.Context())
        await asyncio.sleep(NEIGHBOUR_SECONDS / 4)

    refused, survived, other = house.run(work, in_callback, neighbour)
    assert refused.error is not None
    assert refused.error.name == "UsageError"
    assert f"loop.{call}()" in refused.error.message
    assert survived.error is None
    assert other.output == '"fine"'


def test_misuse_of_the_loop_is_refused_by_asyncio(house: House) -> None:
    async def nested() -> None:
        coroutine = asyncio.sleep(0)
        try:
            asyncio.get_running_loop().run_until_complete(coroutine)
        finally:
            coroutine.close()

    async def forever() -> None:
        asyncio.get_running_loop().run_forever()

    async def policy() -> str:
        asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
        asyncio.set_event_loop(None)
        await asyncio.sleep(0)
        return "fine"

    before = asyncio.get_event_loop_policy()
    try:
        one, two, three, other = house.run(nested, forever, policy, neighbour)
    finally:
        asyncio.set_event_loop_policy(before)
    assert one.error is not None
    assert two.error is not None
    assert one.error.name == two.error.name == "RuntimeError"
    assert three.output == other.output == '"fine"'


def test_a_plain_task_has_a_loop_of_its_own(house: House) -> None:
    def work() -> None:
        asyncio.run(case("in_gather", SystemExit(4))())

    outcome, other = house.run(work, neighbour)
    assert outcome.error is not None
    assert outcome.error.name == "SystemExit"
    assert other.output == '"fine"'


@pytest.mark.parametrize("error", [SystemExit(4), KeyboardInterrupt(), TimeoutError()], ids=repr)
def test_a_signal_handler_that_raises_while_the_loop_waits_ends_nothing(
    house: House, error: BaseException
) -> None:
    def handler(number: int, frame: object) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        kicker = threading.Timer(NEIGHBOUR_SECONDS / 3, signal.raise_signal, [signal.SIGUSR1])
        kicker.start()

        async def sleeps() -> str:
            await asyncio.sleep(NEIGHBOUR_SECONDS)
            return "fine"

        outcomes = house.run(sleeps, sleeps)
        kicker.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [outcome.output for outcome in outcomes] == ['"fine"'] * 2
    # uvloop hands everything but the two to the exception handler itself.
    assert house.strays == ([] if house.is_uvloop and isinstance(error, TimeoutError) else [error])


def test_a_signal_handler_of_the_loop_that_raises_fails_the_run_that_set_it(house: House) -> None:
    async def work() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, case("raises_plain", SystemExit(4)))
        signal.raise_signal(signal.SIGUSR1)
        await asyncio.sleep(60)

    outcome, other = house.run(work, neighbour)
    house.loop.remove_signal_handler(signal.SIGUSR1)
    assert outcome.error is not None
    assert outcome.error.name == "SystemExit"
    assert other.output == '"fine"'


def test_an_exception_handler_that_exits_ends_nothing(house: House) -> None:
    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise SystemExit(7)

    async def work() -> str:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(handler)
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(NEIGHBOUR_SECONDS / 4)
        loop.set_exception_handler(None)
        return "fine"

    outcomes = house.run(work, neighbour)
    assert [outcome.output for outcome in outcomes] == ['"fine"'] * 2
    assert [repr(stray) for stray in house.strays] == ["SystemExit(7)"]


def test_a_loop_that_is_broken_is_given_up(house: House) -> None:
    loop = shared_loop(uvloop.Loop if house.is_uvloop else asyncio.SelectorEventLoop)
    loop.close()
    strays: list[BaseException] = []
    with pytest.raises(RuntimeError):
        run_shared(loop, lambda: False, strays.append)
    assert len(strays) == 3
