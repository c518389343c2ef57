"""The /facts resource."""

from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StringConstraints

from service.commands import Added, OnConflict, Rehearsed
from service.ledger import FactState, StoredFact
from service.ledger.chain import canonical
from service.schemas.common import AS_PATTERN_OF_STRIPPED, IS_PRINTABLE, In, Out, described

MAX_FACT = 4000
"""Characters: a sentence or a paragraph. Longer texts are several facts."""
MAX_QUESTIONS = 64
MAX_BATCH = 100
"""Facts of one version: they are studied together, and all wait for the last."""
MAX_QUESTION = 1000
MAX_METADATA = 8192
MAX_LAYERS = 1024

_Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUESTION),
    IS_PRINTABLE,
    AS_PATTERN_OF_STRIPPED,
]
_Sentence = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_FACT),
    IS_PRINTABLE,
    AS_PATTERN_OF_STRIPPED,
]


class Strategy(StrEnum):
    """How a fact is written."""

    BANK = "bank"
    MODULATION = "modulation"
    RIDGE = "ridge"


class Preset(StrEnum):
    """Named settings of the modulation strategy."""

    FACTUAL_RECALL = "factual_recall"
    REASONING = "reasoning"
    CREATIVE = "creative"


class Question(In):
    """A question that the fact answers, and its answer."""

    question: _Line = Field(examples=["Who is the CEO of TechCorp?"])
    answer: _Line = Field(examples=["Dr. Sarah Chen"])


def _distinct(layers: list[int]) -> list[int]:
    if len(set(layers)) != len(layers):
        raise ValueError("must not name a layer twice")
    return layers


_Layers = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1, max_length=MAX_LAYERS),
    AfterValidator(_distinct),
    described(uniqueItems=True),
]


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        text = canonical(metadata, allow_nan=False)
    except ValueError as error:
        raise ValueError("must not contain NaN or an infinite number, which JSON does not have") from error
    if len(text) > MAX_METADATA:
        raise ValueError(f"must not exceed {MAX_METADATA} characters as JSON")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must not contain half a surrogate pair") from error
    return metadata


def _text(value: object) -> object:
    if not isinstance(value, str | None):
        raise ValueError("must be text in RFC 3339, such as 2030-01-01T00:00:00Z")
    return value


def _with_offset(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("must have an offset, such as 2030-01-01T00:00:00Z")
    return moment


def _to_come(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("must lie in the future")
    return moment


class FactContent(In):
    """What a fact is and how it is written."""

    fact: _Sentence = Field(examples=["The CEO of TechCorp is Dr. Sarah Chen."])
    questions: list[Question] = Field(
        default=[], max_length=MAX_QUESTIONS, description="in addition to the model's own"
    )
    strategy: Strategy = Field(
        Strategy.BANK,
        strict=False,
        description="bank and ridge refuse what is not recalled; modulation, the original rule, "
        "writes as asked, and its report says what that did",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="strength of the write; absent: the preset's, or 1",
    )
    layers: _Layers | None = Field(None, description="absent: those the checkpoint names")
    token_idx: int = Field(
        -1, ge=-(2**31), lt=2**31, description="modulation alone: the token to consolidate"
    )
    preset: Preset | None = Field(None, strict=False, description="modulation alone")
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_small)] = Field(
        default={}, description="kept with the fact, for the caller"
    )
    on_conflict: OnConflict = Field(
        OnConflict.SUPERSEDE,
        strict=False,
        description="what becomes of a stored fact that answers the same question otherwise",
    )
    expires_at: Annotated[
        Annotated[datetime, AfterValidator(_with_offset), AfterValidator(_to_come)] | None,
        BeforeValidator(_text),
    ] = Field(
        None,
        strict=False,
        description="when the fact is retracted by itself, with its offset",
        examples=["2030-01-01T00:00:00Z"],
    )


class FactIn(FactContent):
    """A fact to learn."""

    dry_run: bool = Field(False, description="measure everything, write nothing")


class BatchIn(In):
    """Facts to learn, all of them in one version or none."""

    facts: list[FactContent] = Field(min_length=1, max_length=MAX_BATCH)
    dry_run: bool = Field(False, description="measure everything, write nothing")


class FactOut(Out):
    """A fact and what was measured when it was written."""

    id: str
    weights_version: int = Field(description="the version this answer speaks of")
    fact: str
    state: FactState
    born: int = Field(description="the version that first knew it")
    died: int | None = Field(description="the version that retracted it")
    created_at: str
    actor: str = Field(description="who taught it: id of the API key; anonymous, system or cli")
    expires_at: str | None = Field(description="when it is retracted by itself")
    folded: bool = Field(description="whether it is in the base weights of the newest version")
    request: dict[str, Any] = Field(description="the rest of the request, as it was given")
    report: dict[str, Any]

    @classmethod
    def of(cls, stored: StoredFact, weights_version: int, folded: Collection[str], actor: str) -> "FactOut":
        """From what the ledger keeps, the ids of what is folded, and who taught it."""
        fact = stored.fact
        request = dict(fact.request)
        return cls(
            id=fact.id,
            weights_version=weights_version,
            fact=request.pop("fact"),
            state=stored.state,
            born=fact.version,
            died=stored.died,
            created_at=fact.created_at,
            actor=actor,
            expires_at=fact.expires_at,
            folded=fact.id in folded,
            request=request,
            report=dict(fact.report),
        )


class FactCreated(Out):
    """The fact is in the weights from `weights_version` on."""

    id: str
    weights_version: int
    report: dict[str, Any]
    superseded: list[str] = Field(description="facts that said otherwise and are not known any more")

    @classmethod
    def of(cls, added: Added) -> "FactCreated":
        """What the writer did."""
        (fact,) = added.facts
        return cls(
            id=fact.id,
            weights_version=fact.version,
            report=dict(fact.report),
            superseded=list(added.superseded),
        )


class FactWritten(Out):
    """One fact of a batch."""

    id: str
    report: dict[str, Any]


class BatchCreated(Out):
    """All facts are in the weights from `weights_version` on, in the order of the request."""

    weights_version: int
    facts: list[FactWritten]
    superseded: list[str] = Field(description="facts that said otherwise and are not known any more")

    @classmethod
    def of(cls, added: Added) -> "BatchCreated":
        """What the writer did."""
        return cls(
            weights_version=added.version.version,
            facts=[FactWritten(id=fact.id, report=dict(fact.report)) for fact in added.facts],
            superseded=list(added.superseded),
        )


class BatchRehearsed(Out):
    """A dry run: nothing was written."""

    dry_run: bool = True
    weights_version: int
    reports: list[dict[str, Any]]
    conflicts: list[str] = Field(description="stored facts that say otherwise")

    @classmethod
    def of(cls, rehearsed: Rehearsed) -> "BatchRehearsed":
        """What the writer measured."""
        return cls(
            weights_version=rehearsed.weights_version,
            reports=[dict(report) for report in rehearsed.reports],
            conflicts=list(rehearsed.conflicts),
        )


class FactMatch(Out):
    """How near a stored fact comes to answering a prompt."""

    id: str
    fact: str
    cosine: float = Field(description="of the prompt's key and the fact's nearest")
    threshold: float = Field(description="above which the fact answers")
    fires: bool = Field(description="whether it passes; of several, the first answers")
    layer: int
    folded: bool = Field(
        description="it answers from the base weights; the numbers are those of the columns it had before"
    )


class FactsFound(Out):
    """Stored facts, those that would answer first."""

    items: list[FactMatch]
    weights_version: int


class FactRehearsed(Out):
    """A dry run: nothing was written."""

    dry_run: bool = True
    weights_version: int
    report: dict[str, Any]
    conflicts: list[str] = Field(description="stored facts that say otherwise")

    @classmethod
    def of(cls, rehearsed: Rehearsed) -> "FactRehearsed":
        """What the writer measured."""
        (report,) = rehearsed.reports
        return cls(
            weights_version=rehearsed.weights_version,
            report=dict(report),
            conflicts=list(rehearsed.conflicts),
        )


class FactRetracted(Out):
    """The fact is not known from `weights_version` on."""

    id: str
    state: FactState = FactState.RETRACTED
    weights_version: int
