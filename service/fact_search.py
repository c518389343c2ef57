"""Which stored fact would answer a prompt: recall, explained by the numbers that decide it."""

from npt_core.bank import Match, in_order, matched
from npt_core.engine import PromptTooLong, VersionGone, VersionNotFound
from service.host import Host
from service.schemas.facts import FactMatch, FactsFound


def search(host: Host, prompt: str, limit: int, weights_version: int | None) -> FactsFound:
    """The `limit` facts that come nearest to answering `prompt`, at a version (absent: the newest).

    Raises:
        VersionNotFound, VersionGone: as for a request that is answered.
        PromptTooLong: the prompt does not fit the model.
    """
    version = _pinned(host, weights_version)
    template, bank, consolidator = host.runtime.template, host.runtime.bank, host.runtime.consolidator
    length, most = len(template.encode(template.with_context(prompt, []))), host.engine.max_positions
    if length > most:
        raise PromptTooLong(length, most)
    found = host.ledger.version(version)
    inside = host.replica.load_fold(found.fold).facts if found is not None else ()
    columns = host.replica.folded_weights(inside)

    def match() -> list[Match]:
        keys = consolidator.question_keys(prompt, bank, version)
        return [*bank.matches(keys, version, limit), *matched(columns, keys)]

    matches = in_order(host.engine.execute(match))[:limit]
    facts = host.ledger.facts_by_id(match.fact for match in matches)
    items = [
        FactMatch(
            id=match.fact,
            fact=facts[match.fact].request["fact"],
            cosine=round(match.cosine, 4),
            threshold=round(match.threshold, 4),
            fires=match.fires,
            layer=match.layer,
            folded=match.fact in inside,
        )
        for match in matches
    ]
    return FactsFound(items=items, weights_version=version)


def _pinned(host: Host, version: int | None) -> int:
    newest, oldest = host.version, host.runtime.bank.oldest
    if version is None:
        return newest
    if version > newest:
        raise VersionNotFound(version, newest)
    if version < oldest:
        raise VersionGone(version, oldest, newest)
    return version
