from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from npt_core.bank import Bank, Factors, FactWeights
from npt_core.generation import MIN_SHARED, Decoding, choose, generate, left_padded, right_padded
from npt_core.model import NPTForCausalLM
from tests.npt_core.helpers import by_transformers, mixed_npt

LENGTHS = (3, 11, 1, 7, 7)
NEW = 10


@pytest.fixture
def model(llama: LlamaForCausalLM) -> NPTForCausalLM:
    return mixed_npt(llama)


@pytest.fixture
def prompts() -> list[list[int]]:
    r = torch.Generator().manual_seed(4)
    return [torch.randint(3, 61, (n,), generator=r).tolist() for n in LENGTHS]


def test_greedy_decoding_of_mixed_lengths_equals_transformers(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    wanted = [by_transformers(model, p, NEW, end=2) for p in prompts]
    assert generate(model, prompts, Decoding(NEW, (2,))) == wanted


def test_a_shared_beginning_is_read_once_and_changes_nothing(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    context = list(range(3, 3 + 2 * MIN_SHARED))
    rows = [context + p for p in prompts]
    wanted = [by_transformers(model, row, NEW, end=2) for row in rows]
    shapes: list[torch.Size] = []
    handle = model.register_forward_pre_hook(
        lambda _m, _a, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    assert generate(model, rows, Decoding(NEW, (2,))) == wanted
    handle.remove()
    assert shapes[0] == (1, len(context))
    assert shapes[1] == (len(rows), max(LENGTHS))


def test_a_prompt_that_is_the_beginning_of_all_others_keeps_a_token_to_read(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    context = list(range(3, 3 + 2 * MIN_SHARED))
    rows = [context, *(context + p for p in prompts), context]
    wanted = [by_transformers(model, row, NEW, end=2) for row in rows]
    assert generate(model, rows, Decoding(NEW, (2,))) == wanted


def test_rows_that_end_leave_the_batch_and_change_nothing(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    free = generate(model, prompts, Decoding(NEW, ()))
    end = free[1][3]
    answers = generate(model, prompts, Decoding(NEW, (end,)))
    lengths = {len(a) for a in answers}
    assert len(lengths) > 1, "the rows must end at different times"
    assert answers == [a[: a.index(end)] if end in a else a for a in free]
    assert answers == [by_transformers(model, p, NEW, end) for p in prompts]


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_batch_size_does_not_change_the_answers(
    model: NPTForCausalLM, prompts: list[list[int]], size: int
) -> None:
    wanted = generate(model, prompts, Decoding(NEW, (2,)))
    assert generate(model, prompts, Decoding(NEW, (2,), batch_size=size)) == wanted


def test_sampling_is_a_function_of_the_seed(model: NPTForCausalLM, prompts: list[list[int]]) -> None:
    def sampled(seed: int) -> list[list[int]]:
        return generate(model, prompts, Decoding(NEW, (), temperature=1.0, seed=seed))

    torch.manual_seed(0)
    first = sampled(1)
    torch.manual_seed(99)  # the global generator takes no part
    assert sampled(1) == first
    assert sampled(2) != first


def test_what_a_prompt_draws_does_not_depend_on_the_others(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    decoding, seeds = Decoding(NEW, (), temperature=1.0), [7, 8, 9, 10, 11]
    together = generate(model, prompts, decoding, seeds=seeds)
    alone = [generate(model, [p], decoding, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == alone


def test_what_each_group_begins_with_is_read_once_and_changes_nothing(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    contexts = [list(range(3, 20)), list(range(30, 36)), [50]]
    groups = [0, 1, 0, 1, 2]
    rows = [contexts[g] + p for g, p in zip(groups, prompts, strict=True)]
    wanted = [by_transformers(model, row, NEW, end=2) for row in rows]
    assert generate(model, rows, Decoding(NEW, (2,)), groups=groups) == wanted
    assert generate(model, rows, Decoding(NEW, (2,), batch_size=3), groups=groups) == wanted


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(20_000, 3)
    uniforms = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(3))
    whole = choose(logits, Decoding(1, (), temperature=1.0), uniforms)
    shares = torch.bincount(whole, minlength=3) / len(whole)
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    nucleus = choose(logits, Decoding(1, (), temperature=1.0, top_p=0.7), uniforms)
    shares = torch.bincount(nucleus, minlength=3) / len(nucleus)
    assert shares.tolist() == pytest.approx([0.625, 0.375, 0.0], abs=0.02)


def test_a_nucleus_of_one_token_is_greedy(model: NPTForCausalLM, prompts: list[list[int]]) -> None:
    narrow = Decoding(NEW, (2,), temperature=1.0, top_p=1e-6)
    assert generate(model, prompts, narrow) == generate(model, prompts, Decoding(NEW, (2,)))


def test_each_prompt_may_have_its_own_weights_version(
    model: NPTForCausalLM, prompts: list[list[int]]
) -> None:
    bank = Bank(model, {}).attach()
    r = torch.Generator().manual_seed(8)
    push = Factors(torch.randn(1, 32, generator=r) * 9, torch.randn(1, 48, generator=r))
    bank.publish(1, {"fact": FactWeights(factors={(3, "down_proj"): push})})
    decoding = Decoding(NEW, (2,))
    old, new = (generate(model, prompts, decoding, version) for version in (0, 1))
    assert all(a != b for a, b in zip(old, new, strict=True))
    mixed = [0, 1, 1, 0, 1]
    answers = generate(model, prompts, decoding, mixed)
    assert answers == [new[i] if v else old[i] for i, v in enumerate(mixed)]
    assert generate(model, prompts, decoding) == new


def test_nothing_is_generated_for_no_prompts(model: NPTForCausalLM) -> None:
    assert generate(model, [], Decoding(NEW, (2,))) == []


def test_padding_is_on_the_named_side() -> None:
    ids, mask = left_padded([[5], [6, 7]])
    assert ids.tolist() == [[0, 5], [6, 7]]
    assert mask.tolist() == [[0, 1], [1, 1]]
    assert right_padded([[5], [6, 7]]).tolist() == [[5, 0], [6, 7]]
