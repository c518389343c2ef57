"""Versions as files, of a real, small, random NPT: what was exported says the same, bit for bit."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx2
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, load_file, save_file

from npt_core.bank import Factors, FactWeights
from npt_core.checkpoint import CheckpointError, load_checkpoint
from npt_core.consolidation import Consolidated, FoldWriter, WriteRequest
from npt_core.loading import BANK_FILE, Runtime, load_runtime
from service.host import Host, open_host
from service.runtime import Runtime as Shape
from service.settings import Settings
from service.weights_codec import decode
from tests.service.conftest import client_of
from tests.service.test_real_model import Scribble, ask, checkpoint

__all__ = ["checkpoint"]  # a fixture

Client = httpx2.AsyncClient
LAX = {"min_recall": 0, "min_locality": 0, "max_drift": 1}


@dataclass(frozen=True)
class Factoring(Scribble):
    """Scribbles columns, or for facts that say so factors."""

    def consolidate(self, request: WriteRequest, /) -> Consolidated:
        made = super().consolidate(request)
        if "factors" not in request.fact:
            columns = {i: replace(c, values=c.values / 100) for i, c in made.weights.columns.items()}
            return replace(made, weights=FactWeights(columns))
        config = self.runtime.model.config
        draws = torch.Generator().manual_seed(len(request.fact))
        left, right = (
            torch.randn(2, n, generator=draws) / 5 for n in (config.intermediate_size, config.hidden_size)
        )
        factors = {
            (0, "gate_proj"): Factors(left, right),
            (1, "down_proj"): Factors(right.clone(), left.clone()),
        }
        return Consolidated(FactWeights({}, factors), replace(made.report, columns=0))  # type: ignore[arg-type]


@dataclass(frozen=True)
class WithScribble:
    """The real runtime around another consolidator; folds are the real ones."""

    real: Runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @property
    def consolidator(self) -> Factoring:
        return Factoring(self.real)

    @property
    def fold_writer(self) -> FoldWriter:
        return self.real.fold_writer


def scribbling(source: str, /, **how: Any) -> Shape:
    return WithScribble(load_runtime(source, **how))  # type: ignore[return-value]


def opened(model: Path, data: Path) -> Host:
    return open_host(Settings(model=str(model), data=data), scribbling)


@pytest.fixture
def real(checkpoint: Path, data: Path) -> Any:
    host = opened(checkpoint, data)
    yield host
    host.close()


async def teach(client: Client, *facts: str) -> list[str]:
    answers = [await client.post("/facts", json={"fact": fact, "on_conflict": "allow"}) for fact in facts]
    assert [answer.status_code for answer in answers] == [201] * len(facts), answers[-1].text
    return [answer.json()["id"] for answer in answers]


async def export(client: Client, version: int, form: str) -> bytes:
    answer = await client.get(f"/versions/{version}/export", params={"format": form})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-NPT-Weights-Version"] == str(version)
    assert f"npt-v{version}" in answer.headers["Content-Disposition"]
    return answer.content


async def test_safetensors_hold_every_column_factor_and_fold(real: Host) -> None:
    async with client_of(real) as client:
        one, two, factors = await teach(client, "One.", "And another.", "These are factors.")
        assert (await client.post("/versions:fold", json={"facts": [one], **LAX})).status_code == 201
        tensors = load(await export(client, 4, "safetensors"))
    facts = real.ledger.facts_by_id([one, two, factors])
    for fact_id in (two, factors):
        stored = decode(real.blobs.get(facts[fact_id].blob)).to_tensors()
        assert {n.partition("/")[2] for n in tensors if n.startswith(fact_id)} == stored.keys()
        assert all(torch.equal(tensors[f"{fact_id}/{name}"], tensor) for name, tensor in stored.items())
    version = real.ledger.version(4)
    assert version is not None
    fold = real.replica.load_fold(version.fold)
    assert torch.equal(tensors["fold/fold.1"], fold.deltas[1])
    assert not any(name.startswith(one) for name in tensors)


async def test_older_version_is_exported_as_it_was(real: Host) -> None:
    async with client_of(real) as client:
        (one,) = await teach(client, "One.")
        before = await export(client, 1, "safetensors")
        await client.delete(f"/facts/{one}")
        assert await export(client, 1, "safetensors") == before
        assert load(await export(client, 2, "safetensors")) == {}


async def test_adapter_adds_what_factors_and_folds_add(real: Host, checkpoint: Path, tmp_path: Path) -> None:
    async with client_of(real) as client:
        (one, _) = await teach(client, "One.", "These are factors.")
        refused = await client.get("/versions/2/export", params={"format": "peft"})
        assert (refused.status_code, refused.json()["type"]) == (409, "npt:not-exportable")
        assert "1 facts as columns" in refused.json()["detail"]
        await client.post("/versions:fold", json={"facts": [one], **LAX})
        ZipFile(io.BytesIO(await export(client, 3, "peft"))).extractall(tmp_path)
    base = load_checkpoint(checkpoint, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path)(ids).logits
        expected = real.runtime.model(ids, weights_version=3).logits  # type: ignore[attr-defined]
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(adapted, expected, atol=1e-4)


async def test_version_without_anything_is_no_adapter(real: Host) -> None:
    async with client_of(real) as client:
        refused = await client.get("/versions/0/export", params={"format": "peft"})
        assert (refused.status_code, refused.json()["type"]) == (409, "npt:not-exportable")


async def test_merged_checkpoint_answers_as_the_version_did(real: Host, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    async with client_of(real) as client:
        one, two, factors = await teach(client, "One.", "And another.", "These are factors.")
        base = await ask(client, weights_version=0)
        await client.post("/versions:fold", json={"facts": [one], **LAX})
        expected = await ask(client)
        inside = await ask(client, weights_version=1)
        ZipFile(io.BytesIO(await export(client, 4, "merged"))).extractall(folder)
    assert expected != base
    again = opened(folder, tmp_path / "fresh")
    async with client_of(again) as client:
        assert await ask(client) == expected
        assert {f["id"] for f in (await client.get("/facts")).json()["items"]} == {two, factors}
        assert (await client.get("/versions")).json()["weights_version"] == 1
        folded = await ask(client, weights_version=0)
        assert folded != base
        for fact_id in (two, factors):
            assert (await client.delete(f"/facts/{fact_id}")).status_code == 200
        assert await ask(client) == folded
    again.close()
    reopened = opened(folder, tmp_path / "fresh")
    assert reopened.version == 3
    reopened.close()
    assert inside != base


async def test_rollback_past_a_fold_is_bit_exact(real: Host) -> None:
    async with client_of(real) as client:
        one, _ = await teach(client, "One.", "And another.")
        before = await ask(client)
        await client.post("/versions:fold", json={"facts": [one], **LAX})
        folded = await ask(client)
        assert folded != before
        await client.post("/versions/2/activate")
        assert await ask(client) == before
        await client.post("/versions/3/activate")
        assert await ask(client) == folded
        assert await ask(client, weights_version=2) == before


async def test_retracting_a_folded_fact_gives_the_bits_of_never_having_had_it(real: Host) -> None:
    async with client_of(real) as client:
        one, two = await teach(client, "One.", "And another.")
        await client.post("/versions:fold", json={"facts": [two], **LAX})
        await client.delete(f"/facts/{one}")
        never = await ask(client)
        await client.post("/versions/2/activate")
        assert (await client.post("/versions:fold", json=LAX)).status_code == 201
        assert await ask(client) != never
        await client.delete(f"/facts/{one}")
        assert await ask(client) == never


def test_damaged_bank_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    save_file({"fact_1/keys": torch.zeros(1)}, folder / BANK_FILE, {"facts": "[]"})
    with pytest.raises(CheckpointError, match="which is no fact of it"):
        opened(folder, tmp_path / "data")
    assert load_file(folder / BANK_FILE)


async def test_unknown_formats_and_versions_are_refused(real: Host) -> None:
    async with client_of(real) as client:
        assert (await client.get("/versions/0/export", params={"format": "gguf"})).status_code == 422
        assert (await client.get("/versions/7/export")).status_code == 404
