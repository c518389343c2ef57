"""From a validated body to a command for the writer."""

from typing import Any

from npt_core.consolidation import WriteRequest
from service.commands import AddFact, InvalidField
from service.ledger import IdempotencyKey
from service.ledger.chain import digest
from service.schemas.facts import FactIn


def add_command(
    asked: FactIn, num_layers: int, key: str | None = None, if_match: int | None = None
) -> AddFact:
    """What `asked` means for a model of `num_layers` layers.

    Raises:
        InvalidField: a layer that the model does not have.
    """
    _check_layers(asked.layers, num_layers)
    document = asked.model_dump(mode="json", exclude={"dry_run"})
    identity = None if key is None else IdempotencyKey(key, digest(document))
    return AddFact(_write_request(asked), document, identity, if_match)


def _check_layers(layers: list[int] | None, num_layers: int) -> None:
    beyond = [layer for layer in layers or () if layer >= num_layers]
    if beyond:
        raise InvalidField("layers", f"{beyond[0]} is not below {num_layers}, the number of layers")


def _write_request(asked: FactIn) -> WriteRequest:
    # What is absent is left to the consolidator: its defaults depend on strategy and preset.
    given: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("alpha", "layers", "token_idx", "preset")
        if name in asked.model_fields_set and getattr(asked, name) is not None
    }
    questions = tuple((entry.question, entry.answer) for entry in asked.questions)
    return WriteRequest(asked.fact, questions=questions, strategy=asked.strategy.value, **given)
