"""Triggering: one run, a batch at once, a batch in two phases."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import TriggerItem
from milepost.errors import UnsupportedMediaTypeError
from milepost.feed.waiting import in_reader
from milepost.model.run import QueuedReason
from milepost.protocol.triggering import (
    BatchCreateRequest,
    BatchCreateResponse,
    BatchItemsResponse,
    BatchLine,
    BatchRequest,
    BatchResponse,
    ResetKeyRequest,
    ResetKeyResponse,
    TriggerRequest,
    TriggerResponse,
)
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import Authenticator, Caller, caller_of
from milepost.server.handlers.answers import Submit, WithToken


class Triggering:
    """The endpoints that make runs."""

    def __init__(
        self,
        submit: Submit,
        authenticator: Authenticator,
        queued_reason: Callable[[str], QueuedReason | None],
        similar_task: Callable[[str], str | None],
        reader: Reader,
    ) -> None:
        self._submit = submit
        self._reader = reader
        self._authenticator = authenticator
        self._queued_reason = queued_reason
        self._similar_task = similar_task

    async def trigger(self, request: Request) -> Any:
        """One run."""
        body: TriggerRequest = await requests.body(request, TriggerRequest)
        item = TriggerItem(request.path_params["task"], body.payload, body.options)
        caller = caller_of(request)
        access.check_no_parent(
            caller, [item.options.parent_run_id], [item.options.resume_parent_on_completion]
        )
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads([item], place="")
        triggered = await self._submit(
            commands.Trigger(item, access.request_id(request), access.one_time_token(caller), attempt)
        )
        run_id = triggered.run_ids[0]
        return WithToken(
            TriggerResponse(
                run_id, bool(triggered.found), self._queued_reason(item.task), self._similar_task(item.task)
            ),
            self._handed_out([f"read:runs:{run_id}", f"write:inputStreams:{run_id}"], caller),
        )

    def _handed_out(self, scopes: Sequence[str], caller: Caller) -> str:
        """A token for what was made. It shows no more of documents than the caller's own."""
        keys = caller.view.keys
        return self._authenticator.sign_token(scopes, metadata_keys=None if keys is None else sorted(keys))

    def _with_batch_token(self, message: Any, batch_id: str, caller: Caller) -> WithToken:
        scopes = [f"read:batch:{batch_id}"]
        if caller.token is not None:
            # Its own token may work once: the items come with this one.
            scopes.append(f"write:batch:{batch_id}")
        return WithToken(message, self._handed_out(scopes, caller))

    async def trigger_batch(self, request: Request) -> Any:
        """A whole batch."""
        body: BatchRequest = await requests.body(request, BatchRequest)
        items = [TriggerItem(item.task, item.payload, item.options) for item in body.items]
        caller = caller_of(request)
        access.check_batch_tasks(caller, (item.task for item in items))
        _check_parents(caller, body, items)
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads(items, place="items[{}].")
        triggered = await self._submit(
            commands.TriggerBatch(
                items,
                body.parent_run_id,
                body.resume_parent_on_completion,
                access.request_id(request),
                access.one_time_token(caller),
                attempt,
                _key_of(body),
            )
        )
        answer = BatchResponse(
            triggered.batch_id,
            len(triggered.run_ids),
            triggered.run_ids,
            self._queued_reasons(items),
            list(triggered.found),
            triggered.found_batch,
        )
        return self._with_batch_token(answer, triggered.batch_id, caller)

    def _queued_reasons(self, items: Sequence[TriggerItem]) -> dict[str, QueuedReason]:
        tasks = dict.fromkeys(item.task for item in items)
        return {task: reason for task in tasks if (reason := self._queued_reason(task)) is not None}

    async def create_batch(self, request: Request) -> Any:
        """First phase of a batch."""
        body: BatchCreateRequest = await requests.body(request, BatchCreateRequest)
        caller = caller_of(request)
        access.check_batch_tasks(caller, body.task_identifiers)
        _check_parents(caller, body, ())
        attempt = access.attempt_of(caller, request)
        batch_id = await self._submit(
            commands.CreateBatch(
                body.run_count,
                body.parent_run_id,
                body.resume_parent_on_completion,
                access.request_id(request),
                access.one_time_token(caller),
                attempt,
                _key_of(body),
            )
        )
        # To a "cached" batch the clients send no items.
        has_all, run_count = False, body.run_count
        if body.idempotency_key is not None:
            batch = await in_reader(lambda: self._reader.batch_row(batch_id))
            run_count = batch.known_count
            has_all = run_count is not None and batch.accepted_count >= run_count
        answer = BatchCreateResponse(
            id=batch_id, run_count=run_count, is_cached=has_all, idempotency_key=body.idempotency_key
        )
        return self._with_batch_token(answer, batch_id, caller)

    async def add_batch_items(self, request: Request) -> Any:
        """Second phase of a batch."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/x-ndjson", "application/json", ""):
            raise UnsupportedMediaTypeError(
                f"items come as application/x-ndjson, not as {kind!r}", field="content-type"
            )
        texts = [line for line in (await requests.read_body(request)).split(b"\n") if line.strip()]
        lines: list[BatchLine] = [
            requests.decode(line, BatchLine, place=f"items[{number}]") for number, line in enumerate(texts)
        ]
        items = [TriggerItem(line.task, line.payload, line.options) for line in lines]
        batch_id, caller = request.path_params["batch"], caller_of(request)
        one_time: commands.OneTimeToken | None = None
        if caller.token is not None and not access.may_fill(caller.token, batch_id):
            access.check_batch_tasks(caller, (item.task for item in items))
            one_time = access.one_time_token(caller)
        access.check_no_parent(
            caller,
            (item.options.parent_run_id for item in items),
            (item.options.resume_parent_on_completion for item in items),
        )
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads(items, place="items[{}].")
        run_count = None
        if "runCount" in request.query_params:
            run_count = requests.whole_number(request, "runCount", default=0)
        added = await self._submit(commands.AddBatchItems(batch_id, lines, run_count, one_time, attempt))
        return BatchItemsResponse(
            id=batch_id,
            items_accepted=added.accepted,
            items_deduplicated=added.deduplicated,
            sealed=added.accepted_count == added.run_count,
            enqueued_count=added.accepted_count,
            expected_count=added.run_count,
            runs=added.run_ids,
            queued_reasons=self._queued_reasons(items),
            cached=list(added.found),
        )

    async def reset_key(self, request: Request) -> Any:
        """An idempotency key stands for nothing from now on."""
        body: ResetKeyRequest = await requests.body(request, ResetKeyRequest)
        key = request.path_params["key"]
        attempt = access.attempt_of(caller_of(request), request)
        await self._submit(commands.ResetKey(key, body.task_identifier or "", attempt))
        return ResetKeyResponse(key)


def _key_of(body: BatchRequest | BatchCreateRequest) -> commands.BatchKey | None:
    if body.idempotency_key is None:
        return None
    return commands.BatchKey(body.idempotency_key, body.idempotency_key_ttl)


def _check_parents(
    caller: Caller, body: BatchRequest | BatchCreateRequest, items: Sequence[TriggerItem]
) -> None:
    access.check_no_parent(
        caller,
        [body.parent_run_id, *(item.options.parent_run_id for item in items)],
        [
            body.resume_parent_on_completion,
            *(item.options.resume_parent_on_completion for item in items),
        ],
    )
