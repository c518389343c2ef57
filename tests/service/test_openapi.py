from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from service import problems
from service.examples import EXAMPLES
from service.openapi import document, render

ROOT = Path(__file__).parents[2]
described_api = cache(document)
"""Made once: it takes a while, and no test changes it."""


def operations() -> list[tuple[str, Any]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in described_api()["paths"].items()
        for method, operation in methods.items()
    ]


def test_committed_file_is_what_the_application_says() -> None:
    committed = (ROOT / "openapi.yaml").read_text(encoding="utf-8")
    assert committed == render(), "write it again: npt openapi > openapi.yaml"


@pytest.mark.parametrize(("name", "operation"), operations())
def test_every_error_is_a_problem(name: str, operation: Any) -> None:
    media = "application/json" if problems.OPENAI in name else problems.MEDIA_TYPE
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            assert list(response["content"]) == [media]
            assert response["content"][media]["examples"]


def test_every_reference_resolves() -> None:
    described = described_api()
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(v for k, v in node.items() if k == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(described)
    for reference in found:
        _, components, kind, name = reference.split("/")
        assert components == "components"
        assert name in described["components"][kind]


def test_every_operation_has_its_own_name() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)


def test_document_is_openapi_3_2() -> None:
    described = described_api()
    assert described["openapi"].startswith("3.2")
    validate(described)


@pytest.mark.parametrize(("name", "operation"), operations())
def test_every_operation_says_what_it_is_for(name: str, operation: Any) -> None:
    for field in ("summary", "description", "operationId"):
        assert operation[field].strip(), field
    (tag,) = operation["tags"]
    assert tag in {entry["name"] for entry in described_api()["tags"]}
    assert all(parameter["description"] for parameter in operation.get("parameters", []))
    assert any(int(status) >= 400 for status in operation["responses"])
    if tag != "health":
        assert operation["security"] == [{"HTTPBearer": []}]
        assert {"401", "403", "429"} <= operation["responses"].keys()


def bodies() -> list[tuple[str, Any]]:
    """The JSON that is sent and answered, by operation."""
    return [
        (f"{name} {kind}", content["application/json"])
        for name, operation in operations()
        for kind, content in (
            ("request", operation.get("requestBody", {}).get("content", {})),
            *((status, r.get("content", {})) for status, r in operation["responses"].items()),
        )
        if "application/json" in content
    ]


@pytest.mark.parametrize(("name", "body"), bodies())
def test_every_body_has_an_example_that_fits(name: str, body: Any) -> None:
    described = described_api()
    schema = described["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    examples = [*schema.get("examples", []), *(e["value"] for e in body.get("examples", {}).values())]
    assert examples
    # Lax schemas take anything: an example must know every field that it could have.
    whole = {**body["schema"], "components": described["components"]}
    for example in examples:
        Draft202012Validator(whole).validate(example)
        assert set(example) <= set(schema["properties"])


def test_every_example_is_shown() -> None:
    assert EXAMPLES.keys() <= described_api()["components"]["schemas"].keys()


async def test_served_document_is_the_committed_one(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == described_api()
