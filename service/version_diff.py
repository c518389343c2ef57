"""What one version knows and another does not, from the ledger alone."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from service.exports.contents import recorded
from service.ledger import Fact, Ledger
from service.replica import Replica
from service.schemas.versions import Side, VersionDiff


def difference(ledger: Ledger, replica: Replica, first: int, second: int) -> VersionDiff:
    """From version `first` to version `second`.

    Raises:
        UnknownVersion: the ledger lacks one of them.
        npt_core.engine.VersionGone: it was compacted beyond one of them.
    """
    before, after = recorded(ledger, first), recorded(ledger, second)
    knew, knows = ledger.live(first), ledger.live(second)
    was, is_ = (set(replica.load_fold(version.fold).facts) for version in (before, after))
    facts = ledger.facts_by_id(knew ^ knows)
    return VersionDiff(
        before=first,
        after=second,
        born=_side(facts, knows - knew),
        died=_side(facts, knew - knows),
        folded=sorted(is_ - was),
        unfolded=sorted(was - is_),
        weights_version=ledger.newest,
    )


def _side(facts: Mapping[str, Fact], ids: Collection[str]) -> Side:
    reports: Iterable[Mapping[str, Any]] = [facts[id_].report for id_ in ids]
    return Side(
        facts=sorted(ids),
        columns=sum(report["columns"] for report in reports),
        bytes=sum(report["bytes"] for report in reports),
        layers=sorted({layer for report in reports for layer in report["layers"]}),
    )
