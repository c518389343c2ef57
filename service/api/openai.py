"""The /v1 endpoints: OpenAI's dialect, so that its client works."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service import problems
from service.api.dependencies import HostDep, needs
from service.api.documentation import events, openai_answers
from service.disconnect import ended_with_its_client
from service.generation import Asked, admit
from service.host import Host
from service.ledger.api_keys import Scope
from service.middleware.version import HEADER
from service.openai_answers import Group, Head, chat, completion, streamed_chat, streamed_completion
from service.request_errors import UnknownModel
from service.schemas.openai import (
    CHAT_TOKENS,
    COMPLETION_TOKENS,
    Chat,
    ChatChunk,
    ChatIn,
    Completion,
    CompletionIn,
    Error,
    Model,
    Models,
)

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[needs(Scope.GENERATE, Scope.GENERATE)])

_ANSWERING = openai_answers(
    problems.INVALID,
    problems.MODEL_NOT_FOUND,
    problems.VERSION_NOT_FOUND,
    problems.VERSION_GONE,
    problems.TOO_LARGE,
    problems.TOO_SLOW,
    problems.MEDIA,
    problems.PROMPT_TOO_LONG,
    problems.INTERNAL,
    problems.OVERLOADED,
    problems.DRAINING,
    problems.NOT_READY,
    problems.NOT_REACHED,
)


@router.get("/models", summary="Models", responses=openai_answers())
def list_models(host: HostDep) -> Models:
    """The one that is served."""
    return Models(data=[_model(host)])


@router.get("/models/{model:path}", summary="One model", responses=openai_answers(problems.MODEL_NOT_FOUND))
def get_model(model: Annotated[str, Path(description="as the list names it")], host: HostDep) -> Model:
    """By the id that the list gives."""
    _check_model(host, model)
    return _model(host)


@router.post(
    "/completions",
    summary="Continue texts",
    response_model=Completion,
    responses={
        200: {
            "description": "With `stream`, chunks of the same shape, then `[DONE]`.",
            "content": events((None, Completion), (None, "[DONE]"), (None, Error)),
        },
        **_ANSWERING,
    },
)
async def create_completion(
    asked: CompletionIn, host: HostDep, request: Request, response: Response
) -> Completion | Response:
    """`context`, `weights_version`, `min_weights_version` and `modulation_scale` are extensions."""
    _check_model(host, asked.model)
    template = host.runtime.template
    wanted = [
        Asked(
            template.with_context(prompt, asked.context) if isinstance(prompt, str) else prompt,
            asked.sampling(asked.max_tokens or COMPLETION_TOKENS, asked.logprobs),
            asked.stop or (),
            asked.weights_version,
            asked.min_weights_version,
            asked.modulation_scale,
        )
        for prompt in asked.prompts
    ]
    group = await _admitted(host, wanted)
    head = Head(host.settings.model_name, group.parts[0].weights_version, "cmpl")
    headers = {HEADER: str(head.weights_version)}
    echoed = [
        (prompt if isinstance(prompt, str) else template.decode(prompt)) if asked.echo else ""
        for prompt in asked.prompts
    ]
    if asked.stream:
        return streamed_completion(group, head, echoed, asked.includes_usage, headers)
    response.headers.update(headers)
    async with ended_with_its_client(request, group.cancel):
        return await completion(group, head, echoed)


@router.post(
    "/chat/completions",
    summary="Go on with a conversation",
    response_model=Chat,
    responses={
        200: {
            "description": "With `stream`, `chat.completion.chunk`s, then `[DONE]`.",
            "content": events((None, ChatChunk), (None, "[DONE]"), (None, Error)),
        },
        **_ANSWERING,
    },
)
async def create_chat_completion(
    asked: ChatIn, host: HostDep, request: Request, response: Response
) -> Chat | Response:
    """`context`, `weights_version`, `min_weights_version` and `modulation_scale` are extensions."""
    _check_model(host, asked.model)
    messages = [message.plain() for message in asked.messages]
    if asked.context:
        messages.insert(0, {"role": "system", "content": " ".join(asked.context)})
    wanted = Asked(
        host.runtime.template.chat(messages),
        asked.sampling(asked.max_completion_tokens or asked.max_tokens or CHAT_TOKENS, asked.wanted_logprobs),
        asked.stop or (),
        asked.weights_version,
        asked.min_weights_version,
        asked.modulation_scale,
    )
    group = await _admitted(host, [wanted])
    head = Head(host.settings.model_name, group.parts[0].weights_version, "chatcmpl")
    headers = {HEADER: str(head.weights_version)}
    if asked.stream:
        return streamed_chat(group, head, asked.includes_usage, headers)
    response.headers.update(headers)
    async with ended_with_its_client(request, group.cancel):
        return await chat(group, head)


async def _admitted(host: Host, wanted: Sequence[Asked]) -> Group:
    """All prompts at one version, or none. Raises as `admit`."""
    group = Group([])
    try:
        for each in wanted:
            pinned = group.parts[0].weights_version if group.parts else each.weights_version
            group.parts = [*group.parts, await admit(host, each.at(pinned))]
    except BaseException:
        group.cancel()
        raise
    return group


def _model(host: Host) -> Model:
    return Model(id=host.settings.model_name, created=int(host.metrics.started))


def _check_model(host: Host, name: str) -> None:
    if name != host.settings.model_name:
        raise UnknownModel(name, host.settings.model_name)
