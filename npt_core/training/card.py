"""The model card of a trained reference checkpoint, from its logs: no figure is typed by hand."""

import json
from pathlib import Path
from string import Template

_CARD = Template("""\
---
language: en
license: apache-2.0
library_name: transformers
tags: [npt, neuro-plastic, knowledge-editing]
---
# NPT reference model

A Neuro-Plastic Transformer V2 in every layer: attention reaches the residual stream only by modulating
the MLP. It reads English facts from a context, answers questions about them in several forms, says
"I don't know." about facts it was not given, and learns facts permanently through consolidation.
It is a demonstration and test model: it knows a few hundred real facts and no more.

| | |
|---|---|
| parameters | $parameters |
| layers, d_model, d_ffn, heads | $shape |
| adapter rank, modulation | $adapter |
| vocabulary, context | $vocabulary |
| teacher (plain Llama): tokens, final CE | $teacher |
| equivalence (phase 1): tokens, final CE, hidden-state term | $equivalence |
| precision | weights bfloat16; trained with bf16 autocast |

## Data

The corpus generator of this repository (`npt_core/training`): synthetic facts about random names, and
the real facts of `world.toml`. $natural The acceptance names and values (`HELD_OUT_TERMS`) occur in
no training text; the last two wordings of every relation were never trained on.

## Format

`Context: {facts}` on a line of its own, then a question as it is, `Question: ...` and `Answer:`, a
sentence to complete, or `User: ...` and `Assistant:`. An answer ends with `<eos>`.

## Reproduce

    npt train reference --out runs/reference$flags

`plasticity.json` holds the parameters of consolidation, `plasticity.safetensors` the key space, the
reference keys and the second moments. Measured results are in `docs/evaluation.md`.
""")


def write_card(folder: Path, run: Path, steps: tuple[int, int], data: bool) -> None:
    """Writes `folder/README.md` from the logs in `run/teacher` and `run/equivalence`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    teacher, equivalence = (_last(run / name / "log.jsonl") for name in ("teacher", "equivalence"))
    shape = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    natural = "6% of the documents are Wikipedia leads (CC BY-SA 3.0)." if data else "No other text."
    text = _CARD.substitute(
        parameters=f"{_parameters(folder):,}",
        shape=", ".join(str(config[name]) for name in shape),
        adapter=f"{config['adapter_rank']}, {config['modulation_type']}",
        vocabulary=f"{config['vocab_size']}, {config['max_position_embeddings']}",
        teacher=f"{teacher['tokens'] / 1e6:.1f} M, {teacher['ce']:.4f}",
        equivalence=", ".join(
            [
                f"{equivalence['tokens'] / 1e6:.1f} M",
                f"{equivalence['ce']:.4f}",
                f"{equivalence['hidden']:.4f}",
            ]
        ),
        natural=natural,
        flags=f" --teacher-steps {steps[0]} --equivalence-steps {steps[1]}" + (" --data DIR" if data else ""),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _last(log: Path) -> dict[str, float]:
    """The mean of the last 50 steps' losses, with the last entry's counters."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    tail = entries[-5:]
    return {name: sum(e[name] for e in tail) / len(tail) for name in tail[-1]} | {
        "tokens": entries[-1]["tokens"]
    }


def _parameters(folder: Path) -> int:
    """Stored parameters (tied ones once)."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
        total = 0
        for name in names:
            size = 1
            for dimension in tensors.get_slice(name).get_shape():
                size *= dimension
            total += size
    return total
