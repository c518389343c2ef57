"""The service around a real, small, random NPT: versions, restarts, and a fact it cannot read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

import npt_core.loading
from npt_core.bank import Columns, FactWeights
from npt_core.consolidation import Consolidated, Step, WriteReport, WriteRequest
from npt_core.loading import load_runtime
from service.host import Host, open_host
from service.runtime import Runtime
from service.settings import Settings
from tests.npt_core.tiny import calibrated, new_npt, plain_template, tokenizer
from tests.service.conftest import client_of
from tests.service.process import ServerProcess

BODY = {"prompt": "What is the capital of Borduria?", "max_new_tokens": 12}


@dataclass(frozen=True)
class Scribble:
    """Writes columns that fire everywhere: whatever the model says afterwards, it is different."""

    runtime: npt_core.loading.Runtime

    def give_way(self, _pause: Callable[[], None], _passes: object, /) -> None:
        """It takes no time."""

    def tell_steps(self, _tell: Callable[[Step], None], /) -> None:
        """It has none."""

    def consolidate_all(self, requests: Sequence[WriteRequest], /) -> list[Consolidated]:
        """Each for itself."""
        return [self.consolidate(request) for request in requests]

    def consolidate(self, request: WriteRequest, /) -> Consolidated:
        config = self.runtime.model.config
        draws = torch.Generator().manual_seed(len(request.fact))
        columns = Columns(
            keys=torch.randn(2, 16, generator=draws),
            values=3 * torch.randn(2, config.hidden_size, generator=draws),
            thresholds=torch.full((2,), -2.0),
            inputs=torch.randn(2, config.intermediate_size, generator=draws),
        )
        return Consolidated(FactWeights({1: columns}), WriteReport(request.strategy, layers=(1,), columns=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = new_npt()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    calibrated(model, plain_template())[0].save(folder)
    return folder


def scribbling(source: str, /, *, cache: Path | None = None, **placement: Any) -> Runtime:
    runtime = load_runtime(source, cache=cache, **placement)
    return replace(runtime, consolidator=Scribble(runtime))  # type: ignore[arg-type]


def opened(checkpoint: Path, data: Path) -> Host:
    return open_host(Settings(model=str(checkpoint), data=data), scribbling)


async def ask(client: httpx2.AsyncClient, **more: Any) -> tuple[str, list[float]]:
    answer = await client.post("/generate", json=BODY | {"logprobs": 0} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"], [entry["logprob"] for entry in answer.json()["logprobs"]]


async def test_versions_rollback_and_restart_are_bit_exact(checkpoint: Path, data: Path) -> None:
    host = opened(checkpoint, data)
    async with client_of(host) as client:
        base = await ask(client)
        for fact in ("One.", "And another."):
            assert (await client.post("/facts", json={"fact": fact})).status_code == 201
        versions = [await ask(client, weights_version=version) for version in range(3)]
        assert versions[0] == base
        assert len({text for text, _ in versions}) == 3
        await client.post("/versions/1/activate")
        await client.post("/versions/0/activate")
        assert await ask(client, weights_version=3) == versions[1]
        assert await ask(client) == base
    host.close()
    again = opened(checkpoint, data)
    async with client_of(again) as client:
        assert [await ask(client, weights_version=v) for v in range(3)] == versions
        assert await ask(client) == base
    again.close()


async def test_modulation_can_be_switched_off(checkpoint: Path, data: Path) -> None:
    host = opened(checkpoint, data)
    async with client_of(host) as client:
        assert await ask(client, modulation_scale=1.0) == await ask(client)
        assert await ask(client, modulation_scale=0.0) != await ask(client)
    host.close()


def test_npt_serve_answers_and_refuses_what_its_model_cannot_read(checkpoint: Path, data: Path) -> None:
    code = "from service.cli import main; main()"
    flags = ["--model", str(checkpoint), "--data", str(data), "--port", "0"]
    server = ServerProcess(["-c", code, "serve", *flags]).wait_ready()
    try:
        before = httpx2.post(f"{server.url}/generate", json=BODY, timeout=60).json()
        refused = httpx2.post(
            f"{server.url}/facts", json={"fact": "The capital of Borduria is Szohod."}, timeout=120
        )
        assert refused.status_code == 422
        assert refused.json()["type"] == "npt:fact-unreadable"
        assert refused.json()["report"]["recall_after"] == 0.0
        after = httpx2.post(f"{server.url}/generate", json=BODY, timeout=60).json()
        assert after["text"] == before["text"]
        assert after["weights_version"] == 0
    finally:
        server.stop()
