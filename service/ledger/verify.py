"""Is this history the one that was written?"""

from collections.abc import Mapping, Sequence

from service.ledger.chain import audit_hash, chain_hash
from service.ledger.records import AuditEntry, Fact, Version, VersionKind


def history_problem(versions: Sequence[Version], facts: Mapping[str, Fact]) -> str | None:
    """What is wrong with `versions` (ascending), in one line; `None` if nothing is."""
    alive: set[str] = set()
    parent: Version | None = None
    for number, version in enumerate(versions):
        if version.version != number:
            return f"version {number} is missing"
        problem = chain_problem(version, parent, facts)
        if problem is not None:
            return f"version {number}: {problem}"
        # In place: a set of all facts for each version would take time that grows with its square.
        if not alive.isdisjoint(version.births) or not alive.issuperset(version.deaths):
            return f"version {number}: a fact is born that lived, or dies that did not"
        alive.update(version.births)
        alive.difference_update(version.deaths)
        parent = version
    unused = set(facts) - {fact_id for version in versions for fact_id in version.births}
    return f"no version holds fact {min(unused)}" if unused else None


def audit_problem(entries: Sequence[AuditEntry]) -> str | None:
    """What is wrong with the whole audit (ascending), in one line; `None` if nothing is."""
    parent: str | None = None
    for number, entry in enumerate(entries, 1):
        if entry.seq != number:
            return f"audit entry {number} is missing"
        if entry.chain != audit_hash(parent, entry):
            return f"audit entry {number}: its chain hash does not match"
        parent = entry.chain
    return None


def chain_problem(version: Version, parent: Version | None, facts: Mapping[str, Fact]) -> str | None:
    """What is wrong with `version` as the one after `parent`, in one line; `None` if nothing is."""
    if version.version != (0 if parent is None else parent.version + 1):
        return "the version before it is missing"
    if version.parent != (None if parent is None else parent.version):
        return "its parent is not the version before it"
    if (version.kind is VersionKind.BASE) != (parent is None):
        return "a base version must come first, and only there"
    unknown = [fact_id for fact_id in version.births if fact_id not in facts]
    if unknown:
        return f"fact {min(unknown)} is missing"
    if version.chain != chain_hash(None if parent is None else parent.chain, version, facts):
        return "its chain hash does not match"
    return None
