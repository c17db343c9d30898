"""How a task's function wants to be called, and what its annotations say of payload and output."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NotRequired, Union, cast

from typing_extensions import TypedDict

from milepost.client.requests import NO_PAYLOAD
from milepost.client.shape import Shape, shape_of
from milepost.errors import PayloadValidationError, UsageError
from milepost.sdk.context import Context

EMPTY: Final = inspect.Parameter.empty


class Signature:
    """How a task's function wants to be called.

    Of the parameters beside the context a single one takes the payload as it is. Several are taken from an object by their names,
    which is then the payload. `*args` and `**kwargs` are left empty.

    Attributes:
        payload: the parameter that takes the payload; None where there is none, or there are several.
        arguments: the parameters by name where there are several; empty otherwise.
        context: the parameter that gets the context.
    """

    def __init__(
        self, function: Callable[..., Any], local_names: dict[str, Any] | None, task_id: str
    ) -> None:
        self._function = function
        self._local_names = local_names
        self._task_id = task_id
        self._hints = self._resolve()
        self.payload: inspect.Parameter | None = None
        self.arguments: dict[str, inspect.Parameter] = {}
        self.context: inspect.Parameter | None = None
        self._arguments_shape: Shape[Any] | None = None
        # By the name of what is annotated, once the annotations are resolved.
        self._shapes: dict[str, Shape[Any]] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if self._is_context(parameter):
                self.context = self.context or parameter
            else:
                self.arguments[parameter.name] = parameter
        if len(self.arguments) <= 1:
            self.payload = next(iter(self.arguments.values()), None)
            self.arguments = {}
        order = [parameter for parameter in (self.payload, self.context) if parameter is not None]
        names = list(inspect.signature(function).parameters)
        order.sort(key=lambda parameter: names.index(parameter.name))
        # Called by position where position is enough: the usual (payload, ctx).
        self._is_positional = names[: len(order)] == [parameter.name for parameter in order] and all(
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            for parameter in order
        )
        self._payload_first = bool(order) and order[0] is self.payload
        self._positional_only = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.POSITIONAL_ONLY
            and (parameter.name in self.arguments or self._is_context(parameter))
        ]

    def call(self, payload: Any, context: Callable[[], Context]) -> Any:
        """Call the function. With NO_PAYLOAD, or an argument that is missing, the function's own default stands in."""
        if self.arguments:
            return self._call_with(payload, context)
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

    def _call_with(self, given: Mapping[str, Any], context: Callable[[], Context]) -> Any:
        """Call a function of several parameters."""
        values = dict(given)
        if self.context is not None:
            values[self.context.name] = context()
        by_position: list[Any] = []
        for name in self._positional_only:
            if name not in values and not any(later in values for later in self._positional_only):
                break
            by_position.append(values.pop(name) if name in values else self.arguments[name].default)
        return self._function(*by_position, **values)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by name; defaults that the call leaves to the function stay out.

        Raises: PayloadValidationError for a call that the function would not take.
        """
        parameters = list(self.arguments.values())
        try:
            return dict(inspect.Signature(parameters).bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise PayloadValidationError(
                f"task {self._task_id!r} is called {self._task_id}{self.written}: {error}", field="payload"
            ) from None

    def arguments_of(self, payload: object) -> dict[str, Any]:
        """The arguments that a payload stands for: a mapping has them by name, a tuple by position; anything else is the first one.

        Raises: PayloadValidationError.
        """
        if payload is NO_PAYLOAD:
            return self.bind((), {})
        if isinstance(payload, Mapping):
            return dict(cast("Mapping[str, Any]", payload))
        return self.bind(cast("tuple[Any, ...]", payload) if isinstance(payload, tuple) else (payload,), {})

    @property
    def written(self) -> str:
        """The parameters of a function of several, as they are written, for messages."""
        bare = [parameter.replace(annotation=EMPTY) for parameter in self.arguments.values()]
        return str(inspect.Signature(bare))

    @property
    def payload_shape(self) -> Shape[Any] | None:
        """The shape of the payload; None for a task without payload.

        Raises: UsageError when the annotation cannot be resolved or cannot be read from JSON.
        """
        if self.payload is not None:
            return self._shape_of(self.payload.name)
        if not self.arguments:
            return None
        if self._arguments_shape is None:
            self._arguments_shape = Shape(self._arguments_type())
        return self._arguments_shape

    def _arguments_type(self) -> Any:
        """The object that several parameters are taken from, as a type."""
        members: dict[str, Any] = {}
        for name, parameter in self.arguments.items():
            annotation = self._annotation_of(name)
            members[name] = annotation if parameter.default is EMPTY else NotRequired[annotation]
        kind: Any = TypedDict(self._task_id, members)  # type: ignore[operator]
        # What no parameter takes is refused, and not dropped.
        kind.__pydantic_config__ = {"extra": "forbid"}
        return kind

    @property
    def output_shape(self) -> Shape[Any] | None:
        """The shape of the output; None when it is not annotated with a type that can be read from JSON."""
        try:
            is_typed = self._annotation_of("return") not in (Any, EMPTY)
            return self._shape_of("return") if is_typed else None
        except UsageError:
            return None

    def _shape_of(self, name: str) -> Shape[Any]:
        found = self._shapes.get(name)
        if found is None:
            found = shape_of(self._annotation_of(name))
            if self._hints is not None:
                self._shapes[name] = found
        return found

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
