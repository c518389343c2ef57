"""The plain decode loop: one prefill, then one token at a time, at one weights version."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from npt_core.engine.events import TokenEvent
from npt_core.engine.request import GenerationRequest
from npt_core.engine.sampler import Sampler, top_logprobs


class CausalModel(Protocol):
    """What the loop needs of a model: a config, a device, and cached forwards to logits."""

    @property
    def config(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any: ...


class Decoder:
    """Draws the tokens of one sequence, for ever; the caller decides when it is enough."""

    def __init__(self, model: CausalModel, request: GenerationRequest, index: int, version: int) -> None:
        self._model = model
        self._request = request
        self._index = index
        self._version = version
        self._sampler = Sampler(request.params, index)
        self._cache = DynamicCache(config=model.config)
        self._seen = list(request.prompt_ids)
        self._fed = 0

    def step(self) -> TokenEvent:
        """One forward, over what the cache does not hold yet, and the token it gives."""
        logits = self._logits(self._seen[self._fed :])
        self._fed = len(self._seen)
        token = self._sampler.choose(logits, self._seen)
        self._seen.append(token)
        return TokenEvent(self._index, token, *top_logprobs(logits, token, self._request.params.logprobs))

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> Tensor:
        """Next-token logits `[vocab]`, float32, on the CPU."""
        output = self._model(
            input_ids=torch.tensor([ids], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            weights_version=self._version,
            modulation_scale=self._request.modulation_scale,
        )
        logits: Tensor = output.logits[0, -1]
        return logits.float().cpu()
