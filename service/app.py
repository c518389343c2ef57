"""The HTTP application: routes, problems, middleware. What it serves is a `Host`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from service import console, explorer, problems
from service.api import audit, facts, generate, health, keys, openai, operations, versions
from service.api.documentation import answers, completed
from service.host import Host
from service.middleware.access_log import AccessLog
from service.middleware.authentication import Authentication
from service.middleware.body_limit import BodyLimit
from service.middleware.failures import Failures
from service.middleware.farewell import Farewell
from service.middleware.local_names import LocalNames
from service.middleware.request_id import RequestId
from service.middleware.security_headers import SecurityHeaders
from service.middleware.traces import Traces
from service.middleware.version import Version

TITLE = "NPT"
API_VERSION = "1"
DESCRIPTION = (
    "A language model that learns: it answers from a context, and after `POST /facts` it knows "
    "without one. Every answer names the weights version that made it. Errors are problem details "
    "(RFC 9457) with stable types."
)

TAGS = {
    "generate": "Answers, each by exactly one weights version.",
    "facts": "Teach, find and retract facts.",
    "versions": "The history of the weights: compare, export, fold, roll back.",
    "operations": "Writes whose clients do not wait.",
    "openai": "The dialect of OpenAI's clients.",
    "keys": "What a key allows.",
    "audit": "Who did what.",
    "health": "For orchestrators and Prometheus.",
}


_ANYWHERE = (problems.INVALID, problems.INTERNAL)
_WITH_KEYS = (problems.UNAUTHENTICATED, problems.FORBIDDEN, problems.RATE)


def create_api() -> FastAPI:
    """The routes alone: enough to describe them, or to serve a host put into `state.host`."""
    app = FastAPI(
        title=TITLE,
        version=API_VERSION,
        description=DESCRIPTION,
        license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        generate_unique_id_function=_operation_id,
        docs_url=None,
        redoc_url=None,
        # Its own spans quote the query, which is a prompt in a search: see `service.tracing`.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,  # an address is right or wrong; a redirect would repeat what Host says
    )
    explorer.install(app)
    for router in (
        generate.router,
        facts.batches,
        facts.router,
        versions.folds,
        versions.router,
        operations.router,
        keys.router,
        audit.router,
    ):
        app.include_router(router, responses=answers(*_ANYWHERE, *_WITH_KEYS))
    app.include_router(openai.router)
    app.include_router(health.router, responses=answers(*_ANYWHERE))
    app.include_router(console.router)
    problems.install(app)
    app.openapi_version = "3.2.0"  # the first that can say what an event of a stream is
    described = app.openapi
    app.openapi = lambda: completed(described())  # type: ignore[method-assign]
    return app


def create_app(host: Host) -> FastAPI:
    """The application that serves `host`, and closes it when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            host.close()

    app = create_api()
    app.router.lifespan_context = lifespan
    app.state.host = host
    app.user_middleware = [
        Middleware(Traces),
        Middleware(RequestId),
        Middleware(Farewell, leaving=host.draining.is_set),
        Middleware(AccessLog, metrics=host.metrics),
        Middleware(Failures),
        Middleware(Version, current=lambda: host.version),
        Middleware(SecurityHeaders),
        Middleware(LocalNames, access=host.access, any_name=host.settings.allow_unauthenticated),
        Middleware(Authentication, access=host.access, metrics=host.metrics),
        Middleware(BodyLimit, limit=host.settings.max_body_bytes, seconds=host.settings.read_timeout_s),
    ]
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
