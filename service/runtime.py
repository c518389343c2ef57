"""What the service needs of the model side; `npt_core.loading.Runtime` fits these shapes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from npt_core.bank import FactWeights, Match
from npt_core.consolidation import ConsolidationError, FoldBars, FoldReport, Passes, Step, WriteRequest
from npt_core.engine import StepRunner

T = TypeVar("T")


class Template(Protocol):
    """Text at the edge: prompts to token ids and back."""

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    def with_context(self, prompt: str, context: Sequence[str]) -> str: ...

    def chat(self, messages: Sequence[dict[str, str]]) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Weights(Protocol):
    """Everything one fact writes."""

    def to_tensors(self) -> dict[str, Tensor]: ...


class Bank(Protocol):
    """Published facts, by version."""

    @property
    def version(self) -> int: ...

    @property
    def oldest(self) -> int: ...

    @property
    def facts(self) -> frozenset[str]: ...

    def retire(self, oldest: int, pinned: Callable[[], int | None], /) -> None: ...

    def check(
        self,
        version: int,
        births: Mapping[str, Any],
        deaths: Collection[str],
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None: ...

    def publish(
        self,
        version: int,
        births: Mapping[str, Any],
        deaths: Collection[str],
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None: ...

    def publish_all(self, births: Mapping[int, Mapping[str, Any]], /) -> None: ...

    def matches(
        self,
        keys: Mapping[int, Tensor],
        version: int | None = None,
        limit: int | None = None,
        firing: bool = False,
    ) -> Sequence[Match]: ...

    def num_columns(self) -> int: ...


class Report(Protocol):
    """What was measured while a fact was written."""

    @property
    def recall_after(self) -> float: ...

    @property
    def drift(self) -> float: ...

    @property
    def answer(self) -> str | None: ...

    @property
    def timings(self) -> Mapping[str, float]: ...

    def as_dict(self) -> dict[str, Any]: ...


class Consolidated(Protocol):
    """A fact turned into weights, not yet published."""

    @property
    def weights(self) -> FactWeights: ...

    @property
    def asked(self) -> Mapping[int, Tensor]: ...

    @property
    def subject(self) -> frozenset[str]: ...

    @property
    def report(self) -> Report: ...


class Compute(Protocol):
    """Where work with tensors is done: `Engine.execute`, between the steps."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


class Consolidator(Protocol):
    """Turns facts into weights."""

    def consolidate_all(
        self, requests: Sequence[WriteRequest], /
    ) -> Sequence[Consolidated | ConsolidationError]: ...

    def disturbed(self, facts: Sequence[Any], /) -> Mapping[int, ConsolidationError]: ...

    def question_keys(self, prompt: str, bank: Any, version: int, /) -> Mapping[int, Tensor]: ...

    def give_way(self, pause: Callable[[], None], passes: Passes | None, /) -> None: ...

    def tell_steps(self, tell: Callable[[Step], None], /) -> None: ...


class FoldWriter(Protocol):
    """Turns facts into one change of the weights themselves."""

    def deltas(self, facts: Mapping[str, Any], /) -> Mapping[int, Tensor]: ...

    def examine(
        self,
        deltas: Mapping[int, Tensor],
        facts: Mapping[str, tuple[WriteRequest, Any]],
        others: Sequence[tuple[WriteRequest, Any]],
        bars: FoldBars,
        /,
    ) -> FoldReport: ...


class Runtime(Protocol):
    """A loaded checkpoint, ready to answer and to learn."""

    @property
    def template(self) -> Template: ...

    @property
    def bank(self) -> Bank: ...

    @property
    def consolidator(self) -> Consolidator: ...

    @property
    def fold_writer(self) -> FoldWriter: ...

    @property
    def bank_file(self) -> Path | None: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def modulates(self) -> bool: ...

    def modulation_strengths(
        self, ids: Sequence[int], weights_version: int, modulation_scale: float | None, /
    ) -> Sequence[float]: ...

    def runner(self, num_pages: int | None, /) -> StepRunner: ...
