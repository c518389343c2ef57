"""A checkpoint that learns at once: the tiny random model, and a writer that needs no self-study.

The random model cannot read, so its own consolidator would refuse every fact. This one stores columns
with random values on the last tokens of the sentence.
"""

from typing import Any

import torch

from npt_core.bank import Bank, Columns, FactWeights
from npt_core.consolidation import Consolidated, Consolidator, NotRecalled, WriteReport
from npt_core.consolidation.states import run
from npt_core.evaluation.config import BaselineConfig, CapacityConfig, EvaluationConfig
from npt_core.loading import Runtime
from tests.npt_core.tiny import calibrated, new_npt, plain_template, tokenizer

LAYER = 1


class QuickWriter(Consolidator):
    """Writes any sentence, except those that hold the word `refused`."""

    written = 0

    def consolidate(self, request: Any) -> Consolidated:
        self.written += 1
        report = WriteReport("bank", columns=1, bytes=100, timings={"study": 0.1})
        if "refused" in request.fact:
            raise NotRecalled("not recalled", report)
        rows = [self.template.encode(request.fact)]
        states = run(self.model, rows, [LAYER])
        z = states.keys[LAYER][-3:]
        generator = torch.Generator().manual_seed(len(request.fact))
        values = torch.randn(len(z), self.model.config.hidden_size, generator=generator)
        keys = self.calibration.layers[LAYER].whitening.key(z)
        columns = Columns(keys, values, torch.full((len(z),), 0.5), z.half())
        return Consolidated(FactWeights({LAYER: columns}), report)


def tiny_runtime() -> Runtime:
    """V2 in two layers, calibrated, with a writer that always succeeds."""
    model, template = new_npt(), plain_template()
    calibration, _ = calibrated(model, template)
    bank = Bank(model, calibration.whitening).attach()
    writer = QuickWriter(model, template, calibration)
    return Runtime(model, tokenizer(), template, bank, writer, None, "0" * 64)


TINY = EvaluationConfig(
    counts=(1, 3),
    seeds=(0, 1),
    one_fact=3,
    clustered=3,
    bystanders=2,
    documents=3,
    fold_ranks=(None, 1),
    max_new_tokens=3,
    capacity=CapacityConfig((1, 3), (None, 1), (10.0,), (0.5,), layer_facts=1, min_recall=0.0),
    baselines=BaselineConfig(one_fact=1, counts=(2,), development=1),
)
