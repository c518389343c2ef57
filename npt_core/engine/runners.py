"""The runner for a model, by the device it lies on."""

from collections.abc import Callable
from typing import Any

from npt_core.engine.page_table import PAGE
from npt_core.engine.paged_attention import PAGE_SIZE
from npt_core.engine.paged_runner import PagedRunner
from npt_core.engine.passes import KernelPasses
from npt_core.engine.runner import PAGES, Runner
from npt_core.engine.weights import UnsupportedModel
from npt_core.sharding import is_split


def page_size_for(model: Any) -> int:
    """Tokens of a page of the runner for `model`."""
    return PAGE_SIZE if model.device.type == "cuda" else PAGE


def runner_for(model: Any, num_pages: int | None = None) -> Runner | PagedRunner:
    """What computes the steps of an `NPTForCausalLM`, in `num_pages` pages of keys and values: by default
    `PAGES` on a CPU, or as many as fit a GPU's memory. Raises UnsupportedModel.
    """
    if is_split(model):
        raise UnsupportedModel("the engine computes with a whole model: one that is split only generates")
    if model.device.type == "cuda":
        return PagedRunner(model, num_pages)
    return Runner(model, PAGES if num_pages is None else num_pages)


def passes_for(runner: object, pause: Callable[[], None]) -> KernelPasses | None:
    """Passes for consolidation by the kernels of `runner`, if it has some for that."""
    return KernelPasses(runner, pause) if isinstance(runner, Runner) and runner.exact else None
