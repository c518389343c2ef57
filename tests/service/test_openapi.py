from pathlib import Path
from typing import Any

import pytest

from service import problems
from service.openapi import document, render

ROOT = Path(__file__).parents[2]


def operations() -> list[tuple[str, Any]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document()["paths"].items()
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
    described = document()
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
    names = {reference.removeprefix("#/components/schemas/") for reference in found}
    assert names <= set(described["components"]["schemas"])


def test_every_operation_has_its_own_name() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)
