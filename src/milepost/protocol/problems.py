"""The body of every refused request: one shape, a stable code, and the error class on both sides of the wire."""

from typing import Any

import msgspec

from milepost.errors import InsufficientScopeError, MilepostError, RequestError, error_for

# What the official clients are told of a token without the right (protocol, section 2.3); the error's own words are in the details.
_NO_RIGHT = "Unauthorized"
_NO_RIGHT_CODE = "unauthorized"
_NO_RIGHT_TYPE = "authorization"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`error` is for people, `code` for programs; `field` and `limit` say what was wrong with which part of the request.

    The name `error` is what the official JavaScript clients read (protocol, section 1.4). `param` and `type` are there for a token
    without the right, as these clients know them.
    """

    error: str
    code: str
    field: str | None = None
    limit: int | None = None
    details: dict[str, Any] | None = None
    param: str | None = None
    type: str | None = None


def to_problem(error: MilepostError) -> Problem:
    """The body that carries this error over the wire."""
    if isinstance(error, InsufficientScopeError):
        return Problem(
            _NO_RIGHT,
            _NO_RIGHT_CODE,
            error.field,
            error.limit,
            {"message": str(error)},
            param="access_token",
            type=_NO_RIGHT_TYPE,
        )
    field = error.field if isinstance(error, RequestError) else None
    limit = error.limit if isinstance(error, RequestError) else getattr(error, "limit", None)
    return Problem(error=str(error), code=error.code, field=field, limit=limit, details=error.details())


def from_problem(status: int, body: bytes) -> MilepostError:
    """The error that a refused request stands for; a body that is no problem becomes an error by its status alone."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        text = (
            body[:500].decode("utf-8", "replace") or f"the server answered with status {status} and no body"
        )
        return error_for("", text, status=status)
    if problem.type == _NO_RIGHT_TYPE and status == InsufficientScopeError.status:
        message = (problem.details or {}).get("message")
        text = message if isinstance(message, str) else problem.error
        return InsufficientScopeError(text, field=problem.field, limit=problem.limit)
    return error_for(
        problem.code,
        problem.error,
        status=status,
        field=problem.field,
        limit=problem.limit,
        details=problem.details,
    )
