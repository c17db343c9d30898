"""Triggering: one run, a batch at once, a batch in two phases."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import TriggerItem
from milepost.errors import InvalidRequestError, MilepostError, UnsupportedMediaTypeError
from milepost.feed.waiting import in_reader
from milepost.model.run import QueuedReason
from milepost.protocol.endpoints import TRIGGER
from milepost.protocol.problems import to_problem
from milepost.protocol.triggering import (
    BATCH_ITEMS_MAX,
    BatchCreateRequest,
    BatchCreateResponse,
    BatchItemsResponse,
    BatchLine,
    BatchRequest,
    BatchResponse,
    ResetKeyRequest,
    ResetKeyResponse,
    SeparateAnswer,
    SeparateTrigger,
    TriggerRequest,
    TriggerResponse,
    TriggersRequest,
    TriggersResponse,
)
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import Authenticator, Caller, caller_of
from milepost.server.handlers.answers import Submit, WithToken
from milepost.server.requests import SLASH


class Triggering:
    """The endpoints that make runs."""

    def __init__(
        self,
        submit: Submit,
        submit_all: Callable[[Sequence[commands.Command]], Awaitable[list[Any]]],
        authenticator: Authenticator,
        queued_reason: Callable[[str], QueuedReason | None],
        similar_task: Callable[[str], str | None],
        reader: Reader,
    ) -> None:
        self._submit = submit
        self._submit_all = submit_all
        self._reader = reader
        self._authenticator = authenticator
        self._queued_reason = queued_reason
        self._similar_task = similar_task

    async def trigger(self, request: Request) -> Any:
        """One run."""
        body: TriggerRequest = await requests.body(request, TriggerRequest)
        caller, task = caller_of(request), request.path_params["task"]
        attempt = access.attempt_of(caller, request)
        command = await _command(task, body, caller, access.request_id(request), attempt)
        return self._answer(task, await self._submit(command), caller)

    def _answer(self, task: str, triggered: commands.Triggered, caller: Caller) -> WithToken:
        run_id = triggered.run_ids[0]
        return WithToken(
            TriggerResponse(
                run_id, bool(triggered.found), self._queued_reason(task), self._similar_task(task)
            ),
            self._handed_out([f"read:runs:{run_id}", f"write:inputStreams:{run_id}"], caller),
        )

    async def trigger_several(self, request: Request) -> Any:
        """Several runs, each by itself: what refuses one is the answer to that one alone."""
        body: TriggersRequest = await requests.body(request, TriggersRequest)
        _check_count(body)
        caller = caller_of(request)
        attempt = access.attempt_of(caller, request)
        read = [await _command_or_refusal(trigger, caller, attempt) for trigger in body.triggers]
        results = iter(await self._submit_all([each for each in read if isinstance(each, commands.Trigger)]))
        return TriggersResponse(
            [
                self._separate_answer(each.item.task, next(results), caller)
                if isinstance(each, commands.Trigger)
                else _refusal(each)
                for each in read
            ]
        )

    def _separate_answer(self, task: str, result: Any, caller: Caller) -> SeparateAnswer:
        if isinstance(result, MilepostError):
            return _refusal(result)
        if isinstance(result, BaseException):
            # A mistake of the server, told as such.
            raise result
        answer = self._answer(task, result, caller)
        return SeparateAnswer(TRIGGER.status, msgspec.Raw(msgspec.json.encode(answer.message)), answer.token)

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
        await self._submit(
            commands.ResetKey(key, body.task_identifier or "", access.request_id(request), attempt)
        )
        return ResetKeyResponse(key)


def _check_count(body: TriggersRequest) -> None:
    if not 1 <= len(body.triggers) <= BATCH_ITEMS_MAX:
        raise InvalidRequestError(
            f"a request has 1 to {BATCH_ITEMS_MAX:,} triggers, and this one has {len(body.triggers):,}: send them in several",
            field="triggers",
            limit=BATCH_ITEMS_MAX,
        )


async def _command(
    task: str,
    body: TriggerRequest,
    caller: Caller,
    request_id: str | None,
    attempt: commands.AttemptRef | None,
) -> commands.Trigger:
    item = TriggerItem(task, body.payload, body.options)
    access.check_no_parent(caller, [item.options.parent_run_id], [item.options.resume_parent_on_completion])
    await doors.check_payloads([item], place="")
    return commands.Trigger(item, request_id, access.one_time_token(caller), attempt)


async def _command_or_refusal(
    trigger: SeparateTrigger, caller: Caller, attempt: commands.AttemptRef | None
) -> commands.Trigger | MilepostError:
    """What one of several triggers asks for, or what is wrong with it. `attempt` sends it where it names none itself."""
    try:
        request_id = access.known_as(
            TRIGGER.method,
            TRIGGER.path.format(task=trigger.task.replace("/", SLASH)),
            trigger.request_id,
            caller,
        )
        attempt = access.attempt_named(caller, trigger.attempt) or attempt
        body: TriggerRequest = requests.decode(bytes(trigger.request), TriggerRequest)
        return await _command(trigger.task, body, caller, request_id, attempt)
    except MilepostError as refusal:
        return refusal


def _refusal(error: MilepostError) -> SeparateAnswer:
    return SeparateAnswer(error.status, msgspec.Raw(msgspec.json.encode(to_problem(error))))


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
