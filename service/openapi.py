"""openapi.yaml, as the application describes itself."""

from typing import Any

import yaml

from service.app import create_api
from service.problems import OPENAI
from service.schemas.problem import Problem


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    described = create_api().openapi()
    schemas = described["components"]["schemas"]
    own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(own.pop("$defs", {}))
    schemas["Problem"] = own
    for path, methods in described["paths"].items():
        if path.startswith(OPENAI):  # OpenAI answers 400 where others answer 422
            for operation in methods.values():
                operation["responses"].pop("422", None)
    # FastAPI's own error shape, which no endpoint here answers with.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    described["components"]["schemas"] = dict(sorted(schemas.items()))
    return described


def render() -> str:
    """The document as YAML, the same text for the same application."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=100)
