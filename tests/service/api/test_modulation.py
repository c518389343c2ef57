"""What modulation did to each token, told with an answer."""

from dataclasses import replace

import httpx2
import pytest

from npt_core.engine import SamplingParams, VersionGone
from service.generation import Asked, admit
from service.host import Host
from service.modulation import measuring
from tests.service.api.test_generate import ask, streamed, teach
from tests.service.conftest import client_of, fake

Client = httpx2.AsyncClient
PROMPT = "Who is Bo?"


async def test_each_token_has_its_strength(client: Client) -> None:
    answer = await ask(client, prompt=PROMPT, modulation=True)
    told = answer["modulation"]
    assert "".join(each["token"] for each in told["prompt"]) == PROMPT
    assert "".join(each["token"] for each in told["completion"]) == answer["text"] == " I don't know."
    assert len(told["completion"]) == answer["usage"]["completion_tokens"]
    touched = [each["token"] for each in told["prompt"] if each["strength"] == 0.5]
    assert touched == ["W", "B"]


async def test_strength_is_that_of_the_version_that_answered(client: Client) -> None:
    await teach(client)
    for version in (0, 1):
        told = (await ask(client, modulation=True, weights_version=version))["modulation"]
        assert told["prompt"][0] == {"token": "W", "token_id": 87, "strength": 0.5 * (1 + version)}


async def test_scale_counts(client: Client) -> None:
    told = (await ask(client, modulation=True, modulation_scale=0))["modulation"]
    assert {each["strength"] for each in told["prompt"] + told["completion"]} == {0}


async def test_it_is_told_only_if_asked_for(client: Client) -> None:
    assert "modulation" not in await ask(client)


async def test_stream_ends_with_it(client: Client) -> None:
    whole = await ask(client, modulation=True)
    name, done = (await streamed(client, modulation=True))[-1]
    assert name == "done"
    assert done["modulation"] == whole["modulation"]


async def test_stopped_answer_has_the_tokens_up_to_its_stop(client: Client) -> None:
    answer = await ask(client, modulation=True, stop="don")
    assert answer["text"] == " I "
    assert "".join(each["token"] for each in answer["modulation"]["completion"]) == " I don"


@pytest.mark.parametrize("stream", [False, True])
async def test_several_sequences_are_refused(client: Client, stream: bool) -> None:
    body = {"prompt": PROMPT, "modulation": True, "n": 2, "stream": stream}
    answer = await client.post("/generate", json=body)
    assert answer.status_code == 422
    assert "n must be 1" in answer.json()["detail"]


async def test_model_without_adapters_is_refused(host: Host) -> None:
    object.__setattr__(host, "runtime", replace(fake(host), modulates=False))
    async with client_of(host) as client:
        answer = await client.post("/generate", json={"prompt": PROMPT, "modulation": True})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "modulation"
        assert host.engine.running + host.engine.waiting == 0
        assert (await client.post("/generate", json={"prompt": PROMPT})).status_code == 200


async def test_version_that_was_let_go_of_meanwhile_is_told(host: Host) -> None:
    running = await admit(host, Asked(PROMPT, SamplingParams(1)))
    async for _ in running.pieces():
        pass
    fake(host).bank.oldest = 1
    with pytest.raises(VersionGone):
        await measuring(host, running, None)([1])
