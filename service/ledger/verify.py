"""Is this history the one that was written?"""

from collections.abc import Mapping, Sequence

from service.ledger.chain import chain_hash
from service.ledger.records import Fact, Version, VersionKind


def history_problem(versions: Sequence[Version], facts: Mapping[str, Fact]) -> str | None:
    """What is wrong with `versions` (ascending), in one line; `None` if nothing is."""
    alive: set[str] = set()
    parent: Version | None = None
    for number, version in enumerate(versions):
        if version.version != number:
            return f"version {number} is missing"
        problem = _problem(version, parent, facts, alive)
        if problem is not None:
            return f"version {number}: {problem}"
        alive = (alive | set(version.births)) - set(version.deaths)
        parent = version
    unused = set(facts) - {fact_id for version in versions for fact_id in version.births}
    return f"no version holds fact {min(unused)}" if unused else None


def _problem(
    version: Version, parent: Version | None, facts: Mapping[str, Fact], alive: set[str]
) -> str | None:
    if version.parent != (None if parent is None else parent.version):
        return "its parent is not the version before it"
    if (version.kind is VersionKind.BASE) != (parent is None):
        return "a base version must come first, and only there"
    unknown = set(version.births) - set(facts)
    if unknown:
        return f"fact {min(unknown)} is missing"
    if alive & set(version.births) or set(version.deaths) - alive:
        return "a fact is born that lived, or dies that did not"
    if version.chain != chain_hash(None if parent is None else parent.chain, version, facts):
        return "its chain hash does not match"
    return None
