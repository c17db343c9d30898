"""Values by Pydantic. Loaded with the first annotation that it reads, because Pydantic takes a while to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from milepost.client.comparison import Place
from milepost.client.unsendable import Unsendable, nowhere, unstorable
from milepost.client.wire_form import WireForm, untyped_values
from milepost.model.typed import Misfit, describe_place


class PydanticCodec:
    """By Pydantic, in the wire form."""

    def __init__(self, form: WireForm) -> None:
        self.form = form
        self.is_exact = form.is_exact
        self._validator = form.validator
        self._serializer = form.serializer

    def check(self, value: object) -> Any:
        try:
            return self._validator.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            raise misfit_of(error) from None

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        untyped: set[int] = set()
        token = untyped_values.set(untyped)
        try:
            text = self._serializer.to_json(value, by_alias=True, round_trip=True, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError) as error:
            reason = str(error).partition(": ")[2] if "Error calling function" in str(error) else str(error)
            raise Unsendable(unstorable(value) or [("", reason or type(error).__name__)]) from None
        finally:
            untyped_values.reset(token)
        return text, (lambda _, part: id(part) in untyped) if untyped else nowhere

    def read(self, text: bytes | str) -> Any:
        try:
            return self._validator.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as error:
            raise misfit_of(error) from None

    def json_schema(self) -> dict[str, Any]:
        return self.form.json_schema()


def pydantic_codec(annotation: Any) -> PydanticCodec | None:
    """The way of Pydantic to read and write a type; None when it does not know the type."""
    try:
        return PydanticCodec(WireForm.of(TypeAdapter[Any](annotation).core_schema))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def misfit_of(error: ValidationError) -> Misfit:
    return Misfit(
        [
            (describe_place(problem["loc"]), problem["msg"])
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    )
