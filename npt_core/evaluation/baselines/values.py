"""Where ROME and MEMIT write, and the value they look for there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.consolidation.states import run
from npt_core.evaluation.baselines.editor import Subject, Taught
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from npt_core.training.corpus import CorpusConfig, documents
from npt_core.training.data import document_ids
from npt_core.training.facts import Fact, world

MOMENT_SEED, MOMENT_DOCUMENTS = 970_002, 150
PREFIXES = 2
CHUNK = 16


@dataclass(frozen=True)
class Search:
    """Gradient descent on the value, with ROME's constants, relative to the value's size."""

    steps: int = 20
    rate: float = 0.3
    kl_weight: float = 0.0625
    decay: float = 0.02
    largest: float = 4.0
    """The change may be this many times as long as the value it changes."""


@dataclass(frozen=True)
class Place:
    """One prompt with the answer behind it: `ids`, the subject's last token, the answer's tokens.

    A place without an answer (`answer` 0) is the prompt on which the model must not change.
    """

    ids: list[int]
    position: int
    answer: int


@dataclass(frozen=True)
class Found:
    """A value `[d]` at the subject's last token, and its difference from the present one."""

    value: Tensor
    change: Tensor


def places(subject: Subject, taught: Taught) -> list[Place]:
    """The prompt alone and after other sentences, and "{subject} is a" as the last place."""
    template, fact = subject.template, taught.fact
    prompt = _prompt(taught)
    r = Random(f"evaluation/prefixes/{taught.number}")
    lead = [f.statement(f.relation.statements[0]) for f in r.sample(world(), PREFIXES)]
    found = [
        _place(template, "", prompt, fact),
        *(_place(template, f"{s}\n", prompt, fact) for s in lead),
    ]
    essence = template.encode(template.with_context(f"{fact.subject} is a", []))
    return [*found, Place(essence, _subject_end(template, "", f"{fact.subject} is a", fact), 0)]


def _prompt(taught: Taught) -> str:
    """The statement cut before its object, or another training wording that ends with one."""
    fact = taught.fact
    wordings = fact.relation.wordings("statements", "train")
    own = [w for w in wordings if fact.statement(w) == taught.statement]
    cut = [fact.completion(w) for w in (*own, *wordings)]
    asked = fact.question(fact.relation.questions[0])
    return next((prompt for prompt in cut if prompt is not None), asked)


def _place(template: PromptTemplate, lead: str, prompt: str, fact: Fact) -> Place:
    ids = [
        *template.encode(template.answered(lead + prompt, [], f"{fact.object}.")),
        template.eos_token_ids[0],
    ]
    start = _common(ids, template.encode(template.with_context(lead + prompt, [])))
    return Place(ids, _subject_end(template, lead, prompt, fact), len(ids) - start)


def _subject_end(template: PromptTemplate, lead: str, prompt: str, fact: Fact) -> int:
    """The index of the subject's last token."""
    at = prompt.casefold().find(fact.subject.casefold())
    stop = len(lead) + (at + len(fact.subject) if at >= 0 else len(prompt))
    whole = template.encode(template.with_context(lead + prompt, []))
    cut = template.encode(template.with_context((lead + prompt)[:stop], []))
    return max(0, _common(whole, cut) - 1)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def key_of(model: NPTForCausalLM, where: Sequence[Place], layer: int) -> Tensor:
    """The mean activation `[d_ffn]` at the subject's last token, over the prompts."""
    prompts = where[:-1]
    return run(model, [p.ids for p in prompts], [layer], [[p.position] for p in prompts]).keys[layer].mean(0)


def hidden_at(model: NPTForCausalLM, where: Sequence[Place], layer: int) -> Tensor:
    """The output `[d]` of `layer` at the subject's last token of the plain prompt."""
    return run(model, [where[0].ids], [layer], [[where[0].position]]).outputs[layer][0]


def moments(subject: Subject, layers: Sequence[int]) -> dict[int, Tensor]:
    """By layer `E[k k^T]` `[d_ffn, d_ffn]` of ordinary text, in float64, made invertible."""
    missing = [layer for layer in layers if layer not in subject.moments]
    if missing:
        subject.moments.update(_measured(subject, missing))
    return subject.moments


def _measured(subject: Subject, layers: Sequence[int]) -> dict[int, Tensor]:
    limit = int(subject.model.config.max_position_embeddings) // 2
    template = subject.template
    made = islice(documents(MOMENT_SEED, CorpusConfig()), MOMENT_DOCUMENTS)
    rows = sorted((document_ids(template, d)[:limit] for d in made), key=len)
    totals: dict[int, Tensor] = {}
    for chunk in (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)):
        states = run(subject.model, chunk, layers)
        for layer in layers:
            z = states.keys[layer].double()
            totals[layer] = totals.get(layer, torch.zeros(())) + z.T @ z
    tokens = sum(map(len, rows))
    return {
        layer: total / tokens + 1e-4 * total.diagonal().mean() / tokens * torch.eye(len(total)).double()
        for layer, total in totals.items()
    }


@contextmanager
def _added(model: NPTForCausalLM, layer: int, where: Sequence[Place], change: Tensor) -> Iterator[Tensor]:
    """Within the block the MLP of `layer` adds `change`; yields its own first output."""
    rows, times = torch.arange(len(where)), torch.tensor([p.position for p in where])
    seen = torch.zeros(change.shape)

    def hook(_module: object, _inputs: object, output: Tensor) -> Tensor:
        seen.copy_(output.detach()[0, where[0].position])
        moved = output.clone()
        moved[rows, times] = moved[rows, times] + change
        return moved

    handle = model.model.layers[layer].mlp.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def target(model: NPTForCausalLM, where: Sequence[Place], layer: int, search: Search) -> Found:
    """The value after which the prompts go on with the object, by Adam on the change."""
    ids = right_padded([p.ids for p in where])
    change = torch.zeros(model.config.hidden_size, requires_grad=True)
    with _added(model, layer, where, change) as value:
        with torch.no_grad():
            scores = model(input_ids=ids, use_cache=False).logits[-1, len(where[-1].ids) - 1]
        before, size = torch.log_softmax(scores.float(), -1), float(value.norm())
        optimizer = torch.optim.Adam([change], lr=search.rate * size / change.numel() ** 0.5)
        for _ in range(search.steps):
            scores = model(input_ids=ids, use_cache=False).logits.float()
            loss = _surprise(scores, where) + search.decay * change.square().sum() / size**2
            after = torch.log_softmax(scores[-1, len(where[-1].ids) - 1], -1)
            loss = loss + search.kl_weight * (before.exp() * (before - after)).sum()
            (change.grad,) = torch.autograd.grad(loss, [change])
            optimizer.step()
            with torch.no_grad():
                change *= min(1.0, search.largest * size / max(float(change.norm()), 1e-9))
    found = change.detach()
    return Found(value + found, found)


def _surprise(scores: Tensor, where: Sequence[Place]) -> Tensor:
    """Mean negative log-likelihood of the answers, per answer token."""
    losses = []
    for row, place in enumerate(where[:-1]):
        first = len(place.ids) - place.answer
        wanted = torch.tensor(place.ids[first:])
        losses.append(F.cross_entropy(scores[row, first - 1 : len(place.ids) - 1], wanted))
    return torch.stack(losses).mean()
