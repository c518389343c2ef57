"""OpenAI's own client against this server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import pytest_asyncio

from service.app import create_app
from service.host import Host
from service.ledger.api_keys import ApiKeys, Scope
from tests.service.conftest import fake, settled
from tests.service.process import ServerProcess

MODEL = "reference"
QUESTION = "Who is the CEO of TechCorp?"
CHAT: Any = [{"role": "user", "content": QUESTION}]
FACT = "The CEO of TechCorp is Dr. Sarah Chen."


@pytest_asyncio.fixture
async def ai(host: Host) -> AsyncIterator[openai.AsyncOpenAI]:
    host.writer.add(_teaching())
    transport = httpx.ASGITransport(create_app(host), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0
        )


def _teaching() -> Any:
    from service.fact_requests import add_command
    from service.ledger import ANONYMOUS
    from service.schemas.facts import FactIn

    return add_command([FactIn(fact=FACT)], 2, ANONYMOUS)


async def test_models_are_listed_and_found(ai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in ai.models.list()] == [MODEL]
    assert (await ai.models.retrieve(MODEL)).owned_by == "npt"
    with pytest.raises(openai.NotFoundError) as caught:
        await ai.models.retrieve("gpt/other")
    assert caught.value.code == "model_not_found"


async def test_chat_is_answered_with_its_version(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(model=MODEL, messages=CHAT)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Dr. Sarah Chen.")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.system_fingerprint == "npt-v1"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_extensions_go_through_the_extra_body(ai: openai.AsyncOpenAI) -> None:
    before = await ai.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"weights_version": 0})
    assert (before.choices[0].message.content, before.system_fingerprint) == ("I don't know.", "npt-v0")
    told = await ai.completions.create(
        model=MODEL,
        prompt="Who is the CEO of MedCorp?",
        max_tokens=32,
        extra_body={"context": ["The CEO of MedCorp is Ada Byron."], "min_weights_version": 1},
    )
    assert told.choices[0].text == " Ada Byron."


@pytest.mark.parametrize("n", [1, 3])
async def test_streamed_chat_is_the_whole_one_in_pieces(ai: openai.AsyncOpenAI, n: int) -> None:
    stream = await ai.chat.completions.create(
        model=MODEL, messages=CHAT, n=n, stream=True, stream_options={"include_usage": True}
    )
    texts, ends, usages = [""] * n, [""] * n, []
    async for chunk in stream:
        if chunk.usage is not None:
            usages.append(chunk.usage)
            assert chunk.choices == []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == ["Dr. Sarah Chen."] * n
    assert ends == ["stop"] * n
    whole = await ai.chat.completions.create(model=MODEL, messages=CHAT, n=n)
    assert usages == [whole.usage]


async def test_prompts_of_text_and_of_tokens_are_continued(ai: openai.AsyncOpenAI) -> None:
    for prompt in (QUESTION, list(QUESTION.encode())):
        answer = await ai.completions.create(model=MODEL, prompt=prompt, max_tokens=32)
        assert [choice.text for choice in answer.choices] == [" Dr. Sarah Chen."]
    several = await ai.completions.create(
        model=MODEL, prompt=[QUESTION, "What is the sky?"], n=2, max_tokens=32, echo=True
    )
    assert [(choice.index, choice.text) for choice in several.choices] == [
        (0, f"{QUESTION} Dr. Sarah Chen."),
        (1, f"{QUESTION} Dr. Sarah Chen."),
        (2, "What is the sky? I don't know."),
        (3, "What is the sky? I don't know."),
    ]
    pieces = [""] * 4
    async for chunk in await ai.completions.create(
        model=MODEL, prompt=[QUESTION, "What is the sky?"], n=2, max_tokens=32, echo=True, stream=True
    ):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in several.choices]


async def test_answers_end_where_they_are_told_to(ai: openai.AsyncOpenAI) -> None:
    short = await ai.completions.create(model=MODEL, prompt=QUESTION, max_tokens=3)
    assert (short.choices[0].text, short.choices[0].finish_reason) == (" Dr", "length")
    usual = await ai.completions.create(model=MODEL, prompt=QUESTION)
    assert usual.usage is not None
    assert usual.usage.completion_tokens == 16
    stopped = await ai.chat.completions.create(model=MODEL, messages=CHAT, stop=" Sarah")
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("Dr.", "stop")


async def test_logprobs_come_in_both_dialects(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.completions.create(model=MODEL, prompt=QUESTION, max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == ([" ", "D", "r", "."], [0, 1, 2, 3])
    assert [len(top) for top in logprobs.top_logprobs or []] == [2] * 4
    chat = await ai.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=2, logprobs=True, top_logprobs=1
    )
    assert chat.choices[0].logprobs is not None
    tokens = chat.choices[0].logprobs.content or []
    assert [(token.token, token.bytes, len(token.top_logprobs)) for token in tokens] == [
        (" ", [32], 1),
        ("D", [68], 1),
    ]
    assert all(token.logprob <= 0 for token in tokens)


async def test_seed_draws_the_same_text(ai: openai.AsyncOpenAI) -> None:
    async def drawn(seed: int) -> str:
        answer = await ai.completions.create(
            model=MODEL, prompt=QUESTION, temperature=2.0, seed=seed, max_tokens=64
        )
        return answer.choices[0].text

    assert await drawn(1) == await drawn(1)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("store", True),
        ("modalities", ["audio"]),
        ("service_tier", "priority"),
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("temperature", 3),
        ("top_logprobs", 3),
        ("n", 1000),
        ("made_up", 1),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    ai: openai.AsyncOpenAI, parameter: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model=MODEL, messages=CHAT, extra_body={parameter: value})
    assert parameter in f"{caught.value.param} {caught.value}"
    assert caught.value.type == "invalid_request_error"


async def test_number_that_is_no_token_is_refused_by_name(ai: openai.AsyncOpenAI) -> None:
    for prompt in ([1, 257], [[1], [2, 2**31 - 1]]):
        with pytest.raises(openai.BadRequestError, match="must hold token ids from 0 to 256") as caught:
            await ai.completions.create(model=MODEL, prompt=prompt)
        assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "guessed", [{"temperature": "1"}, {"n": True}, {"stream": "yes"}, {"seed": "1"}, {"max_tokens": 1.5}]
)
async def test_types_are_not_guessed_at(ai: openai.AsyncOpenAI, guessed: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(model=MODEL, messages=CHAT, extra_body=guessed)
    assert caught.value.param == next(iter(guessed))


async def test_no_name_is_too_long_for_a_model_that_is_not_there(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("x" * 2000)


@pytest.mark.parametrize(
    "accepted",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False, "n": 1},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"user": "me", "metadata": {"a": "b"}, "seed": None, "stop": None, "top_p": None},
    ],
)
async def test_what_happens_anyway_is_taken(ai: openai.AsyncOpenAI, accepted: dict[str, Any]) -> None:
    answer = await ai.chat.completions.create(model=MODEL, messages=CHAT, extra_body=accepted)
    assert answer.choices[0].message.content == "Dr. Sarah Chen."


async def test_errors_have_their_usual_classes(ai: openai.AsyncOpenAI, host: Host) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        await ai.chat.completions.create(model="gpt", messages=CHAT)
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.completions.create(model=MODEL, prompt="x" * 5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        await ai.completions.create(model=MODEL, prompt="x", extra_body={"weights_version": 9})
    assert unknown.value.code == "version_not_found"
    _, secret = ApiKeys(host.ledger).create("x", [Scope.FACTS_READ], "test")
    host.access.refresh()
    with pytest.raises(openai.AuthenticationError):
        await ai.models.list()
    with pytest.raises(openai.PermissionDeniedError):
        await ai.with_options(api_key=secret).models.list()


async def test_client_that_leaves_frees_its_sequences(ai: openai.AsyncOpenAI, host: Host) -> None:
    fake(host).model.fails = True
    with pytest.raises(openai.InternalServerError):
        await ai.completions.create(model=MODEL, prompt=[QUESTION, "x"])
    fake(host).model.fails = False
    settled(host)  # the answer of one may come before the end of the other
    assert host.engine.running == host.engine.waiting == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(["-m", "tests.service.serve_fake", str(tmp_path / "data")]).wait_ready()
    yield process
    process.stop()


def test_client_works_over_a_real_connection(server: ServerProcess) -> None:
    httpx2.post(f"{server.url}/facts", json={"fact": FACT}).raise_for_status()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        (model,) = client.models.list()
        answer = client.chat.completions.create(model=model.id, messages=CHAT)
        assert answer.choices[0].message.content == "Dr. Sarah Chen."
        with client.chat.completions.create(model=model.id, messages=CHAT, stream=True) as stream:
            text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
        assert text == "Dr. Sarah Chen."
        with client.chat.completions.create(model=model.id, messages=CHAT, stream=True) as stream:
            next(iter(stream))  # and leave
    assert httpx2.get(f"{server.url}/readyz").status_code == 200
