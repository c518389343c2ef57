"""openapi.yaml, as the application describes itself."""

from typing import Any

import yaml

from service.app import create_api


def document() -> dict[str, Any]:
    """The OpenAPI 3.2 document."""
    return create_api().openapi()


def render() -> str:
    """The document as YAML, the same text for the same application."""
    return yaml.dump(document(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
