"""Waitpoints on the wire (protocol, section 10): wait tokens, and times that a run waits for.

`waitpoint_...` is the id of either. Users see the first kind only, as tokens.
"""

from typing import ClassVar

import msgspec

from milepost.model.waitpoints import WaitpointStatus
from milepost.protocol.runs import Pagination
from milepost.protocol.triggering import NotSupported


class TokenRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """A token to wait for. `timeout` is a span (`10m`, which it is where none is given) or a time (ISO 8601 with its zone);
    with `noTimeout` it has none.

    `idempotencyKey` belongs to the caller; a second token with it is the first one, until `idempotencyKeyTTL` is over. `place` is for
    the attempt of a run, which names itself in a header: its tokens are found again by a later attempt at the same place.
    """

    timeout: str | None = None
    no_timeout: bool = False
    tags: str | list[str] | None = None
    idempotency_key: str | None = None
    idempotency_key_ttl: str | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    place: str | None = None

    not_supported: ClassVar[NotSupported] = {}


class TokenCreated(msgspec.Struct, rename="camel", kw_only=True):
    """The token. `isCached`: it was there. Whoever knows `url` completes it by a POST, with the body as its output."""

    id: str
    is_cached: bool
    url: str


class TimeRequest(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """A time that the run waits for whose attempt asks: a span or a time in ISO 8601.

    `place` as for tokens: an attempt that waits at the same place again waits for the time that is left."""

    until: str
    place: str


class WaitpointState(msgspec.Struct, rename="camel", kw_only=True):
    """A waitpoint, and whether it has ended."""

    id: str
    status: WaitpointStatus


class TokenObject(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """A token. `output` is JSON text; of one that has timed out, with `outputIsError`, an object with a `message`. Lists leave it out.
    Times are ISO 8601."""

    id: str
    url: str
    status: WaitpointStatus
    tags: list[str]
    created_at: str
    completed_at: str | None = None
    timeout_at: str | None = None
    idempotency_key: str | None = None
    idempotency_key_expires_at: str | None = None
    output: str | None = None
    output_type: str | None = None
    output_is_error: bool | None = None
    run_id: str | None = None


class TokenPage(msgspec.Struct):
    """One page of tokens, newest first."""

    data: list[TokenObject]
    pagination: Pagination


class CompleteTokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What to complete a token with: any JSON."""

    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class TokenCompleted(msgspec.Struct, rename="camel", kw_only=True):
    """The token has ended. `isFirst`: this request is why. Another one was before it where not, or its time was over, and nothing of
    this one was kept; `status` tells which."""

    success: bool = True
    is_first: bool
    status: WaitpointStatus
