"""Which facts are folded into the base weights, and what that would do."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from npt_core.bank import FactWeights, Fold
from npt_core.consolidation import FoldReport, WriteRequest
from service.commands import FactAlreadyRetracted, FactNotFound, FoldFacts, InvalidField
from service.fact_requests import study_request
from service.ledger import FactState, Ledger
from service.replica import Replica
from service.runtime import Bank, Compute, FoldWriter

OTHERS = 8
"""Facts beside a fold, the nearest ones, that are asked about before it is made: each takes a third of a
second."""


class Folds:
    """Makes folds and writes nothing; called by the one who makes a version. `compute` is where tensors are
    computed.
    """

    def __init__(self, ledger: Ledger, replica: Replica, bank: Bank, writer: FoldWriter) -> None:
        self._ledger = ledger
        self._replica = replica
        self._bank = bank
        self._writer = writer

    def of(self, ids: Collection[str], compute: Compute) -> Fold:
        """The fold of these facts: the same for the same facts."""
        weights = self._replica.load_all(ids)
        return Fold(compute(lambda: self._writer.deltas(weights)), tuple(sorted(ids)))

    def examined(self, command: FoldFacts, version: int, compute: Compute) -> tuple[Fold, FoldReport]:
        """What the command asks for, on top of what is folded, and what was measured of it.

        Raises:
            FactNotFound, FactAlreadyRetracted, InvalidField: a fact that cannot be folded.
            FoldRefused: a bar is missed.
        """
        live = self._ledger.live(version)
        chosen = self._foldable(command.facts, live) | self._replica.folded
        if chosen == self._replica.folded:
            raise InvalidField("facts", "name nothing that is not folded already")
        fold = self.of(chosen, compute)
        facts = self._with_requests(chosen)
        taught = [weights for _, weights in facts.values()]
        others = self._nearest(taught, live - chosen, compute)[:OTHERS]
        beside = self._with_requests(others)
        report = compute(
            lambda: self._writer.examine(
                fold.deltas,
                {id_: facts[id_] for id_ in fold.facts},
                [beside[id_] for id_ in others],
                command.bars,
            )
        )
        return fold, report

    def _foldable(self, asked: Sequence[str] | None, live: Collection[str]) -> frozenset[str]:
        if asked is None:
            facts = self._ledger.facts_by_id(live)
            return frozenset(id_ for id_, fact in facts.items() if fact.report["columns"])
        for place, fact_id in enumerate(asked):
            stored = self._ledger.fact(fact_id)
            if stored is None:
                raise FactNotFound(fact_id)
            if stored.state is FactState.RETRACTED:
                raise FactAlreadyRetracted(fact_id, stored.died or 0)
            if not stored.fact.report["columns"]:
                raise InvalidField(f"facts.{place}", "has no columns, and only columns can be folded")
        return frozenset(asked)

    def _nearest(self, weights: Sequence[FactWeights], among: Collection[str], compute: Compute) -> list[str]:
        """Facts of the bank, those whose columns come nearest to firing on the keys of `weights` first."""
        keys: dict[int, list[Tensor]] = defaultdict(list)
        for each in weights:
            for layer, columns in each.columns.items():
                keys[layer].append(columns.keys)
        asked = {layer: torch.cat(parts) for layer, parts in keys.items()}
        matches = compute(lambda: self._bank.matches(asked, limit=OTHERS + len(weights)))
        near = [match.fact for match in matches if match.fact in among]
        return near + sorted(set(among) - set(near))

    def _with_requests(self, ids: Collection[str]) -> Mapping[str, tuple[WriteRequest, FactWeights]]:
        facts, weights = self._ledger.facts_by_id(ids), self._replica.load_all(ids)
        return {id_: (study_request(fact.request), weights[id_]) for id_, fact in facts.items()}
