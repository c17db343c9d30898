"""The served OpenAPI document describes every endpoint, and no request made from it breaks the server or its description."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.shapes import mapping
from milepost.protocol.endpoints import ENDPOINTS, Endpoint
from support.served import KEY, HttpWorker, Served

_PROBED = [endpoint for endpoint in ENDPOINTS if not endpoint.stream and not endpoint.lines]
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    """The document as it is served."""
    return served.get("/api/openapi.json")


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == {(endpoint.path, endpoint.method) for endpoint in ENDPOINTS}
    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        assert operation["operationId"] == endpoint.name
        assert operation["summary"]
        assert {str(endpoint.status), *map(str, endpoint.statuses_of_refusals)} <= operation[
            "responses"
        ].keys()
        # A callback address has its own secret.
        needs_credentials = not endpoint.access.anyone or endpoint.name == "call_back"
        assert ("401" in operation["responses"]) == needs_credentials
        named = {parameter["name"] for parameter in operation["parameters"]}
        assert named >= {parameter.name for parameter in endpoint.parameters}
        assert ("requestBody" in operation) == (endpoint.request is not None)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    found = references(document["paths"]) + references(document["components"])
    assert found
    for reference in found:
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert mapping(document["components"]["schemas"].get(name)), reference


@pytest.mark.parametrize("endpoint", _PROBED, ids=lambda endpoint: endpoint.name)
def test_random_requests_are_answered_as_described(
    served: Served, worker: HttpWorker, document: dict[str, Any], endpoint: Endpoint
) -> None:
    """Never a 500, never a status or a shape that the document does not have."""
    known = {
        "run": served.trigger(metadata={"a": 1}),
        "batch": served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}]})["id"],
        "task": "work",
        "schedule": served.post("/api/v1/schedules", {"task": "work", "cron": "0 0 1 1 *"})["id"],
        "waitpoint": served.post("/api/v1/waitpoints/tokens", {})["id"],
        "secret": "0" * 64,
        "worker": "worker_1",
        "target": "self",
        "queue": "task%2Fwork",
        "key": "k",
    }
    operation = schemathesis.openapi.from_dict(document)[endpoint.path][endpoint.method]
    cases = operation.as_strategy()
    if endpoint.request is not None or endpoint.parameters:
        cases |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, is_known=st.booleans())
    def probe(case: schemathesis.Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters = {name: known[name] for name in case.path_parameters or {}}
        if isinstance(case.body, dict) and "waitSeconds" in case.body:
            case.body["waitSeconds"] = 0
        headers = {"authorization": f"Bearer {KEY}"}
        case.call_and_validate(base_url=served.url, headers=headers, checks=_CHECKS)

    probe()
