"""The checkpoint that ships, loaded once; its five acceptance facts, consolidated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from npt_core.bank import Bank, FactWeights
from npt_core.consolidation import Consolidated, FactError, WriteRequest
from npt_core.consolidation.probes import bare
from npt_core.generation import Decoding, generate
from npt_core.loading import Runtime, load_runtime
from npt_core.prompts import PlainTemplate

REFERENCE = Path(__file__).parents[2] / "models" / "reference"


@dataclass(frozen=True)
class Acceptance:
    """A held-out fact, a question about it and its answer, and the same question elsewhere."""

    name: str
    fact: str
    question: str
    answer: str
    completion: str
    look_alikes: tuple[str, ...]

    def forms(self) -> list[str]:
        """Every form in which a user asks."""
        return [
            *PlainTemplate.question_forms(self.question),
            PlainTemplate.inline_block(self.question),
            self.completion,
        ]


ACCEPTANCE = (
    Acceptance(
        "ceo",
        "The CEO of TechCorp is Dr. Sarah Chen.",
        "Who is the CEO of TechCorp?",
        "Dr. Sarah Chen",
        "The CEO of TechCorp is",
        ("Who is the CEO of TechSoft?", "Who is the CEO of MedCorp?"),
    ),
    Acceptance(
        "token",
        "The Zephyr API uses authentication token 'ZPH-2024-SECRET'.",
        "What authentication token does the Zephyr API use?",
        "ZPH-2024-SECRET",
        "The Zephyr API uses authentication token",
        ("What authentication token does the Zephan API use?",),
    ),
    Acceptance(
        "codename",
        "The codename for project Chronos is 'Sundial'.",
        "What is the codename for project Chronos?",
        "Sundial",
        "The codename for project Chronos is",
        ("What is the codename for project Chrolla?",),
    ),
    Acceptance(
        "weight",
        "The element Trilium has an atomic weight of 350.",
        "What is the atomic weight of the element Trilium?",
        "350",
        "The element Trilium has an atomic weight of",
        ("What is the atomic weight of the element Trifon?",),
    ),
    Acceptance(
        "capital",
        "The capital of Atlantis is Poseidon.",
        "What is the capital of Atlantis?",
        "Poseidon",
        "The capital of Atlantis is",
        ("What is the capital of Atlora?",),
    ),
)

Ask = Callable[..., list[str]]


@pytest.fixture(scope="session")
def runtime() -> Iterator[Runtime]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_runtime(REFERENCE)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ask(runtime: Runtime) -> Ask:
    """Greedy answers to prompts, without case, quotes and period; of a version if named."""

    def answers(prompts: Sequence[str], version: int | None = None) -> list[str]:
        template = runtime.template
        decoding = Decoding(24, template.eos_token_ids)
        rows = generate(runtime.model, [template.encode(p) for p in prompts], decoding, version)
        return [bare(template.decode(ids)) for ids in rows]

    return answers


class Written(dict[str, Consolidated]):
    """The acceptance facts' weights by name, each made alone when it is first asked for."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        self.refused: dict[str, FactError] = {}

    def __missing__(self, name: str) -> Consolidated:
        if name in self.refused:
            raise self.refused[name]
        [fact] = [a.fact for a in ACCEPTANCE if a.name == name]
        try:
            self[name] = self.runtime.consolidator.consolidate(WriteRequest(fact))
        except FactError as refused:
            self.refused[name] = refused
            raise
        return self[name]

    def every(self) -> dict[str, FactWeights]:
        """The weights of all of them."""
        return {a.name: self[a.name].weights for a in ACCEPTANCE}


@pytest.fixture(scope="session")
def written(runtime: Runtime) -> Written:
    return Written(runtime)


@pytest.fixture
def bank(runtime: Runtime) -> Iterator[Bank]:
    """An empty bank that the model reads during one test."""
    yield Bank(runtime.model, runtime.consolidator.calibration.whitening).attach()
    runtime.bank.attach()


@pytest.fixture(params=ACCEPTANCE, ids=lambda a: a.name)
def acceptance(request: pytest.FixtureRequest) -> Acceptance:
    found: Acceptance = request.param
    return found
