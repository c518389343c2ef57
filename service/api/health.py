"""Is it alive, has it started, may it get traffic; and what has it counted."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import problems
from service.api.dependencies import HostDep
from service.api.documentation import answers
from service.request_errors import NotReady
from service.schemas.common import Out

router = APIRouter(tags=["health"])


class Health(Out):
    """The process answers; it does so only once model and facts are loaded."""

    status: Literal["ok"] = "ok"
    weights_version: int


async def health(host: HostDep) -> Health:
    """The port opens when everything is loaded, so this fails while it is closed, and once only a restart
    helps.
    """
    if host.dead is not None:
        raise NotReady(host.dead)
    return Health(weights_version=host.version)


for _path, _summary in (
    ("/livez", "Is the process alive"),
    ("/startupz", "Have the model and its facts been loaded"),
):
    router.add_api_route(
        _path, health, name=_path.strip("/"), summary=_summary, responses=answers(problems.NOT_READY)
    )


@router.get("/readyz", summary="May it get traffic", responses=answers(problems.NOT_READY))
async def readyz(host: HostDep) -> Health:
    """Not while it shuts down, nor where it is too far behind the ledger or cannot follow it."""
    if host.unready is not None:
        raise NotReady(host.unready)
    return Health(weights_version=host.version)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(host: HostDep) -> Response:
    """In the text format."""
    return Response(host.metrics.render(), media_type=CONTENT_TYPE_LATEST)
