"""Facts that come with a checkpoint: an empty ledger begins with them."""

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from npt_core.bank import BankError, FactWeights
from npt_core.checkpoint import CheckpointError
from service.blobs import Blobs
from service.ledger import SYSTEM, Change, Fact, Ledger, StaleParent, VersionKind, now
from service.runtime import Bank
from service.weights_codec import encode


class DamagedBankFile(CheckpointError):
    """The bank beside the weights cannot be used with them."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} does not hold facts of this checkpoint: {reason}")


def bring_in(path: Path, ledger: Ledger, blobs: Blobs, bank: Bank) -> None:
    """Make the facts in `path` version 1 of an empty ledger; another one has its own history.

    Raises:
        DamagedBankFile: nothing was written.
        StorageError, LedgerError: see `Ledger.commit`.
    """
    if ledger.newest > 0:
        return
    facts, weights = read_bank_file(path)
    try:
        bank.check(1, weights, ())
    except BankError as error:
        raise DamagedBankFile(path, error) from error
    moment = now()
    new = tuple(
        Fact(
            id=fact["id"],
            version=1,
            request=fact["request"],
            report=fact["report"],
            blob=blobs.put(encode(weights[fact["id"]])),
            created_at=moment,
            expires_at=fact["expires_at"],
        )
        for fact in facts
    )
    change = Change(0, VersionKind.FACT, births=tuple(fact.id for fact in new), new_facts=new, actor=SYSTEM)
    with suppress(StaleParent):  # another replica brought them
        ledger.commit(change, lambda: _ensure(new, weights, blobs))


def _ensure(facts: tuple[Fact, ...], weights: dict[str, FactWeights], blobs: Blobs) -> None:
    for fact in facts:
        if fact.blob not in blobs:
            blobs.put(encode(weights[fact.id]))


def read_bank_file(path: Path) -> tuple[list[dict[str, Any]], dict[str, FactWeights]]:
    """The facts as a ledger has them, and their weights by id. Raises DamagedBankFile."""
    try:
        return _read(path)
    except (OSError, SafetensorError, BankError, KeyError, TypeError, ValueError) as error:
        raise DamagedBankFile(path, error) from error


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, FactWeights]]:
    tensors: dict[str, dict[str, Any]] = defaultdict(dict)
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {})["facts"])
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            fact, _, part = name.partition("/")
            tensors[fact][part] = file.get_tensor(name)
    weights = {fact["id"]: FactWeights.from_tensors(tensors.pop(fact["id"])) for fact in facts}
    if tensors:
        raise ValueError(f"tensors of {min(tensors)}, which is no fact of it")
    return facts, weights
