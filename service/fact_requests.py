"""From a validated body to a command for the writer."""

from collections.abc import Mapping, Sequence
from typing import Any

from npt_core.consolidation import FoldBars, Question, WriteRequest
from service.commands import AddFacts, FoldFacts, InvalidField, NewFact
from service.ledger import IdempotencyKey, timestamp
from service.ledger.chain import digest
from service.schemas.facts import FactContent, Strategy
from service.schemas.versions import FoldIn


def add_command(
    asked: Sequence[FactContent],
    num_layers: int,
    actor: str,
    key: str | None = None,
    if_match: int | None = None,
    batch: bool = False,
) -> AddFacts:
    """What `asked` means for a model of `num_layers` layers.

    Raises:
        InvalidField: a layer that the model does not have, or a field that the strategy does not read.
    """
    facts = tuple(_new_fact(fact, num_layers, f"facts.{i}." if batch else "") for i, fact in enumerate(asked))
    documents = [fact.document for fact in facts]
    identity = None if key is None else IdempotencyKey(key, digest(documents))
    return AddFacts(facts, key=identity, if_match=if_match, actor=actor)


def _new_fact(asked: FactContent, num_layers: int, prefix: str) -> NewFact:
    try:
        _check_layers(asked.layers, num_layers)
        _check_strategy(asked)
    except InvalidField as error:
        raise InvalidField(prefix + error.field, error.reason) from None
    document = asked.model_dump(mode="json", include=set(FactContent.model_fields))
    expires_at = None if asked.expires_at is None else timestamp(asked.expires_at)
    return NewFact(_write_request(asked), document, asked.on_conflict, expires_at)


def _check_layers(layers: list[int] | None, num_layers: int) -> None:
    beyond = [layer for layer in layers or () if layer >= num_layers]
    if beyond:
        raise InvalidField("layers", f"{beyond[0]} is not below {num_layers}, the number of layers")


def _check_strategy(asked: FactContent) -> None:
    if asked.strategy is Strategy.MODULATION:
        return
    for field in ("preset", "token_idx"):
        if getattr(asked, field) != FactContent.model_fields[field].default:
            raise InvalidField(field, f"is for the strategy modulation, not for {asked.strategy}")


def _write_request(asked: FactContent) -> WriteRequest:
    # What is absent is left to the consolidator: its defaults depend on strategy and preset.
    optional: dict[str, Any] = {
        "alpha": asked.alpha,
        "layers": None if asked.layers is None else tuple(sorted(asked.layers)),
        "preset": None if asked.preset is None else asked.preset.value,
    }
    questions = tuple(Question(entry.question, entry.answer) for entry in asked.questions)
    given = {name: value for name, value in optional.items() if value is not None}
    return WriteRequest(asked.fact, questions, asked.strategy.value, token_idx=asked.token_idx, **given)


def study_request(document: Mapping[str, Any]) -> WriteRequest:
    """What is needed to ask about a stored fact: its sentence and the questions that came with it."""
    questions = tuple(Question(entry["question"], entry["answer"]) for entry in document["questions"])
    return WriteRequest(document["fact"], questions)


def fold_command(asked: FoldIn, actor: str, key: str | None = None, if_match: int | None = None) -> FoldFacts:
    """What `asked` means for the writer."""
    identity = None if key is None else IdempotencyKey(key, digest(asked.model_dump(mode="json")))
    bars = FoldBars(asked.min_recall, asked.min_locality, asked.max_drift)
    facts = None if asked.facts is None else tuple(asked.facts)
    return FoldFacts(facts, bars, key=identity, if_match=if_match, actor=actor)
