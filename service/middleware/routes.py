"""What a request is called in metrics and traces: labels must not grow with what clients make up."""

from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope

UNMATCHED = "unmatched"
"""The route of addresses that do not exist."""
OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_of(scope: Scope) -> str:
    """Its method, if it is one of HTTP's."""
    return scope["method"] if scope["method"] in _METHODS else OTHER


def route_of(scope: Scope) -> str:
    """The template of the address; also where the request was refused before it was routed."""
    found = getattr(scope.get("route"), "path", None)
    if found is None and "app" in scope:
        contexts = iter_route_contexts(scope["app"].routes)
        found = next((each.path for each in contexts if each.matches(scope)[0] is not Match.NONE), None)
    return found or UNMATCHED
