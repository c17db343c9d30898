"""Idempotency keys: what a user says, and the hash of it that travels, as the official JavaScript client makes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple, get_args

from milepost.errors import UsageError
from milepost.model.durations import parse_duration
from milepost.protocol.triggering import IdempotencyKeyOptions

Scope = Literal["run", "attempt", "global"]

# A hash already: of the JavaScript client, or of whoever makes keys elsewhere.
_HASH: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key with the scope that it holds in: `IdempotencyKey("order-17", scope="global")`.

    Whoever triggers the same task with the same key in the same scope is given the same run. A plain text means
    `IdempotencyKey(text)`. 64 hexadecimal digits are taken as they are, as a hash that was made elsewhere.

    Attributes:
        key: any text that is not empty.
        scope: `run`: only triggers of the same run mean the same, in any attempt; `attempt`: only those of the same attempt of it;
            `global`: all. None: `run` inside a run, `global` outside.
    Raises: UsageError for another scope or an empty key.
    """

    key: str
    scope: Scope | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"an idempotency key is a text that is not empty, not {self.key!r:.100}")
        if self.scope not in (None, *get_args(Scope)):
            raise UsageError(
                f"the scope of an idempotency key is run, attempt or global, not {self.scope!r:.100}"
            )


class Caller(NamedTuple):
    """The attempt of a run whose code triggers."""

    run_id: str
    attempt: int


def as_key(value: object) -> IdempotencyKey:
    """The key that a user has given. Raises UsageError."""
    if isinstance(value, IdempotencyKey):
        return value
    if isinstance(value, str):
        return IdempotencyKey(value)
    raise UsageError(f"an idempotency key is a text or an IdempotencyKey, not {value!r:.100}")


def hash_key(key: IdempotencyKey, caller: Caller | None) -> tuple[str, Scope]:
    """The key as it travels, and its scope. Raises UsageError for a scope that there is not here."""
    if _HASH.fullmatch(key.key):
        return key.key, "global"
    if caller is None and key.scope in ("run", "attempt"):
        raise UsageError(
            f"an idempotency key of scope {key.scope!r} belongs to a run, and nothing runs here: leave the scope out, or say 'global'"
        )
    scope = key.scope or ("global" if caller is None else "run")
    parts = [key.key]
    if caller is not None and scope != "global":
        parts.append(caller.run_id)
        if scope == "attempt":
            parts.append(str(caller.attempt))
    return hashlib.sha256("-".join(parts).encode()).hexdigest(), scope


def hash_key_of(key: str | IdempotencyKey, run_id: str | None, attempt: int | None) -> str:
    """A key as it travels, of a trigger by a run, or from outside. Raises UsageError for a scope that lacks its run or attempt."""
    found = as_key(key)
    if found.scope == "attempt" and attempt is None and run_id is not None:
        raise UsageError(
            "an idempotency key of scope 'attempt' belongs to an attempt of the run: say which (`attempt=`)"
        )
    return hash_key(found, None if run_id is None else Caller(run_id, attempt or 0))[0]


def key_fields(options: Mapping[str, Any], caller: Caller | None) -> dict[str, Any]:
    """The fields of a message that say what the options `idempotency_key` and `idempotency_key_ttl` say. Raises UsageError."""
    given, ttl = options.get("idempotency_key"), options.get("idempotency_key_ttl")
    if given is None:
        if ttl is not None:
            raise UsageError("idempotency_key_ttl is how long an idempotency_key is kept, and there is none")
        return {"always_new": True} if caller is not None and "idempotency_key" in options else {}
    key = as_key(given)
    hashed, scope = hash_key(key, caller)
    return {
        "idempotency_key": hashed,
        "idempotency_key_ttl": None if ttl is None else _seconds(ttl),
        "idempotency_key_options": IdempotencyKeyOptions(key.key, scope),
    }


def _seconds(ttl: timedelta | float | str) -> str:
    try:
        seconds = parse_duration(ttl).total_seconds()
    except ValueError as error:
        raise UsageError(f"idempotency_key_ttl: {error}") from None
    if seconds <= 0:
        raise UsageError(f"idempotency_key_ttl is more than nothing, not {ttl!r}")
    # Whole seconds is what every server reads.
    return f"{max(1, round(seconds))}s"
