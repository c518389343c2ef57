"""llama.cpp on an exported file is the same model as transformers; where it is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npt_core.bench.gguf_export import export_gguf
from npt_core.bench.llama_cpp_peer import LlamaCpp, LlamaCppError
from npt_core.bench.load import prompts
from npt_core.bench.peers import measure_llama_cpp
from tests.npt_core import tiny
from tests.npt_core.helpers import by_transformers

pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

NEW = 12
SIZES: dict[str, dict[str, Any]] = {
    "llama 3 frequencies, grouped heads": {},
    "plain frequencies, tied head": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "linear frequencies, biases": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        "attention_bias": True,
        "mlp_bias": True,
    },
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("streams", [1, 5])
def test_greedy_tokens_are_those_of_generate(tmp_path: Path, sizes: dict[str, Any], streams: int) -> None:
    llama = tiny.new_llama(**sizes)
    export_gguf(llama, tmp_path / "m.gguf", tiny.tokenizer())
    asked = [p[: 20 + 7 * n] for n, p in enumerate(prompts(streams, 400))]
    with LlamaCpp(tmp_path / "m.gguf", streams, 64 + NEW, threads=1) as engine:
        for _ in range(2):  # the second time, what was read before is forgotten
            steps = [engine.start(asked)]
            while len(steps) < NEW:
                steps.append(engine.step(steps[-1]))
    expected = [by_transformers(llama, prompt, NEW) for prompt in asked]
    assert np.stack(steps, 1).tolist() == expected


def test_text_is_cut_into_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    export_gguf(tiny.new_llama(), tmp_path / "m.gguf", tokenizer)
    known = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    for text in ("The capital of Borduria is Szohod.", "In 1984, 37 of them\n\n  didn't.", "Zoë: é€!"):
        assert known.tokenize(text.encode()) == tokenizer(text).input_ids


def test_load_is_measured(tmp_path: Path) -> None:
    export_gguf(tiny.new_llama(), tmp_path / "m.gguf")
    figures = measure_llama_cpp(tmp_path / "m.gguf", 400, 3, 0.0)
    assert figures.streams == 3
    assert figures.tokens_per_s > 0
    assert figures.inter_token_p99_s is not None


def test_file_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no model")
    with pytest.raises(LlamaCppError, match=r"m\.gguf cannot be loaded"):
        LlamaCpp(tmp_path / "m.gguf", 1, 64, threads=1)
