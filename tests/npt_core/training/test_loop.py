from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from npt_core.training.loop import LoopConfig, latest_checkpoint, learning_rate_factor, optimizers, run
from npt_core.training.pretraining import PretrainingLoss, weighted_cross_entropy
from tests.npt_core.tiny import new_llama, new_npt, tokenizer


class Interrupted(PackedRows):
    """Stops the run when batch 3 is asked for, as a lost machine does."""

    def batch_number(self, number: int) -> tuple[Tensor, Tensor]:
        if number == 3:
            raise KeyboardInterrupt
        return super().batch_number(number)


class InterruptedLate(PackedRows):
    """Stops after step 22: the last checkpoint is of step 16, the last log entry of step 20."""

    def batch_number(self, number: int) -> tuple[Tensor, Tensor]:
        if number == 22:
            raise KeyboardInterrupt
        return super().batch_number(number)


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def rows_of(kind: type[PackedRows] = PackedRows) -> PackedRows:
    return kind(tokenizer(), CorpusConfig(), batch=2, length=24, seed=1)


def loop_of(out: Path, **changes: object) -> LoopConfig:
    settings = LoopConfig(
        out=out, steps=6, checkpoint_every=3, mixed_precision="no", compile=False, workers=0
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in module.state_dict().items()}


def entries(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("phase", ["pretraining", "equivalence"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, phase: str) -> None:
    def loss(seed: int) -> nn.Module:
        if phase == "pretraining":
            return PretrainingLoss(new_llama(seed, tie_word_embeddings=True))
        return EquivalenceLoss(new_npt(seed), new_llama(7), EquivalenceConfig())

    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        folder.mkdir()
    whole = loss(0)
    first = run(whole, rows_of(), loop_of(folders[0]))
    with pytest.raises(KeyboardInterrupt):
        run(loss(0), rows_of(Interrupted), loop_of(folders[1]))
    resumed = loss(99)  # other weights: what counts is in the checkpoint
    second = run(resumed, rows_of(), loop_of(folders[1]))
    assert (first.step, first.tokens) == (second.step, second.tokens) == (6, 6 * 2 * 23)
    wanted = weights_of(whole)
    assert all(torch.equal(w, wanted[name]) for name, w in weights_of(resumed).items())
    start = weights_of(loss(0))
    assert any(not torch.equal(w, start[name]) for name, w in wanted.items())


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    module = PretrainingLoss(new_llama())
    run(module, rows_of(), loop_of(tmp_path, steps=3))
    before = weights_of(module)
    again = run(module, rows_of(Interrupted), loop_of(tmp_path, steps=3))
    assert again.step == 3
    assert all(torch.equal(w, before[name]) for name, w in weights_of(module).items())


def test_a_kill_while_saving_loses_no_more_than_the_last_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Accelerator.save_state

    def dying(self: Accelerator, output_dir: str) -> None:
        saved(self, output_dir)
        if latest_checkpoint(tmp_path) is not None:
            (Path(output_dir) / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(Accelerator, "save_state", dying)
    with pytest.raises(KeyboardInterrupt):
        run(PretrainingLoss(new_llama()), rows_of(), loop_of(tmp_path))
    monkeypatch.setattr(Accelerator, "save_state", saved)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert run(PretrainingLoss(new_llama(5)), rows_of(), loop_of(tmp_path)).step == 6
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    assert not (tmp_path / "checkpoint-3").exists()


def test_steps_taken_again_are_logged_once(tmp_path: Path) -> None:
    settings = loop_of(tmp_path, steps=24, checkpoint_every=8)
    with pytest.raises(KeyboardInterrupt):
        run(PretrainingLoss(new_llama()), rows_of(InterruptedLate), settings)
    assert [e["step"] for e in entries(tmp_path)] == [10, 20]
    run(PretrainingLoss(new_llama()), rows_of(), settings)
    assert [e["step"] for e in entries(tmp_path)] == [10, 20, 24]


def test_a_log_and_a_loss_curve_are_written(tmp_path: Path) -> None:
    run(PretrainingLoss(new_llama()), rows_of(), loop_of(tmp_path, steps=12))
    log = entries(tmp_path)
    assert [e["step"] for e in log] == [10, 12]
    assert [e["tokens"] for e in log] == [10 * 2 * 23, 12 * 2 * 23]
    assert all(e["loss"] > 0 and e["seconds"] > 0 for e in log)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_logged_losses_are_means_over_the_steps_since_the_last_entry(tmp_path: Path) -> None:
    class Counting(nn.Module):
        """Its k-th loss is k."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))
            self.calls = 0

        def forward(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            return {"loss": 0 * self.weight.sum() + self.calls}

    run(Counting(), rows_of(), loop_of(tmp_path, steps=12))
    assert [e["loss"] for e in entries(tmp_path)] == [5.5, 11.5]


def test_the_rate_warms_up_and_decays_to_nothing() -> None:
    rates = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 30)
    assert rates[29] == rates[500] == 1.0
    assert rates[:30] == sorted(rates[:30])
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert all(0 < learning_rate_factor(step, 3) <= 1 for step in range(3))


def test_every_trained_weight_has_one_optimizer() -> None:
    module = EquivalenceLoss(new_npt(), new_llama(), EquivalenceConfig())
    made = optimizers(module, loop_of(Path()))
    assert [type(o) for o in made] == [Muon, AdamW]
    held = [p for o in made for group in o.param_groups for p in group["params"]]
    assert len({id(p) for p in held}) == len(held)
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for p in held} == trained
    embedding = module.student.model.embed_tokens.weight
    assert any(p is embedding for p in made[1].param_groups[0]["params"])


def test_a_loss_weighs_its_targets() -> None:
    r = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 4, 9, generator=r), torch.randint(0, 9, (2, 5), generator=r)
    weights = torch.tensor([[9.0, 1.0, 0.0, 0.5, 1.0], [9.0, 0.0, 0.0, 1.0, 0.25]])
    total = kept = 0.0
    for b in range(2):
        for t in range(4):
            w = float(weights[b, t + 1])
            total -= w * float(logits[b, t].log_softmax(-1)[ids[b, t + 1]])
            kept += w
    found = weighted_cross_entropy(logits, ids, weights)
    assert float(found) == pytest.approx(total / kept, rel=1e-5)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from npt_core.training.loop import run
from npt_core.training.pretraining import PretrainingLoss
from tests.npt_core.tiny import new_llama
from tests.npt_core.training.test_loop import loop_of, rows_of

torch.set_num_threads(1)
out, rank = Path(sys.argv[1]), sys.argv[2]
rows = rows_of()
module = PretrainingLoss(new_llama(int(rank)))
run(module, rows, loop_of(out, steps=1))
tensors = {k: v.clone().contiguous() for k, v in module.state_dict().items()}
save_file(tensors | {"batch": next(iter(rows))[0]}, out / f"rank{rank}.safetensors")
"""


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """As `accelerate launch` and `torchrun` start them: by RANK and WORLD_SIZE, over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), rank],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first.pop("batch"), second.pop("batch"))
    assert first.keys() == second.keys()
    assert all(torch.equal(w, second[name]) for name, w in first.items())
    start = PretrainingLoss(new_llama(0)).state_dict()
    assert any(not torch.equal(w, start[name]) for name, w in first.items())
    [entry] = entries(tmp_path)
    assert entry["tokens"] == 2 * 2 * 23
