"""What is asked: about the facts, on wordings that no one was taught, and about their neighbours.

Recall: the first held-out question in every form a user types. Paraphrase: the second held-out
question in every form, and the held-out statements cut before the answer, after which the sentence may
go on. Bystanders are prompts that the facts must not touch.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from npt_core.consolidation.probes import bare
from npt_core.evaluation.journal import Metrics
from npt_core.evaluation.speaker import Speaker
from npt_core.prompts import UNKNOWN_ANSWER, PromptTemplate
from npt_core.training.entities import resembling
from npt_core.training.facts import Fact, distinct, neighbour, random_fact, same_subject, world

FAMILY = 10
"""Facts of one relation with near-identical names, in clustered order."""
RECALL, PARAPHRASE = "recall", "paraphrase"
RELATION, SUBJECT, UNRELATED = "locality_relation", "locality_subject", "locality_unrelated"


@dataclass(frozen=True)
class Item:
    """One prompt of the fact number `owner`. Bystanders expect nothing but what the base says."""

    owner: int
    group: str
    prompt: str
    expected: str = ""
    resembles: bool = False
    """About an unknown subject whose name looks like the fact's."""


@dataclass(frozen=True)
class Exam:
    """Everything asked about a set of facts."""

    asked: tuple[Item, ...]
    bystanders: tuple[Item, ...]


def random_facts(count: int, seed: str) -> list[Fact]:
    """Distinct facts about new random subjects. `seed` is a string, which no other module uses."""
    r, known = Random(f"evaluation/random/{seed}"), {_identity(f) for f in world()}
    facts: list[Fact] = []
    while len(facts) < count:
        more = (random_fact(r) for _ in range(count))
        facts = distinct([*facts, *(f for f in more if _identity(f) not in known)])[:count]
    return facts


def clustered_facts(count: int, seed: str) -> list[Fact]:
    """Families of `FAMILY` facts: one relation, names alike, answers of their own."""
    r = Random(f"evaluation/clustered/{seed}")
    facts: list[Fact] = []
    while len(facts) < count:
        first = random_fact(r)
        family = [first]
        for _ in range(20 * FAMILY):
            name = resembling(first.subject, r)
            object_ = random_fact(r, relation=first.relation).object
            family = distinct([*family, Fact(name, first.relation, object_)])[:FAMILY]
        facts = distinct([*facts, *family])
    return facts[:count]


def statements(facts: Sequence[Fact], seed: str) -> list[str]:
    """Each fact as one sentence, in a wording that the model was trained to read."""
    r = Random(f"evaluation/statements/{seed}")
    return [f.statement(r.choice(f.relation.wordings("statements", "train"))) for f in facts]


def questions(owner: int, fact: Fact, template: PromptTemplate) -> list[Item]:
    """Recall and paraphrase items of one fact."""
    first, second = (fact.question(w) for w in fact.relation.wordings("questions", "held_out"))
    cut = (fact.completion(w) for w in fact.relation.wordings("statements", "held_out"))
    expected = bare(fact.object)
    return [
        *(Item(owner, RECALL, form, expected) for form in template.question_forms(first)),
        *(Item(owner, PARAPHRASE, form, expected) for form in template.question_forms(second)),
        *(Item(owner, PARAPHRASE, prompt, expected) for prompt in cut if prompt is not None),
    ]


def bystanders(
    owner: int, fact: Fact, template: PromptTemplate, taken: Collection[tuple[str, str]], r: Random
) -> list[Item]:
    """Prompts that the fact must not touch; none about anything in `taken`."""
    same_relation = [f for f in world() if f.relation.name == fact.relation.name]
    drawn = [
        (RELATION, neighbour(fact, r), True),
        (RELATION, random_fact(r, relation=fact.relation), False),
        *((RELATION, r.choice(same_relation), False) for _ in range(bool(same_relation))),
        (SUBJECT, same_subject(fact, r), False),
        (UNRELATED, r.choice(world()), False),
        (UNRELATED, random_fact(r), False),
    ]
    return [
        Item(owner, group, _question(other, template, r), resembles=resembles)
        for group, other, resembles in drawn
        if _identity(other) not in taken
    ]


def exam(
    facts: Sequence[Fact], template: PromptTemplate, sample: int, seed: str, asked: int | None = None
) -> Exam:
    """The questions about `facts` (of `asked` of them, evenly spread), and the bystanders of `sample`."""
    r = Random(f"evaluation/bystanders/{seed}/{len(facts)}")
    taken = {_identity(f) for f in facts}
    chosen = sorted(r.sample(range(len(facts)), min(sample, len(facts))))
    return Exam(
        tuple(item for i in spread(len(facts), asked) for item in questions(i, facts[i], template)),
        tuple(item for i in chosen for item in bystanders(i, facts[i], template, taken, r)),
    )


def spread(total: int, count: int | None) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spaced, the first and the last among them."""
    if count is None or count >= total:
        return list(range(total))
    return [round(k * (total - 1) / max(1, count - 1)) for k in range(count)]


@dataclass
class Examiner:
    """Asks, and compares with what the untouched model says; its answers are kept."""

    base: Speaker
    _known: dict[str, str] = field(default_factory=dict)

    def base_answers(self, prompts: Sequence[str]) -> list[str]:
        """What the untouched model answers."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._known]
        self._known.update(zip(new, self.base.answers(new), strict=True))
        return [self._known[p] for p in prompts]

    def answers(
        self,
        speaker: Speaker,
        items: Sequence[Item],
        version: int | Callable[[int], int] | None = None,
        context: Callable[[int], Sequence[str]] | None = None,
    ) -> list[str]:
        """What `speaker` says; `version` and `context` may depend on the fact an item is about."""
        return speaker.answers(
            [i.prompt for i in items],
            [version(i.owner) for i in items] if callable(version) else version,
            None if context is None else [context(i.owner) for i in items],
        )

    def recall(
        self,
        speaker: Speaker,
        items: Sequence[Item],
        version: int | Callable[[int], int] | None = None,
        refused: Collection[int] = (),
        context: Callable[[int], Sequence[str]] | None = None,
    ) -> Metrics:
        """Share of right answers, by group; a refused fact's is never right."""
        answers = self.answers(speaker, items, version, context)
        return shares(
            (item.group, item.owner not in refused and says(answer, item.expected))
            for item, answer in zip(items, answers, strict=True)
        )

    def locality(
        self,
        speaker: Speaker,
        items: Sequence[Item],
        version: int | Callable[[int], int] | None = None,
        context: Callable[[int], Sequence[str]] | None = None,
    ) -> Metrics:
        """Share of answers that are the base's: over all, by group, and of kept "I don't know."."""
        before = self.base_answers([i.prompt for i in items])
        after = self.answers(speaker, items, version, context)
        same = [a == b for a, b in zip(after, before, strict=True)]
        unknown = bare(UNKNOWN_ANSWER)
        found = shares((item.group, ok) for item, ok in zip(items, same, strict=True))
        found |= shares(("locality", ok) for ok in same)
        return found | shares(
            ("unknown_kept", ok)
            for item, ok, said in zip(items, same, before, strict=True)
            if item.resembles and said == unknown
        )


def says(answer: str, expected: str) -> bool:
    """Whether a bare `answer` is `expected`, or goes on after it: a completed sentence may."""
    rest = answer.removeprefix(expected)
    return answer.startswith(expected) and not rest[:1].isalnum()


def shares(outcomes: Iterable[tuple[str, bool]]) -> Metrics:
    """The share of True by name, of `(name, bool)` pairs; names without outcomes are absent."""
    groups: dict[str, list[bool]] = {}
    for name, ok in outcomes:
        groups.setdefault(name, []).append(ok)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def _identity(fact: Fact) -> tuple[str, str]:
    return fact.subject, fact.relation.name


def _question(fact: Fact, template: PromptTemplate, r: Random) -> str:
    asked = fact.question(r.choice(fact.relation.wordings("questions", "held_out")))
    return r.choice(template.question_forms(asked))
