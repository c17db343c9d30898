"""`Client`: one server and one key, blocking and asynchronous. The default one comes from settings; a program may have several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from milepost.client import calls, endings
from milepost.client.calls import Call, MetadataDocument, Triggered
from milepost.client.connection import Connection
from milepost.client.handles import RunHandle
from milepost.client.idempotency import IdempotencyKey, hash_key_of
from milepost.client.queues import Queues
from milepost.client.requests import NO_PAYLOAD, RunOptions, trigger_request
from milepost.client.runs import Runs
from milepost.client.schedules import Schedules
from milepost.client.shape import Shape
from milepost.client.steps import Steps, arun, run
from milepost.errors import MetadataTooLargeError
from milepost.model.document import SIZE_LIMIT
from milepost.model.run import QueuedReason
from milepost.protocol.runs import RunResult

if TYPE_CHECKING:
    from milepost.client.async_transport import AsyncTransport

ResultT = TypeVar("ResultT")

WARNED_TASKS_MAX = 1000
_warned_tasks: set[str] = set()

logger = logging.getLogger("milepost.client")


class Client:
    """A Milepost server. Thread-safe, usable from several event loops, and safe to have across a fork.

    Args:
        api_url: the server's address; from the environment or the development server when left out.
        secret_key: its key, likewise; or a public token (`milepost.auth`), with which the client does what the token allows. What it
            does not allow raises InsufficientScopeError.
    Raises: ConfigurationError when either is not to be found.
    """

    def __init__(self, api_url: str | None = None, secret_key: str | None = None) -> None:
        if api_url is None or secret_key is None:
            from milepost.client.settings import find_address

            address = find_address(api_url, secret_key)
            api_url, secret_key = address.api_url, address.secret_key
        self._use(Connection(api_url, secret_key))

    @classmethod
    def over(cls, connection: Connection) -> Client:
        """A client that speaks over this connection."""
        client = cls.__new__(cls)
        client._use(connection)
        return client

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self.runs = Runs(lambda: self.connection)
        self.schedules = Schedules(lambda: self.connection)
        self.queues = Queues(lambda: self.connection)
        self.metadata_limit = SIZE_LIMIT

    @property
    def api_url(self) -> str:
        """The server's address."""
        return self.connection.api_url

    @property
    def secret_key(self) -> str:
        """The key, or the token, that is sent with every call."""
        return self.connection.secret_key

    @property
    def async_transport(self) -> AsyncTransport:
        """The asynchronous way to the server; `await client.async_transport.close()` ends the connections of the running loop."""
        return self.connection.async_transport

    def __repr__(self) -> str:
        return f"<Milepost client of {self.api_url}>"

    def send(self, call: Call[ResultT]) -> ResultT:
        """Make one call of the HTTP API."""
        return self.connection.send(call)

    async def asend(self, call: Call[ResultT]) -> ResultT:
        """As `send`, without blocking."""
        return await self.connection.asend(call)

    def preparing(self, build: Callable[[int], ResultT]) -> Steps[ResultT]:
        """Build a request that holds a document; `build` gets the largest size in bytes.

        The limit is the usual one until a document exceeds it; then the server is asked for its own (M86).
        """
        try:
            return build(self.metadata_limit)
        except MetadataTooLargeError:
            if not self._learn_limit((yield calls.health())):
                raise
        return build(self.metadata_limit)

    def environment(self) -> dict[str, str]:
        """The variables by which another program finds the same server."""
        return {"MILEPOST_API_URL": self.api_url, "MILEPOST_SECRET_KEY": self.secret_key}

    def learn_metadata_limit(self) -> int:
        """The largest size of a document in bytes, as the server says it (M86). Raises UnavailableError."""
        self._learn_limit(self.send(calls.health()))
        return self.metadata_limit

    def _learn_limit(self, health: Mapping[str, Any]) -> bool:
        """True when the server's limit is another one than was thought."""
        limit = health.get("metadataSizeMax")
        if not isinstance(limit, int) or limit == self.metadata_limit:
            return False
        self.metadata_limit = limit
        return True

    def trigger(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """Trigger a run of a task by its id. The task need not be known here; the worker validates the payload.

        Raises: MetadataError for metadata that cannot be a document, UnavailableError, and what the server refuses.
        """
        return run(self.connection, self._triggering(task_id, payload, options))

    async def atrigger(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """As `trigger`, without blocking."""
        return await arun(self.connection, self._triggering(task_id, payload, options))

    def _triggering(self, task_id: str, payload: Any, options: RunOptions) -> Steps[RunHandle[Any]]:
        request = yield from self.preparing(
            lambda limit: trigger_request(payload, options, metadata_limit=limit)
        )
        return run_handle(self, task_id, (yield calls.trigger(task_id, request)))

    def reset_idempotency_key(
        self,
        task_id: str | None,
        key: str | IdempotencyKey,
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """See `tasks.reset_idempotency_key`."""
        return bool(self.send(calls.reset_idempotency_key(task_id, hash_key_of(key, run_id, attempt))))

    async def areset_idempotency_key(
        self,
        task_id: str | None,
        key: str | IdempotencyKey,
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """As `reset_idempotency_key`, without blocking."""
        call = calls.reset_idempotency_key(task_id, hash_key_of(key, run_id, attempt))
        return bool(await self.asend(call))

    def get_metadata(self, run_id: str) -> MetadataDocument:
        """The document of a run, with its version. Raises RunNotFoundError."""
        return self.send(calls.get_metadata(run_id))

    async def aget_metadata(self, run_id: str) -> MetadataDocument:
        """As `get_metadata`, without blocking."""
        return await self.asend(calls.get_metadata(run_id))

    def wait_for_result(self, run_id: str, timeout: float | None = None) -> RunResult:
        """Wait until a run has ended, and get its result. Raises TimeoutError after `timeout` seconds."""
        return endings.wait_for_result(self.connection, run_id, timeout)

    async def await_for_result(self, run_id: str, timeout: float | None = None) -> RunResult:  # noqa: ASYNC109
        """As `wait_for_result`, without blocking."""
        return await endings.await_for_result(self.connection, run_id, timeout)

    def wait_for_batch(self, batch_id: str) -> list[RunResult]:
        """Wait until every run of a batch has ended, and get their results in the order of the items."""
        return run(self.connection, endings.results_of_batch(batch_id))

    async def await_for_batch(self, batch_id: str) -> list[RunResult]:
        """As `wait_for_batch`, without blocking."""
        return await arun(self.connection, endings.results_of_batch(batch_id))

    def batch_results(self, batch_id: str) -> list[RunResult]:
        """The results of the runs of a batch that have ended, in the order of the items; fetched page by page."""
        return run(self.connection, endings.results_so_far(batch_id))

    async def abatch_results(self, batch_id: str) -> list[RunResult]:
        """As `batch_results`, without blocking."""
        return await arun(self.connection, endings.results_so_far(batch_id))


def run_handle(
    client: Client, task_id: str, triggered: Triggered, shape: Shape[Any] | None = None
) -> RunHandle[Any]:
    """The handle of a run that was triggered; `shape` is that of its output."""
    if triggered.queued_reason is not None:
        warn_never_offered({task_id: triggered.queued_reason}, triggered.similar_task)
    return RunHandle(
        triggered.id,
        task_id,
        triggered.token,
        client.connection,
        shape,
        triggered.queued_reason,
        triggered.is_cached,
    )


def warn_never_offered(reasons: Mapping[str, QueuedReason], similar_task: str | None = None) -> None:
    """Warn of a task that was triggered although no worker has ever offered it, once in this process: its id may be misspelt."""
    for task_id, reason in reasons.items():
        if reason is QueuedReason.NEVER_OFFERED and task_id not in _warned_tasks:
            if len(_warned_tasks) < WARNED_TASKS_MAX:
                _warned_tasks.add(task_id)
            meant = "" if similar_task is None else f" (did you mean {similar_task!r}?)"
            logger.warning("the run stays queued: %s%s", reason.describe(task_id), meant)
