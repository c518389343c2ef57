from __future__ import annotations

import pytest
import torch

from npt_core.bank import Bank
from npt_core.consolidation.states import plastic, private_copy
from npt_core.evaluation.drift import HeldOutText
from npt_core.evaluation.speaker import Speaker, combined, edited, logits
from npt_core.generation import right_padded
from tests.npt_core.evaluation.bench import LAYER, tiny_runtime

PROMPTS = ["Who is the mayor of Vell?", "What is it?", "The capital of Borduria is"]


def test_an_edit_leaves_the_shared_model_alone_and_ends_exactly() -> None:
    model = tiny_runtime().model
    twin, ids = private_copy(model), right_padded([[1, 5, 9, 7]])
    before = logits(model, ids)
    delta = torch.ones_like(twin.model.layers[LAYER].mlp.down_proj.weight)
    with edited(twin, {(LAYER, "down_proj"): delta}):
        assert not torch.equal(logits(twin, ids), before)
        assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(twin, ids), before)
    assert twin.model.layers[LAYER].mlp.down_proj.weight is (model.model.layers[LAYER].mlp.down_proj.weight)


def test_an_edit_ends_when_its_block_fails() -> None:
    twin = tiny_runtime().model
    weight = twin.model.layers[0].mlp.gate_proj.weight
    with pytest.raises(KeyError), edited(twin, {(0, "gate_proj"): torch.ones_like(weight)}):
        raise KeyError
    assert twin.model.layers[0].mlp.gate_proj.weight is weight


def test_edits_of_one_matrix_add_up() -> None:
    one, two = torch.ones(2, 2), torch.eye(2)
    total = combined({(0, "down_proj"): one}, {(0, "down_proj"): two, (1, "down_proj"): two})
    assert torch.equal(total[0, "down_proj"], one + two)
    assert torch.equal(total[1, "down_proj"], two)


def test_each_prompt_may_have_its_own_version() -> None:
    runtime = tiny_runtime()
    speaker = Speaker(runtime.model, runtime.template, batch=2, max_new_tokens=4)
    bank = Bank(runtime.model, runtime.consolidator.calibration.whitening)
    for version, prompt in enumerate(PROMPTS, start=1):
        bank.publish(version, {prompt: _weights(runtime, prompt)}, bank.facts)
    with plastic(runtime.model, bank.layers):
        versions = [1, 2, 3]
        mixed = speaker.answers(PROMPTS, versions)
        alone = [speaker.answers([p], v)[0] for p, v in zip(PROMPTS, versions, strict=True)]
        base = speaker.answers(PROMPTS, 0)
    assert mixed == alone
    assert mixed != base


def test_text_that_no_column_touches_has_not_moved() -> None:
    runtime = tiny_runtime()
    whitening = runtime.consolidator.calibration.whitening
    template = runtime.template
    rows = [template.encode(text) for text in (PROMPTS[0], "Q Z 9 # @", "1 2 3 4 5 6 7")]
    text = HeldOutText(private_copy(runtime.model), rows, whitening)
    weights = _weights(runtime, PROMPTS[0])
    touched = text.touched(weights)
    assert 0 in touched
    bank = Bank(runtime.model, whitening)
    bank.publish(1, {"fact": weights})
    with plastic(runtime.model, bank.layers):
        whole = text.change(runtime.model)
        part = text.change(runtime.model, only=touched)
        rest = text.change(runtime.model, only=set(range(3)) - touched)
    assert whole == pytest.approx(part)
    assert rest == {"kl": 0.0, "perplexity": 0.0}


def test_kl_and_perplexity_follow_their_definitions() -> None:
    runtime = tiny_runtime()
    base = private_copy(runtime.model)
    row = runtime.template.encode("The capital of Borduria is Szohod.")
    text = HeldOutText(base, [row], {})
    delta = torch.randn(runtime.model.model.layers[LAYER].mlp.down_proj.weight.shape) * 0.3
    with edited(runtime.model, {(LAYER, "down_proj"): delta}):
        found = text.change(runtime.model)
        new = torch.log_softmax(logits(runtime.model, torch.tensor([row]))[0, :-1].double(), -1)
    old = torch.log_softmax(logits(base, torch.tensor([row]))[0, :-1].double(), -1)
    loss = [-scores.gather(1, torch.tensor(row[1:])[:, None]).mean() for scores in (old, new)]
    assert found["kl"] == pytest.approx(float((old.exp() * (old - new)).sum(-1).mean()), rel=1e-4)
    assert found["perplexity"] == pytest.approx(float((loss[1] - loss[0]).exp() - 1), rel=1e-4)
    assert text.base_perplexity() == pytest.approx(float(loss[0].exp()), rel=1e-4)


def _weights(runtime, prompt):  # type: ignore[no-untyped-def]
    from npt_core.consolidation import WriteRequest

    return runtime.consolidator.consolidate(WriteRequest(prompt)).weights
