"""Whatever is asked for, an answer in pieces is the same answer: text, numbers, and one end."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from service.schemas.openai import Completion
from tests.service.fakes import EOS, ByteTemplate

Client = httpx2.AsyncClient
Events = list[tuple[str | None, str]]
MODEL = "reference"
SUBJECT = "moon"

VALUES = st.text(
    st.one_of(
        st.sampled_from("aab. ßé€𝒳😀\u0301\u200d\u202e\ufffd\ufeff"),
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=";"),
    ),
    min_size=1,
    max_size=12,
).filter(lambda text: text.strip(" .") and " is " not in text)
"""What is known of the subject. The double answers byte by byte, so characters come in parts."""


@st.composite
def asked(draw: st.DrawFn, most_logprobs: int, hottest: float) -> dict[str, Any]:
    """What all dialects share; stop strings are often parts of the answer."""
    value = draw(VALUES)
    answer = f" {value.rstrip('.')}."
    cuts = st.tuples(st.integers(0, len(answer) - 1), st.integers(1, 4))
    parts = cuts.map(lambda cut: answer[cut[0] : cut[0] + cut[1]])
    stops = st.lists(st.one_of(parts, st.text("ab. €", min_size=1, max_size=3)), max_size=4)
    wanted = {
        "context": [f"The {SUBJECT} is {value}."],
        "temperature": draw(st.sampled_from([0, 0.5, hottest])),
        "top_p": draw(st.sampled_from([1, 0.9, 1e-9])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "n": draw(st.integers(1, 3)),
        "stop": draw(stops),
        "logprobs": draw(st.one_of(st.none(), st.integers(0, most_logprobs))),
    }
    return {name: value for name, value in wanted.items() if value is not None}


MOST_TOKENS = st.integers(1, 40)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]


@pytest.fixture
def whole(client: Client) -> Ask:
    """The answer in one piece."""

    async def answered(path: str, body: dict[str, Any]) -> Any:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return answered


@pytest.fixture
def streamed(client: Client) -> Ask:
    """The answer's events, each with its name and its data."""

    async def answered(path: str, body: dict[str, Any]) -> Events:
        answer = await client.post(path, json={**body, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
        assert answer.text.endswith("\n\n")
        return [_event(block) for block in answer.text.removesuffix("\n\n").split("\n\n")]

    return answered


def _event(block: str) -> tuple[str | None, str]:
    lines = [line.partition(": ") for line in block.split("\n")]
    assert {name for name, _, _ in lines} <= {"event", "data"}
    fields = {name: value for name, _, value in lines}
    return fields.get("event"), fields["data"]


def cut(full: str, stops: list[str]) -> str:
    """The oracle: a text up to the first stop string, which is the one that ends earliest."""
    ends = [(full.find(stop) + len(stop), full.find(stop)) for stop in stops if stop in full]
    return full[: min(ends)[1]] if ends else full


@many
@given(wanted=asked(most_logprobs=3, hottest=4), most=MOST_TOKENS)
async def test_generate_in_pieces_is_the_whole(
    whole: Ask, streamed: Ask, wanted: dict[str, Any], most: int
) -> None:
    body = {"prompt": f"What is the {SUBJECT}?", "max_new_tokens": most, **wanted}
    told = await whole("/generate", body)
    events = await streamed("/generate", body)
    assert [name for name, _ in events[:-1]] == ["token"] * (len(events) - 1)
    name, last = events[-1]
    assert name == "done"
    made_here = {"id", "timings"}
    assert _without(json.loads(last), made_here) == _without(told, made_here)
    choices = told.get("choices") or [{**told, "index": 0}]
    pieces = [json.loads(data) for _, data in events[:-1]]
    for index, choice in enumerate(choices):
        own = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        numbers = [entry for piece in own for entry in piece.get("logprobs", ())]
        assert numbers == choice.get("logprobs", [])
    assert told["usage"]["completion_tokens"] <= most * wanted["n"]


@many
@given(wanted=asked(most_logprobs=3, hottest=4), most=MOST_TOKENS)
async def test_text_is_that_of_its_tokens_up_to_the_first_stop_string(
    whole: Ask, wanted: dict[str, Any], most: int
) -> None:
    body = {"prompt": f"What is the {SUBJECT}?", "max_new_tokens": most, **wanted, "logprobs": 0}
    stopped = await whole("/generate", body)
    full = await whole("/generate", {**body, "stop": []})
    for one, other in zip(_choices(stopped), _choices(full), strict=True):
        ids = [entry["token_id"] for entry in other["logprobs"]]
        assert ByteTemplate().decode([id_ for id_ in ids if id_ != EOS]) == other["text"]
        assert one["text"] == cut(other["text"], wanted["stop"])
        assert [entry["token_id"] for entry in one["logprobs"]] == ids[: len(one["logprobs"])]


def _choices(told: dict[str, Any]) -> list[dict[str, Any]]:
    return told.get("choices") or [told]


def _without(told: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in names}


@many
@given(
    wanted=asked(most_logprobs=5, hottest=2),
    most=MOST_TOKENS,
    prompts=st.integers(1, 3),
    echo=st.booleans(),
    usage=st.booleans(),
)
async def test_completions_in_pieces_are_the_whole(
    whole: Ask, streamed: Ask, wanted: dict[str, Any], most: int, prompts: int, echo: bool, usage: bool
) -> None:
    context = wanted.pop("context")[0]
    body = {"model": MODEL, "prompt": [f"Context: {context}\nWhat is the {SUBJECT}?"] * prompts, **wanted}
    body |= {"max_tokens": most, "echo": echo and "logprobs" not in wanted}
    told = Completion.model_validate(await whole("/v1/completions", body))
    chunks = _chunks(await streamed("/v1/completions", _with_usage(body, usage)), Completion, usage, told)
    assert len(told.choices) == prompts * wanted["n"]
    for choice in told.choices:
        own = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own if each.finish_reason] == [choice.finish_reason]
        assert own[-1].finish_reason
        numbers = [each.logprobs for each in own if each.logprobs]
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            found = [entry for each in numbers for entry in getattr(each, field)]
            assert found == (getattr(choice.logprobs, field) if choice.logprobs else [])
        if choice.logprobs:
            offsets = choice.logprobs.text_offset or []
            assert len(offsets) == len(choice.logprobs.tokens or [])
            assert offsets == sorted(offsets)
            assert all(offset <= len(choice.text) for offset in offsets)


@many
@given(wanted=asked(most_logprobs=5, hottest=2), most=MOST_TOKENS, usage=st.booleans())
async def test_chat_in_pieces_is_the_whole(
    whole: Ask, streamed: Ask, wanted: dict[str, Any], most: int, usage: bool
) -> None:
    top = wanted.pop("logprobs", None)
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"What is the {SUBJECT}?"}], **wanted}
    body |= {"max_tokens": most} | ({} if top is None else {"logprobs": True, "top_logprobs": top})
    told = await whole("/v1/chat/completions", body)
    events = await streamed("/v1/chat/completions", _with_usage(body, usage))
    chunks = _chunks(events, ChatCompletionChunk, usage, ChatCompletionChunkUsage(told))
    for choice in told["choices"]:
        own = [each for chunk in chunks for each in chunk.choices if each.index == choice["index"]]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice["message"]["content"]
        assert [each.finish_reason for each in own if each.finish_reason] == [choice["finish_reason"]]
        assert own[-1].finish_reason
        numbers = [entry.model_dump() for each in own if each.logprobs for entry in each.logprobs.content]
        assert numbers == (choice["logprobs"]["content"] if choice["logprobs"] else [])
        assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in numbers)


class ChatCompletionChunkUsage:
    """The usage of a whole answer."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.usage, self.id = told["usage"], told["id"]


def _with_usage(body: dict[str, Any], usage: bool) -> dict[str, Any]:
    return {**body, "stream_options": {"include_usage": True}} if usage else body


def _chunks(events: Events, kind: Any, usage: bool, told: Any) -> list[Any]:
    """Parsed by the client's own types; `[DONE]` comes once and last, and usage once before it, if at all."""
    assert [data for _, data in events].count("[DONE]") == 1
    assert events[-1] == (None, "[DONE]")
    assert all(name is None for name, _ in events)
    chunks = [kind.model_validate_json(data) for _, data in events[:-1]]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id != told.id
    counted = [chunk for chunk in chunks if chunk.usage is not None]
    assert counted == (chunks[-1:] if usage else [])
    if usage:
        assert counted[0].choices == []
        whole = told.usage if isinstance(told.usage, dict) else told.usage.model_dump(exclude_none=True)
        assert counted[0].usage.model_dump(exclude_none=True) == whole
    return [chunk for chunk in chunks if chunk.usage is None]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
async def test_stream_that_fails_ends_once_and_says_so(host: Any, client: Client, path: str) -> None:
    host.runtime.model.fails = True
    body: dict[str, Any] = {"stream": True, "prompt": "x"}
    if path.startswith("/v1"):
        body["model"] = MODEL
    if path.endswith("chat/completions"):
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    answer = await client.post(path, json=body)
    blocks = [_event(block) for block in answer.text.removesuffix("\n\n").split("\n\n")]
    name, data = blocks[-1]
    told = json.loads(data)
    if path == "/generate":
        assert (name, told["type"]) == ("error", "npt:internal-error")
    else:
        assert told["error"]["code"] == "internal_error"
    assert sum("error" in data for _, data in blocks) == 1
