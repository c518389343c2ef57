"""llama.cpp on several sequences at once, through the low-level calls of llama-cpp-python."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int32]]
_UBATCH = 512
"""llama.cpp's own default: tokens computed at once."""


class LlamaCppError(Exception):
    """llama.cpp refused a file, a context or a batch."""


class LlamaCpp:
    """A GGUF file ready for `streams` sequences of `positions` tokens each, decoded greedily in step.

    Keys and values are float32 as in the other engines, and `threads` threads compute.

    Raises:
        LlamaCppError: the file cannot be loaded, or memory for the context is missing.
        ImportError: the package `llama-cpp-python` is missing.
    """

    def __init__(self, path: Path, streams: int, positions: int, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._streams = streams
        _silence(llama_cpp)
        llama_cpp.llama_backend_init()
        self._model = self._load(path)
        self._vocabulary: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context = self._open(streams, positions, threads)
        self._batch = llama_cpp.llama_batch_init(streams * positions, 0, 1)
        self._lengths = np.zeros(streams, dtype=np.int32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the weights and the context; nothing may be called afterwards."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def start(self, prompts: Sequence[Sequence[int]]) -> Ids:
        """Forgets everything, reads one prompt for each stream; the first new tokens `[streams]`."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        total = int(self._lengths.sum())
        sampled = np.zeros(total, dtype=np.int8)
        sampled[np.cumsum(self._lengths) - 1] = 1
        return self._decode(
            np.concatenate([np.array(prompt, dtype=np.int32) for prompt in prompts]),
            np.concatenate([np.arange(length, dtype=np.int32) for length in self._lengths]),
            np.repeat(np.arange(self._streams, dtype=np.int32), self._lengths),
            sampled,
        )

    def step(self, tokens: Ids) -> Ids:
        """Appends one token to each stream; the next ones `[streams]`."""
        positions = self._lengths
        self._lengths = positions + 1
        streams = np.arange(self._streams, dtype=np.int32)
        return self._decode(tokens, positions, streams, np.ones(self._streams, dtype=np.int8))

    def _decode(
        self,
        tokens: Ids,
        positions: Ids,
        streams: Ids,
        sampled: np.ndarray[Any, np.dtype[np.int8]],
    ) -> Ids:
        """Computes a flat batch; the likeliest token after each one that is `sampled`, in order."""
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (count,))[:] = sampled
        for place, stream in enumerate(streams.tolist()):
            batch.seq_id[place][0] = stream
        if code := self._api.llama_decode(self._context, batch):
            raise LlamaCppError(f"llama_decode answered {code} to a batch of {count} tokens")
        logits = self._api.llama_get_logits(self._context)
        rows = np.ctypeslib.as_array(logits, (int(sampled.sum()), self._vocabulary))
        likeliest: Ids = rows.argmax(-1).astype(np.int32)
        return likeliest

    def _load(self, path: Path) -> Any:
        api = self._api
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = 0
        model = api.llama_model_load_from_file(str(path).encode(), settings)
        if not model:
            raise LlamaCppError(f"{path} cannot be loaded")
        return model

    def _open(self, streams: int, positions: int, threads: int) -> Any:
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = streams * positions
        settings.n_ubatch = _UBATCH
        settings.n_seq_max = streams
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED: it rounds to half precision inside
        context = api.llama_init_from_model(self._model, settings)
        if not context:
            api.llama_model_free(self._model)
            raise LlamaCppError(f"no context of {streams} streams of {positions} positions")
        return context


def _silence(api: Any) -> None:
    """Keeps llama.cpp from writing pages to standard error."""
    global _QUIET
    _QUIET = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(_QUIET, ctypes.c_void_p(0))


_QUIET: Any = None
"""llama.cpp keeps a bare pointer to the callback, which must therefore stay alive."""
