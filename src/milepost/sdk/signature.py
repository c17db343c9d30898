"""How a task's function wants to be called, and what its annotations say of payload and output."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Union

from milepost.client.requests import NO_PAYLOAD
from milepost.client.shape import Shape, shape_of
from milepost.errors import UsageError
from milepost.sdk.context import Context

EMPTY: Final = inspect.Parameter.empty


class Signature:
    """How a task's function wants to be called: which parameter takes the payload and which one the context."""

    def __init__(
        self, function: Callable[..., Any], local_names: dict[str, Any] | None, task_id: str
    ) -> None:
        self._function = function
        self._local_names = local_names
        self._task_id = task_id
        self._hints = self._resolve()
        self.payload: inspect.Parameter | None = None
        self.context: inspect.Parameter | None = None
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if self._is_context(parameter):
                self.context = self.context or parameter
            elif self.payload is None:
                self.payload = parameter
            elif parameter.default is EMPTY:
                raise UsageError(
                    f"task {task_id!r}: a task takes one payload and, if it wants, a Context; {parameter.name!r} is one too many. "
                    f"Put both into one model, dataclass or TypedDict"
                )
        order = [parameter for parameter in (self.payload, self.context) if parameter is not None]
        names = list(inspect.signature(function).parameters)
        order.sort(key=lambda parameter: names.index(parameter.name))
        # Called by position where position is enough: the usual (payload, ctx).
        self._is_positional = names[: len(order)] == [parameter.name for parameter in order] and all(
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            for parameter in order
        )
        self._payload_first = bool(order) and order[0] is self.payload

    def call(self, payload: Any, context: Callable[[], Context]) -> Any:
        """Call the function. With NO_PAYLOAD the function's own default stands in."""
        if payload is not NO_PAYLOAD and self._is_positional:
            if self.context is None:
                return self._function(payload) if self.payload is not None else self._function()
            if self.payload is None:
                return self._function(context())
            return (
                self._function(payload, context())
                if self._payload_first
                else self._function(context(), payload)
            )
        arguments: dict[str, Any] = {}
        if self.payload is not None and payload is not NO_PAYLOAD:
            arguments[self.payload.name] = payload
        if self.context is not None:
            arguments[self.context.name] = context()
        return self._function(**arguments)

    @property
    def payload_shape(self) -> Shape[Any] | None:
        """The shape of the payload; None for a task without payload.

        Raises: UsageError when the annotation cannot be resolved or cannot be read from JSON.
        """
        return shape_of(self._annotation_of(self.payload.name)) if self.payload is not None else None

    @property
    def output_shape(self) -> Shape[Any] | None:
        """The shape of the output; None when it is not annotated with a type that can be read from JSON."""
        try:
            annotation = self._annotation_of("return")
            return None if annotation in (Any, EMPTY) else shape_of(annotation)
        except UsageError:
            return None

    def _annotation_of(self, name: str) -> Any:
        if self._hints is None:
            # Names that were not there yet when the module was being imported are there now.
            self._hints = self._resolve()
        if self._hints is not None:
            return self._hints.get(name, Any)
        written = getattr(self._function, "__annotations__", {}).get(name, Any)
        if isinstance(written, str):
            raise UsageError(
                f"task {self._task_id!r}: the annotation {written!r} of {name!r} cannot be resolved when the task runs; "
                f"import the name outside of `if TYPE_CHECKING:`"
            )
        return written

    def _resolve(self) -> dict[str, Any] | None:
        target = inspect.unwrap(self._function)
        if not isinstance(target, types.FunctionType | types.MethodType):
            target = type(target).__call__
        try:
            return typing.get_type_hints(target, localns=self._local_names, include_extras=True)
        except (NameError, AttributeError, TypeError):
            return None

    def _is_context(self, parameter: inspect.Parameter) -> bool:
        annotation = (self._hints or {}).get(parameter.name, parameter.annotation)
        if isinstance(annotation, str):
            # Not resolved: then the name must do.
            return any(
                part.strip().rpartition(".")[2] == "Context" for part in annotation.strip("'\"").split("|")
            )
        kinds = (
            typing.get_args(annotation)
            if typing.get_origin(annotation) in (Union, types.UnionType)
            else (annotation,)
        )
        return any(isinstance(kind, type) and issubclass(kind, Context) for kind in kinds)
