"""POST /generate."""

from fastapi import APIRouter, Request, Response

from service import problems
from service.answers import StreamedAnswer, whole
from service.api.dependencies import HostDep, needs
from service.api.documentation import answers, events
from service.disconnect import ended_with_its_client
from service.generation import Asked, admit
from service.ledger.api_keys import Scope
from service.middleware.version import HEADER
from service.modulation import check_modulation, measuring
from service.schemas.generate import GenerateIn, GenerateOut, TokenChunk
from service.schemas.problem import Problem

router = APIRouter(tags=["generate"], dependencies=[needs(Scope.GENERATE, Scope.GENERATE)])

_EVENTS = {
    "description": "The answer; with `stream`, events `token`, then `done` or `error`.",
    "content": events(("token", TokenChunk), ("done", GenerateOut), ("error", Problem)),
}


@router.post(
    "/generate",
    summary="Continue a prompt",
    response_model=GenerateOut,
    response_model_exclude_none=True,
    responses={
        200: _EVENTS,
        **answers(
            problems.MALFORMED,
            problems.VERSION_NOT_FOUND,
            problems.VERSION_GONE,
            problems.TOO_LARGE,
            problems.TOO_SLOW,
            problems.MEDIA,
            problems.INVALID,
            problems.PROMPT_TOO_LONG,
            problems.INTERNAL,
            problems.OVERLOADED,
            problems.DRAINING,
            problems.NOT_READY,
            problems.NOT_REACHED,
        ),
    },
)
async def generate(
    asked: GenerateIn, host: HostDep, request: Request, response: Response
) -> GenerateOut | StreamedAnswer:
    """The prompt is answered at one weights version from its first token to its last, whatever is
    written meanwhile: the newest, or the one it names."""
    if asked.modulation:
        check_modulation(host)
    running = await admit(
        host,
        Asked(
            host.runtime.template.with_context(asked.prompt, asked.context),
            asked.sampling(),
            asked.stop,
            asked.weights_version,
            asked.min_weights_version,
            asked.modulation_scale,
        ),
    )
    headers = {HEADER: str(running.weights_version)}
    measure = measuring(host, running, asked.modulation_scale) if asked.modulation else None
    if asked.stream:
        return StreamedAnswer(running, headers, measure)
    response.headers.update(headers)
    async with ended_with_its_client(request, running.stream.cancel):
        return await whole(running, measure)
