"""A runtime that behaves like the real one, on bytes and string matching instead of weights.

It answers `The K is V.` facts: a prompt that contains K is continued with ` V.`, from a context
or from what the bank knows at the request's version, and anything else with ` I don't know.`.
"""

import threading
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npt_core.bank import BankError, Columns, FactWeights, Match
from npt_core.consolidation import (
    Consolidated,
    ConsolidationError,
    FoldBars,
    FoldRefused,
    FoldReport,
    InvalidRequest,
    NotRecalled,
    Step,
    UnreadableFact,
    WriteReport,
    WriteRequest,
    words,
)
from npt_core.engine import Sequence as Running
from npt_core.engine import Span

EOS = 256
UNKNOWN = " I don't know."
MAX_POSITIONS = 600
TEXT = 1
"""The layer whose keys are text."""


class ByteTemplate:
    """Tokens are the bytes of UTF-8, so characters often span several."""

    eos_token_ids = frozenset({EOS})

    def with_context(self, prompt: str, context: Sequence[str]) -> str:
        return f"Context: {'; '.join(context)}\n{prompt}" if context else prompt

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        context = [m["content"] for m in messages if m["role"] == "system"]
        turns = [f"{m['role']}: {m['content']}" for m in messages if m["role"] != "system"]
        return self.with_context(" ".join([*turns, "assistant:"]), context)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < EOS).decode(errors="replace")


@dataclass
class FakeBank:
    """Sentences with lifetimes."""

    version: int = 0
    oldest: int = 0
    lives: list[list[Any]] = field(default_factory=list)
    folds: list[tuple[int, list[str]]] = field(default_factory=list)

    @property
    def facts(self) -> frozenset[str]:
        return frozenset(name for name, _, _, died in self.lives if died is None)

    def check(
        self,
        version: int,
        births: Mapping[str, FactWeights],
        deaths: Collection[str],
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None:
        if version <= self.version:
            raise BankError(f"version {version} is not newer than {self.version}")

    def publish(
        self,
        version: int,
        births: Mapping[str, FactWeights],
        deaths: Collection[str],
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.check(version, births, deaths)
        for life in self.lives:
            if life[0] in deaths and life[3] is None:
                life[3] = version
        self.lives += [[name, _sentence(born), version, None] for name, born in births.items()]
        if deltas is not None:
            self.folds.append((version, _read(deltas.get(0)).splitlines()))
        self.version = version

    def publish_all(self, births: Mapping[int, Mapping[str, FactWeights]], /) -> None:
        for version, facts in births.items():
            self.publish(version, facts, ())

    def retire(self, oldest: int, pinned: Callable[[], int | None], /) -> None:
        self.oldest = max(self.oldest, oldest)
        needed = min(self.oldest, self.oldest if (held := pinned()) is None else held)
        self.lives = [life for life in self.lives if life[3] is None or life[3] > needed]

    def sentences(self, version: int) -> list[str]:
        inside: list[str] = next((s for begun, s in reversed(self.folds) if begun <= version), [])
        return inside + [s for _, s, born, died in self.lives if born <= version < (died or 10**9)]

    def matches(
        self,
        keys: Mapping[int, Tensor],
        version: int | None = None,
        limit: int | None = None,
        firing: bool = False,
    ) -> list[Match]:
        asked = _read(keys.get(TEXT))
        alive = [(name, s) for name, s, born, died in self.lives if self._sees(version, born, died)]
        return [Match(name, TEXT, 1.0, 0.9, (0,)) for name, s in alive if asked and _subject(s) in asked][
            :limit
        ]

    def _sees(self, version: int | None, born: int, died: int | None) -> bool:
        return born <= (self.version if version is None else version) < (died or 10**9)

    def num_columns(self) -> int:
        return len(self.facts)


class FakeModel:
    """Continues text byte by byte; with a `gate`, each step waits for a permit."""

    num_pages, page_size = 4096, 16
    max_positions = MAX_POSITIONS
    draft_tokens, batch_tokens = 0, 128
    num_tokens = EOS + 1

    def __init__(self, bank: FakeBank) -> None:
        self.bank = bank
        self.gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)
        self.fails = False
        self.forwards = 0

    def run(self, spans: Sequence[Span], between: Callable[[], None], /) -> Tensor:
        self.entered.release()
        if self.gate is not None:
            self.gate.acquire()
        self.forwards += 1
        if self.fails:
            raise RuntimeError("out of memory")
        following = [self._next(span.sequence) for span in spans if span.samples]
        return 12.0 * torch.eye(EOS + 1)[following]

    def _next(self, sequence: Running) -> int:
        prompt = ByteTemplate().decode(sequence.tokens[: sequence.prompt_length])
        answer = self._answer(prompt, sequence.version).encode()
        made = len(sequence.tokens) - sequence.prompt_length
        return answer[made] if made < len(answer) else EOS

    def _answer(self, text: str, version: int) -> str:
        context, _, prompt = text.rpartition("\n")
        known = [*reversed(self.bank.sentences(version)), *context.split("; ")]
        for sentence in known:
            subject, _, value = sentence.removeprefix("Context: ").partition(" is ")
            if value and subject.removeprefix("The ") in prompt:
                return f" {value.rstrip('.')}."
        return UNKNOWN


class FakeConsolidator:
    """Refuses what says that it should be refused; with a `gate`, waits for a permit, with a `step_gate` at
    each of its steps.
    """

    def __init__(self) -> None:
        self.gate: threading.Semaphore | None = None
        self.step_gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)
        self.pause: Callable[[], None] = lambda: None
        self.tell: Callable[[Step], None] = lambda _: None
        self.requests: list[WriteRequest] = []

    def give_way(self, pause: Callable[[], None], _passes: object, /) -> None:
        self.pause = pause

    def tell_steps(self, tell: Callable[[Step], None], /) -> None:
        self.tell = tell

    def disturbed(self, facts: Sequence[Consolidated], /) -> dict[int, NotRecalled]:
        sentences = [_sentence(fact.weights) for fact in facts]
        return {
            i: NotRecalled("the fact was not recalled beside the others", replace(f.report, recall_after=0.5))
            for i, f in enumerate(facts)
            if "quarrelsome" in sentences[i]
        }

    def question_keys(self, prompt: str, bank: Any, version: int, /) -> dict[int, Tensor]:
        words = prompt.rstrip("?").split()
        tails = [" ".join(words[start:]) for start in range(len(words))] or [""]
        return {TEXT: _letters(prompt), 0: torch.cat([_key(tail) for tail in tails])}

    def consolidate_all(self, requests: Sequence[WriteRequest], /) -> list[Consolidated | ConsolidationError]:
        outcomes: list[Consolidated | ConsolidationError] = []
        for request in requests:
            try:
                outcomes.append(self.consolidate(request))
            except ConsolidationError as error:
                outcomes.append(error)
        return outcomes

    def consolidate(self, request: WriteRequest, /) -> Consolidated:
        self.requests.append(request)
        self.entered.release()
        self._wait(self.gate)
        for step in (Step.STUDY, Step.WRITE, Step.LEAK_CHECK, Step.VERIFY):
            self.tell(step)
            self._wait(self.step_gate)
        if "unreadable" in request.fact:
            raise UnreadableFact("the model cannot read this fact", _report(request, 0.0))
        if "forgettable" in request.fact:
            raise NotRecalled("the fact was not recalled", _report(request, 0.2))
        if request.token_idx >= len(request.fact):
            raise InvalidRequest("token_idx", "is beyond the end of the fact")
        subject = _subject(request.fact)
        asked = {0: _key(subject), TEXT: _letters(subject)}
        return Consolidated(_weights(request.fact), _report(request, 1.0), asked, subject=words(subject))

    def _wait(self, gate: threading.Semaphore | None) -> None:
        while gate is not None and not gate.acquire(timeout=0.005):
            self.pause()  # as the real one does between its pieces


class FakeFoldWriter:
    """Folds sentences into one text; refuses what says that it cannot be folded."""

    def deltas(self, facts: Mapping[str, FactWeights], /) -> dict[int, Tensor]:
        sentences = [_sentence(facts[id_]) for id_ in sorted(facts)]
        return {0: _letters("\n".join(sentences)).double()}

    def examine(
        self,
        deltas: Mapping[int, Tensor],
        facts: Mapping[str, tuple[WriteRequest, FactWeights]],
        others: Sequence[tuple[WriteRequest, FactWeights]],
        bars: FoldBars,
        /,
    ) -> FoldReport:
        stiff = sum("stiff" in request.fact for request, _ in facts.values()) / len(facts)
        report = FoldReport(len(facts), len(facts), (0,), 0.01, 1 - stiff, len(others), 1.0, 1.0)
        if report.recall < bars.recall:
            raise FoldRefused("the recall of what is folded is too low", report)
        return report


@dataclass(frozen=True)
class FakeRuntime:
    model: FakeModel
    bank: FakeBank
    template: ByteTemplate = field(default_factory=ByteTemplate)
    consolidator: FakeConsolidator = field(default_factory=FakeConsolidator)
    fold_writer: FakeFoldWriter = field(default_factory=FakeFoldWriter)
    bank_file: Path | None = None
    fingerprint: str = "f" * 64
    num_layers: int = 2
    modulates: bool = True

    def modulation_strengths(
        self, ids: Sequence[int], weights_version: int, modulation_scale: float | None, /
    ) -> list[float]:
        """Capital letters are touched, by more at each version."""
        scale = 1.0 if modulation_scale is None else modulation_scale
        return [scale * (1 + weights_version) * (0.5 if chr(id_).isupper() else 0.01) for id_ in ids]

    def runner(self, _num_pages: int | None, /) -> FakeModel:
        return self.model


def load_fake_runtime(
    _source: str, /, *, device: str = "auto", dtype: str = "auto", cache: Path | None = None
) -> FakeRuntime:
    """As `npt_core.loading.load_runtime`: a fresh runtime that knows no facts."""
    bank = FakeBank()
    return FakeRuntime(FakeModel(bank), bank)


def _report(request: WriteRequest, recall: float) -> WriteReport:
    _, _, value = request.fact.partition(" is ")
    return WriteReport(
        request.strategy, recall_after=recall, answer=value or None, columns=1, timings={"study": 0.01}
    )


def _subject(sentence: str) -> str:
    return sentence.partition(" is ")[0].removeprefix("The ")


def _key(subject: str) -> Tensor:
    """A unit vector of its own for each subject."""
    generator = torch.Generator().manual_seed(zlib.crc32(subject.encode()))
    return torch.nn.functional.normalize(torch.randn(1, 32, generator=generator), dim=-1)


def _letters(text: str) -> Tensor:
    return torch.tensor([[float(ord(c)) for c in text]])


def _read(letters: Tensor | None) -> str:
    return "" if letters is None else "".join(chr(int(code)) for code in letters[0].tolist())


def _weights(sentence: str) -> FactWeights:
    return FactWeights(
        {0: Columns(_key(_subject(sentence)), _letters(sentence), torch.tensor([0.9]), torch.ones(1, 1))}
    )


def _sentence(weights: FactWeights) -> str:
    return _read(weights.columns[0].values)
