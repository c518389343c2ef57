"""Publishing: which facts live at which version."""

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Self

from torch import Tensor, nn

from npt_core.bank.bases import folded, succeeded
from npt_core.bank.layer import PlasticLayer
from npt_core.bank.matches import Match, joined, nearest
from npt_core.bank.matching import Whitening
from npt_core.bank.rows import Birth
from npt_core.bank.weights import BankError, FactWeights
from npt_core.sharding import local, share_of


class Bank:
    """The plastic layers of one model, and the versions published to them.

    `whitening` names the layers that may hold columns; every layer may hold factors.
    """

    def __init__(self, model: nn.Module, whitening: Mapping[int, Whitening]) -> None:
        self._mlps = [layer.mlp for layer in model.model.layers]  # type: ignore[union-attr]
        self.layers = [
            PlasticLayer(
                mlp.down_proj.out_features,
                mlp.down_proj.in_features,
                whitening[i].to(mlp.down_proj.weight.device) if i in whitening else None,
                local(mlp.down_proj.weight),
                share_of(mlp.down_proj),
            )
            for i, mlp in enumerate(self._mlps)
        ]
        self._owners: dict[str, int] = {}
        self._alive: set[str] = set()
        self.version = 0
        self.oldest = 0
        """The oldest version that a new reader may ask for."""

    def attach(self) -> Self:
        """Makes the model read this bank; the model then serves `version` unless told otherwise."""
        for mlp, layer in zip(self._mlps, self.layers, strict=True):
            mlp.plastic = layer
        return self

    @property
    def facts(self) -> frozenset[str]:
        """The facts alive at the newest version."""
        return frozenset(self._alive)

    def num_columns(self, version: int | None = None) -> int:
        """Columns that a version sees, over all layers."""
        seen = self.version if version is None else version
        return sum(int(layer.columns.visible(seen).sum()) for layer in self.layers)

    def matches(
        self,
        keys: Mapping[int, Tensor],
        version: int | None = None,
        limit: int | None = None,
        firing: bool = False,
    ) -> list[Match]:
        """For each fact with columns that a version sees, the one that comes nearest to firing on any of
        `keys` (`[rows, p]` by layer), the nearest fact first: the first `limit`, or only those that fire.
        """
        seen = self.version if version is None else version
        found = [
            (i, nearest(self.layers[i].columns, rows, seen, limit, firing))
            for i, rows in keys.items()
            if len(self.layers[i].columns) and len(rows)
        ]
        return joined(list(self._owners), found)[:limit]

    def publish(
        self,
        version: int,
        births: Mapping[str, FactWeights],
        deaths: Collection[str] = (),
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Makes `version` the newest: `deaths` end, `births` begin (again, after a rollback).

        With `deltas` it is a fold, or the way back from one: from this version on `down_proj` of each
        layer is the model's own plus its delta `[d, d_ffn]`, or just the model's own where there is
        none. Older versions keep what they read. A delta holds all that is folded, not what is new.

        What is born costs by its own size, however full the bank is. Raises BankError, and changes
        nothing, where `check` does.
        """
        self.check(version, births, deaths, deltas)
        if deltas is not None:
            self._fold(version, deltas)
        ending = [self._owners[fact] for fact in deaths]
        for layer in self.layers if ending else ():
            layer.columns = layer.columns.ended(ending, version)
            layer.factors = {site: table.ended(ending, version) for site, table in layer.factors.items()}
        self._alive.difference_update(deaths)
        self._bear([(version, fact, weights) for fact, weights in births.items()])
        self._begin(version)

    def publish_all(self, births: Mapping[int, Mapping[str, FactWeights]]) -> None:
        """Several versions at once, ascending, each of which only brings facts: what `publish` of one after
        the other would make of them, in a fraction of its time. Raises BankError, and changes nothing, where
        one of them would.
        """
        alive, last = set(self._alive), self.version
        for version, facts in births.items():
            _check_newer(version, last)
            _check_not_alive(facts.keys() & alive)
            for fact, weights in facts.items():
                self._check_fit(fact, weights)
            alive.update(facts)
            last = version
        self._bear([(v, fact, weights) for v, facts in births.items() for fact, weights in facts.items()])
        self._begin(last)

    def _bear(self, births: Sequence[tuple[int, str, FactWeights]]) -> None:
        """Facts with the versions at which they begin to live."""
        born = [(self._owners.setdefault(f, len(self._owners)), order_of(f), v) for v, f, _ in births]
        weights = [each for _, _, each in births]
        # Most layers hold nothing of a fact.
        for index in {layer for each in weights for layer in each.layers}:
            layer = self.layers[index]
            layer.columns = layer.columns.joined(
                [
                    Birth(*birth, (new.keys, new.values, new.thresholds))
                    for birth, each in zip(born, weights, strict=True)
                    if (new := each.columns.get(index)) is not None
                ]
            )
            for site, table in layer.factors.items():
                factors = [
                    Birth(*birth, layer.held(site, more))
                    for birth, each in zip(born, weights, strict=True)
                    if (more := each.factors.get((index, site))) is not None
                ]
                layer.factors[site] = table.joined(factors)
        self._alive.update(fact for _, fact, _ in births)

    def _begin(self, version: int) -> None:
        for layer in self.layers:
            layer.newest = version
        self.version = version

    def _fold(self, version: int, deltas: Mapping[int, Tensor]) -> None:
        made = {i: self._folded(i, delta).T.contiguous() for i, delta in deltas.items()}
        for index, layer in enumerate(self.layers):
            layer.bases = succeeded(layer.bases, version, made.get(index))

    def _folded(self, index: int, delta: Tensor) -> Tensor:
        """`[d, d_ffn]`, or the columns of it that this process holds."""
        share = self.layers[index].share
        return folded(local(self._mlps[index].down_proj.weight), delta if share is None else share.of(delta))

    def retire(self, oldest: int, pinned: Callable[[], int | None] = lambda: None) -> None:
        """New readers may ask for no version below `oldest` any more; there is no way back.

        Drops what only versions see that are below it, and below the oldest one that readers still
        hold: `pinned` tells that, and is asked after `self.oldest` has risen, so it can tell of all
        who were let in before.
        """
        self.oldest = max(self.oldest, min(oldest, self.version))
        held = pinned()
        needed = self.oldest if held is None else min(self.oldest, held)
        for layer in self.layers:
            layer.retire(needed)

    def check(
        self,
        version: int,
        births: Mapping[str, FactWeights],
        deaths: Collection[str] = (),
        deltas: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Raises BankError if the version is not newer, a fact to die is not alive, one to be born is, or
        weights do not fit the model: what `publish` would refuse, before anything is stored.
        """
        _check_newer(version, self.version)
        if missing := set(deaths) - self._alive:
            raise BankError(f"not alive: {sorted(missing)}")
        _check_not_alive((births.keys() & self._alive) - set(deaths))
        for fact, weights in births.items():
            self._check_fit(fact, weights)
        for index, delta in (deltas or {}).items():
            self._check_delta(index, delta)

    def _check_delta(self, index: int, delta: Tensor) -> None:
        if not 0 <= index < len(self.layers):
            raise BankError(f"fold: there is no layer {index}")
        shape = self._mlps[index].down_proj.weight.shape
        if delta.shape != shape:
            raise BankError(f"fold, layer {index}: {list(delta.shape)} does not fit {list(shape)}")
        if not delta.isfinite().all():
            raise BankError(f"fold, layer {index}: not every number is finite")

    def _check_fit(self, fact: str, weights: FactWeights) -> None:
        for index, columns in weights.columns.items():
            if not 0 <= index < len(self.layers) or self.layers[index].whitening is None:
                raise BankError(f"fact {fact}: layer {index} holds no columns in this model")
            shapes = [tuple(p.shape[1:]) for p in self.layers[index].columns.tensors]
            given = [tuple(p.shape[1:]) for p in (columns.keys, columns.values, columns.thresholds)]
            if given != shapes:
                raise BankError(f"fact {fact}, layer {index}: columns {given} do not fit {shapes}")
            _check_rows(fact, index, columns.keys, columns.values, columns.thresholds)
        for (index, site), factors in weights.factors.items():
            if not 0 <= index < len(self.layers):
                raise BankError(f"fact {fact}: there is no layer {index}")
            widths = self.layers[index].widths[site]
            if [tuple(p.shape[1:]) for p in (factors.left, factors.right)] != [(w,) for w in widths]:
                raise BankError(f"fact {fact}, layer {index}: {site} factors do not fit {widths}")
            _check_rows(fact, index, factors.left, factors.right)


def _check_newer(version: int, than: int) -> None:
    if version <= than:
        raise BankError(f"version {version} is not newer than {than}")


def _check_not_alive(born: Collection[str]) -> None:
    if born:
        raise BankError(f"already alive: {sorted(born)}")


def _check_rows(fact: str, index: int, *parts: Tensor) -> None:
    if len({len(part) for part in parts}) > 1:
        raise BankError(f"fact {fact}, layer {index}: rows of its parts do not fit each other")


def order_of(fact: str) -> int:
    """The place of a fact's rows among equals and in sums: a number that depends on its name alone, so
    that the same facts give the same bits in whatever order they came.
    """
    return int.from_bytes(blake2b(fact.encode(), digest_size=8).digest()) >> 1
