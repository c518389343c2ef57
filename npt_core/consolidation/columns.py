"""From probes to plastic columns: teacher and student, surprise, keys, values, leak check.

Teacher: the model with the fact in its context; student: the same weights without. At every answer
token whose surprise `KL(p_teacher || p_student)` is worth it, a column stores the student's input
to `down_proj` (key) and what the layer's output lacks, `x_teacher - x_student` (value). Layers are
written from low to high in one pass, each seeing the columns below it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npt_core.bank import Bank, Columns, FactWeights, PlasticLayer
from npt_core.consolidation.calibration import Calibration, LayerStatistics, PlasticityConfig
from npt_core.consolidation.passes import Passes
from npt_core.consolidation.states import Position, States, plastic, run
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate

BLOCK = 2048
"""Reference keys that are compared at once: what is computed of them stays in the cache."""


@dataclass(frozen=True)
class AlignedProbe:
    """One probe as token ids, with the context and without; both end with the same `shared` tokens.

    `answer` is how many of the last tokens are the answer, the end token included.
    """

    teacher: list[int]
    student: list[int]
    shared: int
    answer: int

    def positions(self, ids: Sequence[int]) -> range:
        """Where the answer tokens are predicted in `ids`."""
        return range(len(ids) - self.answer - 1, len(ids) - 1)

    def reproduced(self, logits: Tensor) -> bool:
        """Whether greedy decoding after the prompt writes exactly this answer.

        `logits` `[answer, vocab]` come from one pass over prompt and answer: every argmax right under the
        right prefix is what greedy decoding means.
        """
        wanted = torch.tensor(self.student[-self.answer :], device=logits.device)
        return bool((logits.argmax(-1) == wanted).all())


def align(template: PromptTemplate, fact: str, prompt: str, answer: Sequence[int]) -> AlignedProbe:
    """Token ids of a probe whose `answer` the teacher wrote; the common tail is found in the ids, so
    any template will do.
    """
    tail = [*answer, template.eos_token_ids[0]]
    teacher = [*template.encode(template.with_context(prompt, [fact])), *tail]
    student = [*template.encode(template.with_context(prompt, [])), *tail]
    return AlignedProbe(teacher, student, _common(reversed(teacher), reversed(student)), len(tail))


def _common(a: object, b: object) -> int:
    count = 0
    for x, y in zip(a, b):  # type: ignore[call-overload]  # noqa: B905  # the shorter one ends it
        if x != y:
            break
        count += 1
    return count


@dataclass(frozen=True)
class Lesson:
    """Probes that the teacher answers, with its states and the student's where answer tokens are predicted,
    and the student's surprise at each.
    """

    probes: tuple[AlignedProbe, ...]
    teacher: States
    student: States
    surprise: Mapping[Position, float]

    def target(self, position: Position) -> int:
        """The answer token that is predicted there."""
        row, t = position
        return self.probes[row].student[t + 1]

    def asks(self, position: Position) -> bool:
        """Whether the first token of an answer is predicted there."""
        row, t = position
        return t == self.probes[row].positions(self.probes[row].student)[0]

    def teacher_position(self, position: Position) -> Position:
        """The teacher's position of a student's position."""
        row, t = position
        probe = self.probes[row]
        return row, t + len(probe.teacher) - len(probe.student)


def taught(passes: Passes, probes: Sequence[AlignedProbe], layers: Sequence[int]) -> States:
    """The teacher's states where it predicts the answers."""
    asked = [p.positions(p.teacher) for p in probes]
    return passes.read([p.teacher for p in probes], layers, asked)


def answered(
    passes: Passes, probes: Sequence[AlignedProbe], layers: Sequence[int] = (), bank: Bank | None = None
) -> States:
    """The student's states where it predicts the answers."""
    asked = [p.positions(p.student) for p in probes]
    return passes.read([p.student for p in probes], layers, asked, bank)


def recall(probes: Sequence[AlignedProbe], states: States) -> float:
    """Share of `probes` that are answered right in `states`, which are of `answered`."""
    right = [probe.reproduced(states.logits[states.of(row)]) for row, probe in enumerate(probes)]
    return sum(right) / len(right) if right else 0.0


def lesson(passes: Passes, probes: Sequence[AlignedProbe], teacher: States, layers: Sequence[int]) -> Lesson:
    """The student's pass, and the surprise of every answer token in nats; `teacher` as of `taught`."""
    student = answered(passes, probes, layers)
    p, q = torch.log_softmax(teacher.logits, -1), torch.log_softmax(student.logits, -1)
    divergence = (p.exp() * (p - q)).sum(-1).tolist()
    positions = [(row, t) for row, tokens in enumerate(student.asked) for t in tokens]
    return Lesson(tuple(probes), teacher, student, dict(zip(positions, divergence, strict=True)))


def write(
    model: NPTForCausalLM,
    calibration: Calibration,
    config: PlasticityConfig,
    taught: Lesson,
    foreign: Mapping[int, Tensor],
    pause: Callable[[], None] = lambda: None,
    checking: Callable[[], None] = lambda: None,
) -> FactWeights:
    """The columns of one fact in the layers of `config`.

    `foreign`: by layer, keys `[n, p]` of look-alikes, on which no column may fire either. `checking` is
    called before the leak check of each layer, `pause` between its parts.
    """
    wanted = sorted(at for at, w in taught.surprise.items() if w > config.surprise)
    trial = Bank(model, calibration.whitening)
    columns: dict[int, Columns] = {}
    writers = [
        _LayerWriter(
            taught,
            wanted,
            config,
            calibration.layers[index],
            foreign[index],
            trial.layers[index],
            index,
            pause,
            checking,
            columns,
        )
        for index in sorted(config.layers)
    ]
    if len(writers) == 1:  # no columns below change what this layer reads: the lesson saw it
        (only,), student = writers, taught.student
        there = student.at(wanted)
        only.write(student.keys[only.index][there], student.outputs[only.index][there])
    else:
        _write_in_one_pass(model, writers, taught, trial)
    return FactWeights({i: c for i, c in columns.items() if len(c.keys)})


def _write_in_one_pass(
    model: NPTForCausalLM, writers: Sequence["_LayerWriter"], taught: Lesson, trial: Bank
) -> None:
    handles = []
    for writer in writers:
        layer = model.model.layers[writer.index]
        handles.append(layer.mlp.key.register_forward_pre_hook(writer.see))
        handles.append(layer.register_forward_hook(writer.patch))
    try:
        # The patch adds the columns itself: the layer must not add them a second time.
        with plastic(model, [None] * len(trial.layers)):
            run(model, [p.student for p in taught.probes], ())
    finally:
        for handle in handles:
            handle.remove()


class _LayerWriter:
    """Hooks of one layer: sees its keys, makes its columns, patches its output with them."""

    def __init__(
        self,
        taught: Lesson,
        wanted: Sequence[Position],
        config: PlasticityConfig,
        statistics: LayerStatistics,
        foreign: Tensor,
        trial: PlasticLayer,
        index: int,
        pause: Callable[[], None],
        checking: Callable[[], None],
        found: dict[int, Columns],
    ) -> None:
        self.taught, self.wanted, self.config = taught, wanted, config
        self.statistics, self.foreign = statistics, foreign
        self.trial, self.index, self.pause, self.checking = trial, index, pause, checking
        self.found = found
        self._z = torch.empty(0)

    def see(self, _module: object, inputs: tuple[Tensor, ...]) -> None:
        """Keeps the layer's keys."""
        self._z = inputs[0]

    def patch(self, _module: object, _inputs: object, output: Tensor) -> Tensor:
        """Makes the columns of this layer; returns its output with them."""
        rows = torch.tensor([r for r, _ in self.wanted], dtype=torch.long)
        times = torch.tensor([t for _, t in self.wanted], dtype=torch.long)
        made = self.write(self._z[rows, times].float(), output[rows, times].float())
        table = self.trial.columns.extended((made.keys, made.values, made.thresholds), 0, 1)
        self.trial.columns, self.trial.newest = table, 1
        return self.trial.down(self._z, output, None)

    def write(self, keys: Tensor, output: Tensor) -> Columns:
        """Makes the columns of this layer by its `keys` `[n, d_ffn]` and `output` `[n, d]` where they are
        wanted.
        """
        teacher = self.taught.teacher
        there = teacher.at([self.taught.teacher_position(at) for at in self.wanted])
        made = self._columns(keys, teacher.outputs[self.index][there] - output)
        self.found[self.index] = made
        return made

    def _columns(self, z: Tensor, values: Tensor) -> Columns:
        keys = self.statistics.whitening.key(z)
        asks = torch.tensor([self.taught.asks(at) for at in self.wanted], dtype=torch.bool)
        targets = torch.tensor([self.taught.target(at) for at in self.wanted])
        self.checking()
        thresholds = thresholds_of(
            keys, targets, asks, self.statistics, self.foreign, self.config, self.pause
        )
        weights = torch.tensor([self.taught.surprise[at] for at in self.wanted])
        specific = thresholds <= self.config.max_threshold
        reach = thresholds.clamp(min=self.config.merge)
        chosen = chosen_columns(keys, values, weights, specific, reach, targets)
        return Columns(keys[chosen], values[chosen], thresholds[chosen], z[chosen].half())


def thresholds_of(
    keys: Tensor,
    targets: Tensor,
    asks: Tensor,
    statistics: LayerStatistics,
    foreign: Tensor,
    config: PlasticityConfig,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """The leak check: each column's threshold `[n]` clears every foreign key and every reference key.

    Excepted are reference keys where the text goes on with the very token that the column is for
    (`targets` `[n]`), and, where a column `asks` `[n]`, at the end of a prompt, the fact's own question.
    """
    nearest = keys.new_full((len(keys),), -1.0)
    if len(keys) and len(statistics.reference):
        for block, following in zip(
            statistics.reference.split(BLOCK), statistics.following.split(BLOCK), strict=True
        ):
            alike = keys @ block.T
            own = (alike >= config.same_question) & asks[:, None]
            own |= targets[:, None] == following
            nearest = torch.maximum(nearest, alike.masked_fill_(own, -1.0).amax(dim=1))
            pause()
    if len(keys) and len(foreign):
        nearest = torch.maximum(nearest, (keys @ foreign.T).amax(dim=1))
    return (nearest + config.margin).clamp(min=config.threshold)


def chosen_columns(
    keys: Tensor, values: Tensor, weights: Tensor, specific: Tensor, reach: Tensor, targets: Tensor
) -> list[int]:
    """Greedy cover, most surprising first: a token is skipped where a chosen column is nearer than its
    `reach` `[n]`, so that it fires there, is for the same next token (`targets` `[n]`), and adds nearly the
    same value (cosine 0.9).
    """
    alike = keys @ keys.T
    same = torch.nn.functional.normalize(values, dim=-1)
    covered = (alike > reach) & ((same @ same.T) >= 0.9) & (targets[:, None] == targets)
    chosen: list[int] = []
    for i in torch.argsort(weights, descending=True).tolist():
        if specific[i] and not (chosen and covered[i, chosen].any()):
            chosen.append(i)
    return chosen


def scaled(weights: FactWeights, alpha: float) -> FactWeights:
    """The same columns with `alpha` times their values."""
    if alpha == 1.0:
        return weights
    columns = {i: replace(c, values=c.values * alpha) for i, c in weights.columns.items()}
    return FactWeights(columns, weights.factors)
