"""Every parameter that OpenAI's client knows is honoured, or refused by its name; none is ignored."""

import re
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from pydantic.fields import FieldInfo

from service.schemas.openai import ChatIn, CompletionIn, MessageIn, StreamOptions, _Only

Client = httpx2.AsyncClient
MODEL = "reference"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}]}
COMPLETION = {"model": MODEL, "prompt": "Who?"}
DOCUMENTED = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")

OF_CHAT = frozenset(chat_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
OF_COMPLETIONS = frozenset(completion_params.CompletionCreateParamsBase.__annotations__) | {"stream"}


def only(field: FieldInfo) -> bool:
    """Whether nothing but what happens anyway is taken."""
    return any(isinstance(each, _Only) for each in field.metadata) or "ResponseFormat" in str(
        field.annotation
    )


def known(model: Any) -> set[str]:
    return set(model.model_fields)


UNKNOWN = [
    *[("/v1/chat/completions", CHAT, name) for name in sorted(OF_CHAT - known(ChatIn))],
    *[("/v1/completions", COMPLETION, name) for name in sorted(OF_COMPLETIONS - known(CompletionIn))],
]
ONLY = [
    *[("/v1/chat/completions", CHAT, n) for n, field in ChatIn.model_fields.items() if only(field)],
    *[("/v1/completions", COMPLETION, n) for n, field in CompletionIn.model_fields.items() if only(field)],
]
WANTED: dict[str, Any] = {
    "frequency_penalty": 1.5,
    "presence_penalty": -1,
    "logit_bias": {"50": -100},
    "store": True,
    "service_tier": "flex",
    "best_of": 2,
    "suffix": "the end",
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "modalities": ["text", "audio"],
}
"""What clients ask for and would miss."""


async def refused(client: Client, path: str, body: dict[str, Any], name: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    named = [*error["param"].split("."), *re.findall(r"[\w.]+(?=: )", error["message"])]
    assert name in ".".join(named).split(".")


@pytest.mark.parametrize(("path", "body", "name"), UNKNOWN)
@pytest.mark.parametrize("value", [None, True, "x", {"type": "auto"}])
async def test_parameter_that_is_not_supported_is_refused_by_name(
    client: Client, path: str, body: dict[str, Any], name: str, value: Any
) -> None:
    await refused(client, path, {**body, name: value}, name)


@pytest.mark.parametrize(("path", "body", "name"), ONLY)
async def test_parameter_of_one_value_refuses_others_by_name(
    client: Client, path: str, body: dict[str, Any], name: str
) -> None:
    await refused(client, path, {**body, name: WANTED[name]}, name)


@pytest.mark.parametrize("kind", get_args(ChatCompletionMessageParam))
async def test_parts_of_messages_that_are_not_supported_are_refused_by_name(
    client: Client, kind: Any
) -> None:
    for name in set(kind.__annotations__) - known(MessageIn) | {"name"}:
        message = {"role": "assistant", "content": "x", name: "y"}
        await refused(client, "/v1/chat/completions", {**CHAT, "messages": [message]}, name)


@pytest.mark.parametrize("role", ["tool", "function"])
async def test_roles_that_are_not_supported_are_refused(client: Client, role: str) -> None:
    await refused(
        client, "/v1/chat/completions", {**CHAT, "messages": [{"role": role, "content": "x"}]}, "role"
    )


@pytest.mark.parametrize("kind", get_args(ChatCompletionContentPartParam))
async def test_parts_that_are_no_text_are_refused(client: Client, kind: Any) -> None:
    (name,) = set(kind.__annotations__) - {"type", "prompt_cache_breakpoint"}
    if name == "text":
        return
    part = {"type": name, name: {"url": "data:"}}
    body = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    await refused(client, "/v1/chat/completions", body, name)


async def test_options_of_streams_are_all_known(client: Client) -> None:
    assert set(ChatCompletionStreamOptionsParam.__annotations__) == known(StreamOptions)
    body = {**CHAT, "stream": True, "stream_options": {"include_obfuscation": True}}
    await refused(client, "/v1/chat/completions", body, "include_obfuscation")


@pytest.mark.parametrize("model", [ChatIn, CompletionIn])
def test_parameters_that_are_honoured_are_documented(model: Any) -> None:
    table = DOCUMENTED.partition("| parameter")[2].partition("Everything else")[0]
    told = {name.partition(".")[0] for name in re.findall(r"`([a-z_.]+)`", table)}
    assert {name for name, field in model.model_fields.items() if not only(field)} <= told
