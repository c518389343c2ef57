"""How many contradictions are found, and how many facts are taken for one: `on_conflict` of POST /facts.

    python benchmarks/conflicts.py [--facts 100] [--order random] [--seed 9001] [--model models/reference]

Facts are drawn and written; then of each a contradiction (the same subject and relation, in another wording,
with the object of another fact), and the same fact again in
another wording. Each is compared with all stored facts.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from npt_core.consolidation import Consolidated, WriteRequest
from npt_core.evaluation.writing import drawn
from npt_core.loading import Runtime, load_runtime
from npt_core.training.facts import Fact as Drawn
from service.conflicts import Overlap, overlap
from service.ledger import Fact

BATCH = 16


def written(runtime: Runtime, sentences: Sequence[str]) -> dict[int, Consolidated]:
    """What each sentence writes, by number; refused ones have nothing."""
    made: dict[int, Consolidated] = {}
    for start in range(0, len(sentences), BATCH):
        requests = [WriteRequest(sentence) for sentence in sentences[start : start + BATCH]]
        for number, outcome in enumerate(runtime.consolidator.consolidate_all(requests), start):
            if isinstance(outcome, Consolidated):
                made[number] = outcome
    return made


def others(facts: Sequence[Drawn], number: int) -> list[str]:
    """What other subjects have in this relation."""
    fact = facts[number]
    return [f.object for f in facts if f.relation == fact.relation and f.object != fact.object]


def contradiction(facts: Sequence[Drawn], number: int) -> Drawn:
    """The fact with the object of another one of its relation."""
    objects = others(facts, number)
    return replace(facts[number], object=objects[number % len(objects)])


def reworded(fact: Drawn, draw: Random) -> str:
    """The fact as a sentence."""
    return fact.statement(draw.choice(fact.relation.wordings("statements", "train")))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--order", choices=("random", "clustered"), default="random")
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--model", default="models/reference")
    asked = parser.parse_args()
    runtime, draw = load_runtime(asked.model), Random(asked.seed)
    planned = drawn(asked.order, asked.seed, asked.facts)
    stored = written(runtime, planned.statements)
    runtime.bank.publish(1, {str(i): made.weights for i, made in stored.items()})
    usable = [i for i in stored if others(planned.facts, i)]
    against = [reworded(contradiction(planned.facts, i), draw) for i in usable]
    again = [reworded(planned.facts[i], draw) for i in usable]

    def looked_up(ids: Sequence[str]) -> dict[str, Fact]:
        return {
            i: Fact(i, 1, {"fact": planned.statements[int(i)]}, stored[int(i)].report.as_dict(), "", "")
            for i in ids
        }

    print(f"{len(stored)} of {asked.facts} facts stored, {runtime.bank.num_columns()} columns")
    for name, sentences, right in (("contradictions", against, 0), ("restatements", again, 1)):
        found, wrong, seconds = 0, 0, []
        made = written(runtime, sentences)
        for place, fresh in made.items():
            begin = time.perf_counter()
            seen: Overlap = overlap(fresh, runtime.bank.matches(fresh.asked), looked_up)
            seconds.append(time.perf_counter() - begin)
            own = str(usable[place])
            found += own in (seen.contradicted, seen.restated)[right]
            wrong += len({*seen.contradicted, *seen.restated} - {own}) + (
                own in (seen.contradicted, seen.restated)[1 - right]
            )
        print(
            f"{name}: {found} of {len(made)} found, {wrong} facts wrongly named, "
            f"{1000 * statistics.median(seconds):.2f} ms each"
        )


if __name__ == "__main__":
    main()
