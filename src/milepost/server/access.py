"""What public tokens open: the rules that the table of endpoints names (`ScopeRule`), carried out before an endpoint is reached.

Nothing here tells a token what there is: a run that it does not show and one that does not exist are refused alike.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping

import msgspec
from starlette.requests import Request

from milepost.engine.commands import AttemptRef, OneTimeToken
from milepost.errors import (
    BadRequestError,
    InsufficientScopeError,
    MetadataPathError,
    MetadataTooLargeError,
)
from milepost.model import scopes as words
from milepost.model.operations import Operation
from milepost.model.scopes import RunScope
from milepost.model.shown_keys import written_keys
from milepost.protocol.endpoints import ATTEMPT_HEADER, REQUEST_ID_HEADER, Endpoint, ScopeRule
from milepost.protocol.metadata import MetadataRequest, Refused
from milepost.reading.reader import Reader
from milepost.server.auth import Caller, PublicToken, caller_of
from milepost.server.doors import AT_MAX

REQUEST_ID_CHARACTERS_MAX = 200


async def admit(caller: Caller, endpoint: Endpoint, path: Mapping[str, str], reader: Reader) -> None:
    """Make sure that the caller's token opens this endpoint for what the path names.

    Raises: InsufficientScopeError, which names the scopes that would.
    """
    token = caller.token
    if token is None:
        return
    rule, scopes = endpoint.access.scopes, token.scopes
    match rule:
        case ScopeRule.READ_RUN:
            admitted = await shows(token.view.runs, path["run"], reader)
        case ScopeRule.READ_RUNS | ScopeRule.READ_WATCHED:
            admitted = token.view.runs != RunScope()
        case ScopeRule.READ_BATCH:
            admitted = scopes.allows(words.READ, words.BATCH, path["batch"]) or token.view.runs is None
        case ScopeRule.TRIGGER:
            admitted = scopes.allows(words.TRIGGER, words.TASKS, path["task"])
        case ScopeRule.BATCH_TRIGGER:
            admitted = _has_any(token, words.BATCH_TRIGGER)
        case ScopeRule.ADD_BATCH_ITEMS:
            admitted = may_fill(token, path["batch"]) or _has_any(token, words.BATCH_TRIGGER)
        case ScopeRule.WRITE_METADATA:
            admitted = scopes.written_keys(path["run"]) != frozenset()
        case ScopeRule.WRITE_RUN:
            admitted = await writes(token, path["run"], reader)
        case ScopeRule.SEND_INPUT:
            admitted = scopes.allows(words.WRITE, words.INPUT_STREAMS, path["run"])
        case ScopeRule.READ_WAITPOINT:
            admitted = any(
                scopes.allows(action, words.WAITPOINTS, path["waitpoint"])
                for action in (words.READ, words.WRITE)
            )
        case ScopeRule.WRITE_WAITPOINT:
            admitted = scopes.allows(words.WRITE, words.WAITPOINTS, path["waitpoint"])
        case ScopeRule.NONE:
            raise InsufficientScopeError(
                f"{endpoint.method} {endpoint.path} takes the secret key, and no public token"
            )
    if not admitted:
        needs = rule.value.format_map({name: value[:100] for name, value in path.items()})
        raise InsufficientScopeError(
            f"this public token does not allow {endpoint.method} {endpoint.path}: that takes the scope {needs}"
        )


async def shows(shown: RunScope | None, run_id: str, reader: Reader) -> bool:
    """Whether a token shows a run. The store is asked only where the id alone does not tell."""
    if shown is None or run_id in shown.runs:
        return True
    if shown == RunScope() or shown == RunScope(runs=shown.runs):
        return False
    return await asyncio.to_thread(reader.shows, shown, run_id)


async def writes(token: PublicToken, run_id: str, reader: Reader) -> bool:
    """Whether a token may change the life of a run: by its id, or by its task."""
    if token.scopes.allows(words.WRITE, words.RUNS, run_id):
        return True
    tasks = token.scopes.written_tasks
    if tasks is None:
        return True
    return bool(tasks) and await asyncio.to_thread(reader.shows, RunScope(tasks=tasks), run_id)


def _has_any(token: PublicToken, action: str) -> bool:
    return any(scope.action in (action, words.ANY_ACTION) for scope in token.scopes.parsed)


def may_fill(token: PublicToken, batch_id: str) -> bool:
    """Whether the token may add any items to a batch."""
    return token.scopes.allows(words.WRITE, words.BATCH, batch_id)


def check_batch_tasks(caller: Caller, tasks: Iterable[str] | None) -> None:
    """Make sure that the caller may trigger these tasks in a batch; None: whichever they will be. Raises InsufficientScopeError."""
    token = caller.token
    if token is None:
        return
    if tasks is None:
        if token.scopes.allows(words.BATCH_TRIGGER, words.TASKS) or token.scopes.allows(
            words.BATCH_TRIGGER, words.BATCH
        ):
            return
        raise InsufficientScopeError(
            "this public token opens a batch of certain tasks only: name them in taskIdentifiers",
            field="taskIdentifiers",
        )
    for task in tasks:
        if not token.scopes.allows(words.BATCH_TRIGGER, words.TASKS, task):
            raise InsufficientScopeError(
                f"this public token does not allow task {task!r:.100} in a batch: that takes the scope batchTrigger:tasks:{task:.100}"
            )


def check_no_parent(caller: Caller, parents: Iterable[str | None], resumes: Iterable[bool]) -> None:
    """Make sure that what a token triggers has no parent: it would count as the work of that. Raises InsufficientScopeError."""
    if caller.token is not None and (any(parents) or any(resumes)):
        raise InsufficientScopeError(
            "a run that is triggered with a public token has no parent", field="options.parentRunId"
        )


def one_time_token(caller: Caller) -> OneTimeToken | None:
    """The caller's token where it is used up by what is done with it."""
    token = caller.token
    if token is None or not token.is_one_time:
        return None
    return OneTimeToken(token.id, min(round(token.expires_at * 1_000_000), AT_MAX))


def attempt_of(caller: Caller, request: Request) -> AttemptRef | None:
    """The attempt that makes a request. As `attempt_named`."""
    return attempt_named(caller, request.headers.get(ATTEMPT_HEADER))


def attempt_named(caller: Caller, text: str | None) -> AttemptRef | None:
    """The attempt that is named in `ATTEMPT_HEADER`, or in its place; None for a caller that is no part of a run.

    Raises: BadRequestError for what names none; InsufficientScopeError for a public token, which is no attempt's.
    """
    if text is None:
        return None
    if caller.token is not None:
        raise InsufficientScopeError("what is sent with a public token is not sent by an attempt of a run")
    run_id, _, number = text.rpartition(":")
    if not run_id or not re.fullmatch("[1-9][0-9]{0,8}", number):
        raise BadRequestError(
            f"{ATTEMPT_HEADER} names a run and the number of its attempt, such as run_1234:2, not {text!r:.100}",
            field=ATTEMPT_HEADER,
        )
    return AttemptRef(run_id, int(number))


def check_written(caller: Caller, request: MetadataRequest, run_id: str) -> None:
    """Make sure that the caller's token allows what the request writes. Raises InsufficientScopeError.

    An operation that is none, or whose key is none, writes nothing: it is refused later, and alone.
    """
    token = caller.token
    if token is None:
        return
    if request.parent_operations or request.root_operations:
        raise InsufficientScopeError(
            f"this public token writes to the metadata of run {run_id!r:.100} only, and not to its parent or root"
        )
    keys = token.scopes.written_keys(run_id)
    if keys is None:
        return
    if request.operations is None:
        raise InsufficientScopeError(_not_whole(keys))
    for index, item in enumerate(request.operations):
        try:
            written = written_keys([msgspec.convert(item, Operation)])
        except (msgspec.ValidationError, MetadataPathError):
            continue
        if written is None:
            raise InsufficientScopeError(_not_whole(keys), field=f"operations[{index}]")
        for key in written - keys:
            raise InsufficientScopeError(
                f"this public token does not write the metadata key {key!r:.100}, only {_listed(keys)}",
                field=f"operations[{index}]",
            )


def without_other_keys(refused: Refused) -> Refused:
    """The same for who is shown a part of a document only: how large the others are, is not told."""
    if refused.code != MetadataTooLargeError.code:
        return refused
    message = "the metadata of the run would be too large with it"
    return msgspec.structs.replace(refused, message=message)


def _not_whole(keys: frozenset[str]) -> str:
    return f"this public token does not replace the whole metadata of a run, it writes only {_listed(keys)}"


def _listed(keys: frozenset[str]) -> str:
    return ", ".join(f"{key!r:.100}" for key in sorted(keys)[:20])


def request_id(request: Request) -> str | None:
    """What tells a repeat of this request from another one; None when it is not to be known again."""
    return known_as(
        request.method, request.scope["path"], request.headers.get(REQUEST_ID_HEADER), caller_of(request)
    )


def known_as(method: str, path: str, sent: str | None, caller: Caller) -> str | None:
    """What tells a repeat of a request from another one, by the id that was sent with it; as `request_id`."""
    if sent is None:
        return None
    if not sent:
        raise BadRequestError(
            f"{REQUEST_ID_HEADER} is empty: leave it out, or send an id", field=REQUEST_ID_HEADER
        )
    if len(sent) > REQUEST_ID_CHARACTERS_MAX:
        raise BadRequestError(
            f"{REQUEST_ID_HEADER} has more than {REQUEST_ID_CHARACTERS_MAX} characters",
            field=REQUEST_ID_HEADER,
            limit=REQUEST_ID_CHARACTERS_MAX,
        )
    # The same id on another path is another request (protocol, section 1.4), and so is that of another token: nobody is answered what
    # somebody else was.
    token = caller.token
    whose = "" if token is None else f" {token.id}"
    return f"{method} {path} {sent}{whose}"
