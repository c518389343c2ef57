"""From a validated body to a command for the writer."""

from typing import Any

from npt_core.consolidation import Question, WriteRequest
from service.commands import AddFact, InvalidField
from service.ledger import IdempotencyKey
from service.ledger.chain import digest
from service.schemas.facts import FactIn, Strategy


def add_command(
    asked: FactIn, num_layers: int, key: str | None = None, if_match: int | None = None
) -> AddFact:
    """What `asked` means for a model of `num_layers` layers.

    Raises:
        InvalidField: a layer that the model does not have, or a field that the strategy does not read.
    """
    _check_layers(asked.layers, num_layers)
    _check_strategy(asked)
    document = asked.model_dump(mode="json", exclude={"dry_run"})
    identity = None if key is None else IdempotencyKey(key, digest(document))
    return AddFact(_write_request(asked), document, identity, if_match)


def _check_layers(layers: list[int] | None, num_layers: int) -> None:
    beyond = [layer for layer in layers or () if layer >= num_layers]
    if beyond:
        raise InvalidField("layers", f"{beyond[0]} is not below {num_layers}, the number of layers")


def _check_strategy(asked: FactIn) -> None:
    if asked.strategy is Strategy.MODULATION:
        return
    for field in ("preset", "token_idx"):
        if getattr(asked, field) != FactIn.model_fields[field].default:
            raise InvalidField(field, f"is for the strategy modulation, not for {asked.strategy}")


def _write_request(asked: FactIn) -> WriteRequest:
    # What is absent is left to the consolidator: its defaults depend on strategy and preset.
    optional: dict[str, Any] = {
        "alpha": asked.alpha,
        "layers": None if asked.layers is None else tuple(sorted(asked.layers)),
        "preset": None if asked.preset is None else asked.preset.value,
    }
    questions = tuple(Question(entry.question, entry.answer) for entry in asked.questions)
    given = {name: value for name, value in optional.items() if value is not None}
    return WriteRequest(asked.fact, questions, asked.strategy.value, token_idx=asked.token_idx, **given)
