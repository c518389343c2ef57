"""Publishing: which facts live at which version."""

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Self

from torch import Tensor, nn

from npt_core.bank.bases import folded, succeeded
from npt_core.bank.layer import PlasticLayer, Tables
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
        self._alive: dict[str, int] = {}  # facts to their columns
        self._columns = 0
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
        """Columns that a version sees, over all layers. Of the newest, any thread may ask: the number is
        known, and nothing is computed, which would slow down the thread that does (see `engine.threads`).
        """
        if version is None:
            return self._columns
        return sum(int(layer.columns.visible(version).sum()) for layer in self.layers)

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
        tables = [layer.tables for layer in self.layers]
        if deltas is not None:
            tables = self._folded(tables, version, deltas)
        if ending := [self._owners[fact] for fact in deaths]:
            tables = [each.ended(ending, version) for each in tables]
        tables = self._joined(tables, [(version, fact, weights) for fact, weights in births.items()])
        self._begin(version, tables, births, deaths)

    def publish_all(self, births: Mapping[int, Mapping[str, FactWeights]]) -> None:
        """Several versions at once, ascending, each of which only brings facts: what `publish` of one after
        the other would make of them, in a fraction of its time. Raises BankError, and changes nothing, where
        one of them would.
        """
        born, last = dict[str, FactWeights](), self.version
        for version, facts in births.items():
            _check_newer(version, last)
            _check_not_alive((facts.keys() & self._alive.keys()) | (facts.keys() & born.keys()))
            for fact, weights in facts.items():
                self._check_fit(fact, weights)
            born.update(facts)
            last = version
        each = [(v, fact, weights) for v, facts in births.items() for fact, weights in facts.items()]
        self._begin(last, self._joined([layer.tables for layer in self.layers], each), born, ())

    def _joined(
        self, tables: Sequence[Tables], births: Sequence[tuple[int, str, FactWeights]]
    ) -> list[Tables]:
        """With facts, and the versions at which they begin to live."""
        born = [(self._owners.setdefault(f, len(self._owners)), order_of(f), v) for v, f, _ in births]
        weights = [each for _, _, each in births]
        made = list(tables)
        # Most layers hold nothing of a fact.
        for index in {layer for each in weights for layer in each.layers}:
            columns = [
                Birth(*birth, (new.keys, new.values, new.thresholds))
                for birth, each in zip(born, weights, strict=True)
                if (new := each.columns.get(index)) is not None
            ]
            factors = {
                site: [
                    Birth(*birth, self.layers[index].held(site, more))
                    for birth, each in zip(born, weights, strict=True)
                    if (more := each.factors.get((index, site))) is not None
                ]
                for site in made[index].factors
            }
            made[index] = made[index].joined(columns, factors)
        return made

    def _begin(
        self,
        version: int,
        tables: Sequence[Tables],
        births: Mapping[str, FactWeights],
        deaths: Collection[str],
    ) -> None:
        """Publish what was made. Nothing can fail any more, such as for want of memory: half a version that
        is published again would be there twice.
        """
        for layer, made in zip(self.layers, tables, strict=True):
            layer.take(made, version)
        for fact in set(deaths):
            self._columns -= self._alive.pop(fact)
        for fact, weights in births.items():
            self._alive[fact] = weights.num_columns
            self._columns += weights.num_columns
        self.version = version

    def _folded(self, tables: Sequence[Tables], version: int, deltas: Mapping[int, Tensor]) -> list[Tables]:
        made = {i: self._matrix(i, delta).T.contiguous() for i, delta in deltas.items()}
        return [
            each._replace(bases=succeeded(each.bases, version, made.get(index)))
            for index, each in enumerate(tables)
        ]

    def _matrix(self, index: int, delta: Tensor) -> Tensor:
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
        if missing := set(deaths) - self._alive.keys():
            raise BankError(f"not alive: {sorted(missing)}")
        _check_not_alive((births.keys() & self._alive.keys()) - set(deaths))
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
    if len({part.shape[0] for part in parts}) > 1:
        raise BankError(f"fact {fact}, layer {index}: rows of its parts do not fit each other")


def order_of(fact: str) -> int:
    """The place of a fact's rows among equals and in sums: a number that depends on its name alone, so
    that the same facts give the same bits in whatever order they came.
    """
    return int.from_bytes(blake2b(fact.encode(), digest_size=8).digest()) >> 1
