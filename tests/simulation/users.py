"""Who writes and reads from outside: writers, subscribers, and callers who look now and then. All through the real client."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from random import Random
from typing import TYPE_CHECKING, Any, cast

import msgspec

from milepost.client import calls
from milepost.client.async_connections import AsyncConnections
from milepost.client.async_together import AsyncTogether
from milepost.client.async_transport import AsyncTransport
from milepost.client.connection import Connection
from milepost.client.subscription import RunFollower
from milepost.client.updater import OutsideMetadata, Sink, Updater
from milepost.errors import MetadataError, MetadataFlushError, MilepostError, NotFoundError, UnavailableError
from milepost.model.operations import Operation
from milepost.protocol.schedules import CreateScheduleRequest
from milepost.protocol.triggering import DebounceOption, TriggerOptions, TriggerRequest
from simulation import debounce_watch
from simulation.network import URL, Connections, Peer
from simulation.records import Group

if TYPE_CHECKING:
    from simulation.simulation import Simulation


class Transport(AsyncTransport):
    """The real one, on a network that is none."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(URL, "key")
        self._only_connections = cast(Any, connections)

    async def _connections_here(self) -> AsyncConnections:
        return self._only_connections


class SimulatedConnection(Connection):
    """The real one, on a network that is none."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(URL, "key")
        transport = Transport(connections)
        self._async_ways["one"] = transport, AsyncTogether(transport.exchange, self._sharing)


def perform(updater: Updater, random: Random, token: str, *, wild: bool) -> None:
    """One call on a document. Wild ones destroy what others wrote; the rest only adds."""
    kind = random.randrange(18 if wild else 11)
    if kind <= 1:
        updater.append("log", token)
    elif kind <= 3:
        updater.increment("n", random.randint(1, 9))
    elif kind == 4:
        updater.set("last", token)
    elif kind == 5:
        updater.append("tail", token, max_items=3)
    elif kind == 6:
        updater.increment("once", 1, once=f"id-{random.randrange(6)}")
    elif kind == 7:
        updater.set(random.choice(["$.deep.a", "$.deep.b.c", "deep.a"]), token)
    elif kind == 8:
        # The cap grows, shrinks and vanishes, and the key is written in several ways.
        for _ in range(random.choice([1, 3])):
            key = random.choice(["tail", "tail", "$.tail", '$["tail"]'])
            updater.append(key, token, max_items=random.choice([None, 1, 1, 2, 3]))
    elif kind == 9:
        # A name of digits at the top level, and below it.
        updater.append(random.choice(["$.2.rows", "$.2.3"]), token, max_items=random.choice([None, 2]))
    elif kind == 10:
        # An id counts for each key.
        id = f"id-{random.randrange(6)}"
        updater.increment("once", 1, once=id).append(random.choice(["ids", "$.ids"]), id, once=id)
    elif kind == 11:
        updater.delete(random.choice(["last", "$.deep.a", "tail", "$.log[0]", "2", "$.2.rows[-1]"]))
    elif kind == 12:
        # To text this is refused: at the call on the own document, by the server elsewhere.
        updater.increment(random.choice(["last", "name"]), 1)
    elif kind == 13:
        updater.remove(random.choice(["log", "last"]), token)
    elif kind == 14:
        updater.set(random.choice(["tail", "$.tail", "2", "$.2"]), random.choice([[], [token], token]))
    elif kind == 15:
        updater.set(random.choice(["$.2[-1]", "$.2.rows[-1]", "$.2.rows.0", "$.tail[-1]"]), token)
    elif kind == 16:
        # All at once, as a loop makes it.
        key = random.choice(["tail", "2"])
        updater.append(key, token, max_items=1).append(key, 2, max_items=1).append(key, 3)
        updater.set(f"$.{key}[-1]", 4).set(key, [token])
    else:
        updater.replace({"name": token, "n": random.randint(0, 3)})


class RecordingMetadata(OutsideMetadata):
    """The real one, with a witness."""

    group: Group

    def _sink(self) -> Sink | None:
        sink = super()._sink()
        assert sink is not None
        return cast(Sink, _Witness(sink, self.group))


class _Witness:
    """A sink, with a witness at the doors by which operations come in."""

    def __init__(self, sink: Sink, group: Group) -> None:
        self._real, self._group = sink, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def add(self, operation: Operation) -> None:
        self._real.add(operation)
        self._group.operations.append(operation)

    def add_all(self, operations: list[Operation]) -> None:
        self._real.add_all(operations)
        self._group.operations += operations


class User:
    """Someone outside, with a connection of their own."""

    def __init__(self, simulation: "Simulation", name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.random = Random(f"{simulation.seed}/{name}")
        self.read_random = Random(f"{simulation.seed}/{name}/reads")
        peer = Peer(name, Random(f"{simulation.seed}/{name}/network"))
        self.connection = SimulatedConnection(Connections(simulation.network, peer))


async def write(user: User, run_id: str) -> None:
    """Write to a run from outside, in groups, until all of them have an answer."""
    random, simulation = user.random, user.simulation
    groups: list[Group] = []
    simulation.records.groups.append(groups)
    updater = RecordingMetadata(lambda: user.connection, run_id)
    unsent: list[Group] = []
    for number in range(random.choice([1, 3, 6])):
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 4))
        group = updater.group = Group(run_id, f"{user.name}:{number}")
        groups.append(group)
        for index in range(random.choice([0, 1, 4])):
            # What replaces everything would take in the tokens of groups that have not been sent.
            wild = simulation.plan.wild and not unsent and not index
            with contextlib.suppress(MetadataError):
                perform(updater, random, f"{group.token}.{index}", wild=wild)
        updater.append("out", group.token)
        unsent.append(group)
        await _send(user, updater, unsent, patient=random.random() < 0.5)
    await _send(user, updater, unsent, patient=True)


async def tell(user: User, run_id: str) -> None:
    """Write to a run that only reads, and with the last word that this is all; mostly while things still go wrong."""
    random, simulation = user.random, user.simulation
    groups: list[Group] = []
    simulation.records.groups.append(groups)
    updater = RecordingMetadata(lambda: user.connection, run_id)
    count = random.choice([1, 3, 6])
    for number in range(count):
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / count))
        group = updater.group = Group(run_id, f"{user.name}:{number}")
        groups.append(group)
        updater.append("out", group.token).increment("told", 1)
        if number == count - 1:
            updater.set("all_told", count)
        await _send(user, updater, [group], patient=True)


async def _send(user: User, updater: RecordingMetadata, unsent: list[Group], *, patient: bool) -> None:
    while unsent:
        fate, has_refused = "acknowledged", False
        # An unanswered request is repeated first, and what was called later goes with a second one.
        try:
            await updater.asend()
        except UnavailableError:
            if not patient:
                return
            await asyncio.sleep(0.5)
            continue
        except MetadataFlushError:
            has_refused = True
        except MilepostError:
            # Only the request that was under way is refused; whatever else there is was not sent.
            fate = "refused"
        if fate == "refused" and updater._collected.has_operations:
            later = updater._collected
            tokens = {getattr(operation, "value", None) for operation in _flat(later)}
            refused = [group for group in unsent if group.token not in tokens]
        else:
            refused = list(unsent)
        for group in refused:
            group.fate, group.has_refused = fate, has_refused
            unsent.remove(group)
        if fate == "acknowledged" and user.read_random.random() < 0.3:
            # Whatever server answers knows of it.
            with contextlib.suppress(UnavailableError):
                document = await user.connection.asend(calls.get_metadata(updater._run_id))
                for group in refused:
                    group.read_version = document.version


def _flat(collected: Any) -> list[Any]:
    return [
        operation for operation in collected._pending if isinstance(getattr(operation, "value", None), str)
    ]


async def subscribe(user: User, run_id: str) -> None:
    """Follow a run to its end: early or late, slow or quick, with connections that are given up and taken up again."""
    random, simulation = user.random, user.simulation
    await asyncio.sleep(random.choice([0.0, 0.0, random.uniform(0, simulation.plan.chaos_seconds)]))
    slowness = random.choice([0.0, 0.0, 0.1, 1.0])
    follower = RunFollower()
    version, was_final = -1, False
    while not follower.has_ended:
        states = cast("AsyncGenerator[Any]", user.connection.afollow(calls.watch_run(run_id), follower))
        leaves_after = random.choice([1, 3, 1000])
        try:
            async for run in states:
                simulation.note(user.name, "sees", run_id, run.metadata_version, run.status)
                assert run.metadata_version >= version, f"{user.name} went back in {run_id} from {version}"
                assert run.status.is_final or not was_final, f"{user.name}: {run_id} went on after its end"
                version, was_final = run.metadata_version, run.status.is_final
                simulation.records.saw(user.name, run_id, version, run.metadata, was_final)
                await asyncio.sleep(slowness * random.random())
                leaves_after -= 1
                if not leaves_after:
                    break
        except UnavailableError:
            await asyncio.sleep(random.uniform(0, 2))
        finally:
            await states.aclose()
        if random.random() < 0.2 and not follower.has_ended:
            # Another program, that knows nothing.
            follower = RunFollower()
    assert was_final, f"{user.name}: the feed of {run_id} ended before the run"
    simulation.note(user.name, "has seen the end of", run_id)


async def look(user: User, run_id: str) -> None:
    """Ask for a run now and then."""
    random, simulation = user.random, user.simulation
    version = -1
    for _ in range(random.randint(1, 5)):
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 3))
        with contextlib.suppress(UnavailableError):
            if random.random() < 0.5:
                run = await user.connection.asend(calls.retrieve_run(run_id))
                seen = run.metadata_version, run.metadata, run.status.is_final
            else:
                document = await user.connection.asend(calls.get_metadata(run_id))
                seen = document.version, document.value, False
            assert seen[0] >= version, f"{user.name} went back in {run_id} from {version} to {seen[0]}"
            version = seen[0]
            simulation.records.saw(user.name, run_id, *seen)


async def trigger_by_key(user: User) -> None:
    """Trigger runs by keys that others use too: what there is and has not failed is meant."""
    random, simulation, watch = user.random, user.simulation, user.simulation.watch
    for number in range(random.choice([1, 2, 4])):
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 3))
        name = f"{user.name}.{number}"
        key = f"key{random.randrange(2)}"
        ttl = random.choice([None, None, 2])
        simulation.records.wanted.add(name)
        simulation.records.keys[name] = key, ttl
        options = TriggerOptions(idempotency_key=key, idempotency_key_ttl=ttl)
        request = TriggerRequest(payload=msgspec.json.encode(name).decode(), options=options)
        failed = watch.failed_of_key(key)
        answer = await _patiently(user, calls.trigger("parent", request), f"{number}")
        simulation.note(user.name, "triggers", name, "by", key, "which is", answer.id, answer.is_cached)
        watch.judge_answer(name, key, answer.id, is_cached=answer.is_cached, failed=failed)


async def trigger_debounced(user: User) -> None:
    """Trigger runs by a debounce key that others use too: one that is delayed is meant, and put off."""
    random, simulation = user.random, user.simulation
    await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 2))
    for number in range(random.choice([2, 4, 8])):
        name = f"{user.name}.{number}"
        simulation.records.wanted.add(name)
        simulation.records.debounced.add(name)
        simulation.records.delays[name] = debounce_watch.SECONDS
        option = DebounceOption(key=debounce_watch.KEY, delay=f"{debounce_watch.SECONDS}s")
        request = TriggerRequest(
            payload=msgspec.json.encode(name).decode(), options=TriggerOptions(debounce=option)
        )
        answer = await _patiently(user, calls.trigger("parent", request), f"{number}")
        simulation.note(user.name, "triggers", name, "which is", answer.id, answer.is_cached)
        simulation.watch.judge_debounced(name, answer.id, is_cached=answer.is_cached)
        await asyncio.sleep(random.uniform(0, 3))


async def schedule(user: User) -> None:
    """Have runs triggered again and again, until things are calm."""
    random, simulation = user.random, user.simulation
    records, plan = simulation.records, simulation.plan
    await asyncio.sleep(random.uniform(0.5, 0.5 + plan.chaos_seconds / 4))
    records.wanted.add(user.name)
    records.scheduled.add(user.name)
    request = CreateScheduleRequest(
        task="parent", every=random.choice([1, 3, 7]), payload=msgspec.json.encode(user.name).decode()
    )
    made = await _patiently(user, calls.create_schedule(request), "made")
    await asyncio.sleep(random.uniform(0.5, 1.0) * plan.chaos_seconds)
    await _patiently(user, calls.delete_schedule(made.id), "deleted")


async def operate(user: User) -> None:
    """Pause a queue, or set another limit where its tasks name one, for a while, and perhaps another one. Others may do so too."""
    random, simulation = user.random, user.simulation
    queues = [task.queue for task in simulation.tasks.values() if task.queue is not None]
    await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 2))
    for queue in queues:
        await _is_known(user, queue.name)
    for number in range(random.choice([1, 1, 2, 4])):
        queue = random.choice(queues)
        begin, end = calls.pause_queue(queue.name, "pause"), calls.pause_queue(queue.name, "resume")
        if queue.concurrency is not None and random.random() < 0.5:
            begin = calls.override_queue(queue.name, random.choice([1, 1, 2, 3]))
            end = calls.reset_queue(queue.name)
        await _patiently(user, begin, f"begins{number}")
        simulation.note(user.name, "has done", begin.form, queue.name)
        await asyncio.sleep(random.uniform(0, simulation.plan.chaos_seconds / 2))
        await _patiently(user, end, f"ends{number}")
        simulation.note(user.name, "has done", end.form, queue.name)


async def _is_known(user: User, queue: str) -> None:
    """Wait until a worker has come, before which nobody knows its queues."""
    while True:
        try:
            await _patiently(user, calls.retrieve_queue(queue), "looks")
            return
        except NotFoundError:
            await asyncio.sleep(0.3)


async def _patiently(user: User, call: calls.Call[Any], name: str) -> Any:
    """Ask until there is an answer. The repeats are the same request."""
    call = dataclasses.replace(call, request_id=f"{user.name}/{name}")
    while True:
        try:
            return await user.connection.asend(call)
        except UnavailableError:
            await asyncio.sleep(0.3)


async def complete(user: User, token_id: str) -> None:
    """Complete a token, early or late, perhaps when it is over, and perhaps beside somebody else."""
    simulation = user.simulation
    await asyncio.sleep(user.random.uniform(0, 1) ** 2 * simulation.plan.chaos_seconds)
    value = user.name
    answer = await _patiently(user, calls.complete_token(token_id, msgspec.json.encode(value)), "completes")
    simulation.note(value, "has completed" if answer.is_first else "is too late for", token_id)
    simulation.watch.waits.told_completed(value, token_id, value, is_first=answer.is_first)


async def cancel(user: User, run_id: str) -> None:
    """Have a run end, early or late, and perhaps again."""
    random, simulation = user.random, user.simulation
    await asyncio.sleep(random.uniform(0, 1) ** 2 * simulation.plan.chaos_seconds)
    for _ in range(random.choice([1, 1, 2])):
        simulation.records.cancelled.add(run_id)
        simulation.note(user.name, "cancels", run_id)
        while True:
            try:
                await user.connection.asend(calls.cancel_run(run_id))
            except UnavailableError:
                await asyncio.sleep(0.5)
            else:
                break
