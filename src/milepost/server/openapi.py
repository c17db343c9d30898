"""The OpenAPI document, printed from the table of endpoints and the message shapes."""

import re
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from milepost.protocol.endpoints import ENDPOINTS, KEY_ONLY, Access, Endpoint, ScopeRule
from milepost.protocol.problems import Problem


@cache
def describe(version: str) -> dict[str, Any]:
    """The description of the whole API (OpenAPI 3.1)."""
    shapes: list[Any] = [Problem]
    for endpoint in ENDPOINTS:
        shapes += [shape for shape in (endpoint.request, endpoint.response) if shape is not None]
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    by_shape = {id(shape): schema for shape, schema in zip(shapes, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_shape)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Milepost",
            "version": version,
            "description": "Background tasks whose runs carry live metadata.",
        },
        "security": [{"secretKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"secretKey": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[int, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ] + [
        {
            "name": parameter.name,
            "in": "query",
            "description": parameter.summary,
            "schema": {"type": parameter.kind},
        }
        for parameter in endpoint.parameters
    ]
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": parameters,
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.access.anyone:
        operation["security"] = []
    elif endpoint.access != KEY_ONLY:
        operation["description"] = _callers(endpoint.access)
    if endpoint.request is not None:
        kind = "application/x-ndjson" if endpoint.lines else "application/json"
        operation["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schemas[id(endpoint.request)]}},
        }
    return operation


def _callers(access: Access) -> str:
    """Who may call it beside whoever has the secret key."""
    lines: list[str] = []
    if access.session:
        lines.append("A browser that has signed in to the dashboard may call it too.")
    if access.scopes is not ScopeRule.NONE:
        lines.append(f"A public token may with the scope {access.scopes.value}.")
    return " ".join(lines)


def _responses(endpoint: Endpoint, schemas: dict[int, Any]) -> dict[str, Any]:
    kind = "application/json"
    if endpoint.stream:
        kind = "text/event-stream"
    elif endpoint.response is str:
        kind = "text/plain"
    responses: dict[str, Any] = {str(endpoint.status): {"description": HTTPStatus(endpoint.status).phrase}}
    if endpoint.response is not None:
        responses[str(endpoint.status)]["content"] = {kind: {"schema": schemas[id(endpoint.response)]}}
    problem = {"application/json": {"schema": schemas[id(Problem)]}}
    for status in endpoint.statuses_of_refusals:
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": problem}
    return responses
