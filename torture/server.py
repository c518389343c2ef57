"""`npt serve` around the double of the model."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from npt_core.consolidation import Consolidated, WriteRequest
from npt_core.engine import Span
from service.cli import app, serving
from service.host import LoadRuntime
from tests.service.fakes import FakeBank, FakeConsolidator, FakeModel, FakeRuntime
from torture.mutants import plant


@dataclass(frozen=True)
class Double:
    """What stands for the model: the fingerprint of its checkpoint; seconds of a step, and of a fact."""

    base: str = "f" * 64
    step_s: float = 0.0
    write_s: float = 0.0


class _SlowModel(FakeModel):
    step_s = 0.0

    def run(self, spans: Sequence[Span], between: Callable[[], None], /) -> Tensor:
        time.sleep(self.step_s)
        return super().run(spans, between)


class _SlowConsolidator(FakeConsolidator):
    write_s = 0.0

    def consolidate(self, request: WriteRequest, /) -> Consolidated:
        time.sleep(self.write_s)
        return super().consolidate(request)


def serve(
    data: str,
    port: int,
    environment: dict[str, str],
    double: Double | None,
    log: Path | None,
    mutant: str,
) -> None:
    """Until a signal comes, with a double or the checkpoint that `NPT_MODEL` names; stderr goes to `log`."""
    plant(mutant)
    os.environ.update({"NPT_LOG_LEVEL": "ERROR", "NPT_MAX_PENDING_WRITES": "64", **environment})
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    if double is not None:
        serving._load_runtime = lambda: _loader(double)
    sys.exit(app(["serve", "--data", data, "--port", str(port)], standalone_mode=False) or 0)


def _loader(double: Double) -> LoadRuntime:
    def load(
        _source: str, /, *, device: str = "auto", dtype: str = "auto", cache: Path | None = None
    ) -> FakeRuntime:
        bank = FakeBank()
        model, consolidator = _SlowModel(bank), _SlowConsolidator()
        model.step_s, consolidator.write_s = double.step_s, double.write_s
        return FakeRuntime(model, bank, consolidator=consolidator, fingerprint=double.base)

    return load
