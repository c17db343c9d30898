"""Public tokens, made where the secret key is: nothing is sent, the key signs them here (protocol, section 2.2)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypedDict, cast

from milepost.client.client import Client
from milepost.client.default import default_client
from milepost.errors import ConfigurationError
from milepost.model import scopes as words
from milepost.protocol import tokens

Expiry: TypeAlias = str | int | float | timedelta | datetime
Ids: TypeAlias = str | Sequence[str] | bool


class ReadScopes(TypedDict, total=False):
    """What may be read: runs by id, by tag, by task, or by batch; True for all of them."""

    runs: Ids
    tags: Ids
    tasks: Ids
    batch: Ids


class WriteScopes(TypedDict, total=False):
    """What may be written: keys of the metadata of runs, by run id (True for every key), and input streams of runs.

    `batch` lets items be added to an announced batch.
    """

    metadata: Mapping[str, Sequence[str] | bool]
    inputStreams: Ids
    batch: Ids


class TokenScopes(TypedDict, total=False):
    """What a token lets its bearer do. `trigger` and `batchTrigger` name tasks."""

    read: ReadScopes
    write: WriteScopes
    trigger: Mapping[str, Ids]
    batchTrigger: Mapping[str, Ids]


def create_public_token(
    scopes: TokenScopes,
    *,
    expires_in: Expiry = "15m",
    metadata_keys: Iterable[str] | None = None,
    client: Client | None = None,
) -> str:
    """A token that shows a page, or any other program, what its scopes name and nothing else.

        create_public_token({"read": {"runs": [handle.id]}}, expires_in="1h", metadata_keys=["progress", "status"])
        create_public_token({"read": {"tags": ["user:1"]}, "write": {"metadata": {run_id: ["approved"]}}})

    Args:
        scopes: what it opens.
        expires_in: how long it is valid: a span such as `15m`, `2h` or `1h30m`, a `timedelta`, seconds, or an aware `datetime`.
        metadata_keys: of documents only these top-level keys are shown; None for all. An empty list shows none.
        client: whose key signs it; the default client when left out.
    Raises:
        ConfigurationError: the client holds no secret key but a token itself.
        ValueError: scopes that say nothing or cannot be said, a time that is over.
        TypeError: ids or keys that are no texts.
    """
    texts = scope_texts(scopes)
    keys = None if metadata_keys is None else _texts(metadata_keys, "metadata_keys")
    return _signed(client, texts, expires_in, keys=keys)


def create_trigger_token(
    task_ids: str | Sequence[str],
    *,
    multiple_use: bool = False,
    expires_in: Expiry = "15m",
    client: Client | None = None,
) -> str:
    """A token that triggers runs of these tasks: once, unless told otherwise. Its answer carries a token that shows the new run.

    Raises: as `create_public_token`.
    """
    tasks = [task_ids] if isinstance(task_ids, str) else list(task_ids)
    return _signed(
        client, scope_texts({"trigger": {words.TASKS: tasks}}), expires_in, one_time=not multiple_use
    )


def create_batch_trigger_token(
    task_ids: str | Sequence[str],
    *,
    multiple_use: bool = False,
    expires_in: Expiry = "15m",
    client: Client | None = None,
) -> str:
    """As `create_trigger_token`, for one batch of runs of these tasks."""
    tasks = [task_ids] if isinstance(task_ids, str) else list(task_ids)
    return _signed(
        client, scope_texts({"batchTrigger": {words.TASKS: tasks}}), expires_in, one_time=not multiple_use
    )


def scope_texts(scopes: TokenScopes) -> list[str]:
    """The scopes as a token carries them. Raises ValueError or TypeError for what says nothing."""
    texts: list[str] = []
    for action, resources in cast("Mapping[str, Mapping[str, Any]]", scopes).items():
        known = _RESOURCES.get(action)
        if known is None:
            raise ValueError(f"scopes: there is no action {action!r}; there are {', '.join(_RESOURCES)}")
        for resource, ids in resources.items():
            if resource not in known:
                raise ValueError(f"scopes: there is no {action} on {resource!r}; there is {', '.join(known)}")
            place = f"scopes[{action!r}][{resource!r}]"
            if ids is True:
                texts.append(f"{action}:{resource}")
            elif resource == words.METADATA:
                texts += _metadata_texts(ids, place)
            elif ids is not False:
                texts += [f"{action}:{resource}:{id}" for id in _texts(ids, place)]
    if not texts:
        raise ValueError("scopes: they name nothing, so the token would open nothing")
    return texts


_RESOURCES: dict[str, tuple[str, ...]] = {
    words.READ: (words.RUNS, words.TAGS, words.TASKS, words.BATCH),
    words.WRITE: (words.METADATA, words.INPUT_STREAMS, words.BATCH),
    words.TRIGGER: (words.TASKS,),
    words.BATCH_TRIGGER: (words.TASKS,),
}


def _metadata_texts(runs: Any, place: str) -> list[str]:
    if not isinstance(runs, Mapping):
        raise TypeError(
            f"{place} is a mapping of run ids to the keys that may be written, or to True for every key"
        )
    texts: list[str] = []
    for run_id, keys in cast("Mapping[Any, Any]", runs).items():
        [run_id] = _texts([run_id], place)
        if ":" in run_id:
            raise ValueError(f"{place}: {run_id!r} is no id of a run")
        if keys is True:
            texts.append(f"write:metadata:{run_id}")
        else:
            texts += [f"write:metadata:{run_id}:{key}" for key in _texts(keys, f"{place}[{run_id!r}]")]
    return texts


def _texts(given: Any, place: str) -> list[str]:
    values = [given] if isinstance(given, str) else list(cast("Iterable[Any]", given))
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{place} holds texts, not {type(value).__name__}")
        if not value:
            raise ValueError(f"{place} holds an empty text, which names nothing")
    return values


def _signed(
    client: Client | None,
    scopes: Sequence[str],
    expires_in: Expiry,
    *,
    keys: Sequence[str] | None = None,
    one_time: bool | None = None,
) -> str:
    key = (client or default_client()).secret_key
    if tokens.looks_like_token(key):
        raise ConfigurationError(
            "public tokens are signed with the secret key, and this client holds a public token itself (MILEPOST_SECRET_KEY)"
        )
    now = int(time.time())
    claims = tokens.claims_of(
        scopes,
        now=now,
        expires_at=tokens.expiry_of(expires_in, now),
        one_time=one_time,
        metadata_keys=keys,
        # Two that are made in the same second are still two.
        token_id=secrets.token_urlsafe(12) if one_time else None,
    )
    token = tokens.sign(claims, key.encode())
    if len(token) > tokens.TOKEN_BYTES_MAX:
        raise ValueError(
            f"the token has {len(token):,} bytes, and no header carries more than {tokens.TOKEN_BYTES_MAX:,}: name fewer ids, "
            "or give the runs a tag and name that"
        )
    return token
