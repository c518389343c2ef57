"""Import a llama2.c checkpoint (legacy format, version 0) as a transformers Llama directory.

    python -m tools.llama2c MODEL.bin TOKENIZER.bin OUTPUT_DIRECTORY

The model file is little-endian: seven int32 (dim, hidden, layers, heads, key-value heads,
vocabulary, context; a negative vocabulary means that the classifier is not tied), then float32
tensors, each for all layers at once: token embedding, attention norms, wq, wk, wv, wo, MLP norms,
w1 (gate), w2 (down), w3 (up), final norm, two rope tables (recomputed here), and the classifier
if it is not tied. The tokenizer file is an int32 (longest piece), then per token a float32
score, an int32 length and that many bytes.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_HEADER = struct.Struct("<7i")
_PIECE = struct.Struct("<fi")
_SPECIAL = ("<unk>", "<s>", "</s>")
_UNK, _BOS, _EOS = range(3)
# llama2.c fixes both in its code.
_NORM_EPS, _ROPE_THETA = 1e-5, 10000.0
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class FormatError(ValueError):
    """The file is not what llama2.c writes."""


@dataclass(frozen=True)
class Header:
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @classmethod
    def parse(cls, data: bytes) -> Header:
        if len(data) < _HEADER.size:
            raise FormatError(f"a header has {_HEADER.size} bytes, the file has {len(data)}")
        values = _HEADER.unpack_from(data)
        dim, hidden, layers, heads, kv_heads, vocab, context = values
        sizes = (dim, hidden, layers, heads, kv_heads, abs(vocab), context)
        if min(sizes) < 1 or dim % heads or heads % kv_heads or dim // heads % 2:
            raise FormatError(f"impossible header: {list(values)}")
        return cls(*sizes, tied=vocab > 0)

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.dim,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            rms_norm_eps=_NORM_EPS,
            rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
            tie_word_embeddings=self.tied,
            bos_token_id=_BOS,
            eos_token_id=_EOS,
        )


class _Floats:
    """Takes float32 tensors off the front of a file."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise FormatError(f"{len(data)} bytes after the header are no whole number of floats")
        # frombuffer refuses an empty buffer, which is merely a truncated file here.
        self._values = torch.empty(0)
        if data:
            self._values = torch.frombuffer(bytearray(data), dtype=torch.float32)
        self._at = 0

    def take(self, *shape: int) -> Tensor:
        end = self._at + torch.Size(shape).numel()
        if end > len(self._values):
            raise FormatError(f"truncated: {len(self._values)} floats, at least {end} expected")
        taken = self._values[self._at : end].view(shape)
        self._at = end
        return taken

    def finish(self) -> None:
        if self._at != len(self._values):
            raise FormatError(f"{len(self._values) - self._at} floats left over at the end")


def read_model(path: Path) -> LlamaForCausalLM:
    """The checkpoint at `path` in fp32, in eval mode.

    Raises:
        FormatError: an impossible header, or a file of another length than it implies.
        OSError: `path` cannot be read.
    """
    data = path.read_bytes()
    header = Header.parse(data)
    model = LlamaForCausalLM(header.config())
    model.load_state_dict(_state_dict(header, _Floats(data[_HEADER.size :])))
    # A story ends where the next one begins: llama2.c stops at BOS, which follows no text.
    model.generation_config = GenerationConfig(
        bos_token_id=_BOS, eos_token_id=[_EOS, _BOS], pad_token_id=_EOS
    )
    model.eval()
    return model


def _state_dict(header: Header, floats: _Floats) -> dict[str, Tensor]:
    h, layers, kv_dim = header, header.layers, header.kv_heads * header.head_dim
    embedding = floats.take(h.vocab, h.dim)
    stacked = {
        "input_layernorm": floats.take(layers, h.dim),
        "self_attn.q_proj": _half_split(floats.take(layers, h.dim, h.dim), h.heads),
        "self_attn.k_proj": _half_split(floats.take(layers, kv_dim, h.dim), h.kv_heads),
        "self_attn.v_proj": floats.take(layers, kv_dim, h.dim),
        "self_attn.o_proj": floats.take(layers, h.dim, h.dim),
        "post_attention_layernorm": floats.take(layers, h.dim),
        "mlp.gate_proj": floats.take(layers, h.hidden, h.dim),
        "mlp.down_proj": floats.take(layers, h.dim, h.hidden),
        "mlp.up_proj": floats.take(layers, h.hidden, h.dim),
    }
    norm = floats.take(h.dim)
    floats.take(2, h.context, h.head_dim // 2)
    classifier = embedding if h.tied else floats.take(h.vocab, h.dim)
    floats.finish()
    state = {
        f"model.layers.{layer}.{name}.weight": tensor[layer]
        for name, tensor in stacked.items()
        for layer in range(layers)
    }
    return state | {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": norm,
        "lm_head.weight": classifier,
    }


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head of `[layers, heads * head_dim, dim]`.

    llama2.c rotates neighbours (0, 1), (2, 3), ...; transformers rotates row i with row
    i + head_dim / 2. Moving the even rows of a head before its odd ones makes them equal.
    """
    layers, rows, dim = weight.shape
    pairs = weight.view(layers, heads, rows // heads // 2, 2, dim)
    return pairs.transpose(2, 3).reshape(layers, rows, dim)


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Text and score of every token, by id; a space is written as U+2581.

    Raises:
        FormatError: truncated, not UTF-8, or without the three special tokens.
    """
    pieces = [(piece.replace(" ", _SPACE), score) for piece, score in _raw_pieces(path.read_bytes())]
    names = tuple(piece.strip() for piece, _ in pieces[: len(_SPECIAL)])
    if names != _SPECIAL:
        raise FormatError(f"the first tokens are {names}, expected {_SPECIAL}")
    # llama2.c pads the names of BOS and EOS with newlines.
    return [(name, 0.0) for name in _SPECIAL] + pieces[len(_SPECIAL) :]


def _raw_pieces(data: bytes) -> Iterator[tuple[str, float]]:
    at = 4
    while at < len(data):
        if at + _PIECE.size > len(data):
            raise FormatError("the tokenizer file ends inside a token")
        score, length = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        raw = data[at : at + length]
        if length < 0 or len(raw) != length:
            raise FormatError("the tokenizer file ends inside a token")
        at += length
        try:
            yield raw.decode("utf-8"), score
        except UnicodeDecodeError as error:
            raise FormatError(f"token {raw!r} is not UTF-8") from error


def build_tokenizer(pieces: list[tuple[str, float]], context: int) -> PreTrainedTokenizerFast:
    """A tokenizer that splits text as llama2.c does: join the best-scored pair, again and again.

    A character without a token becomes its UTF-8 bytes; a space precedes the text; BOS starts it.
    """
    vocab = {piece: token for token, (piece, _) in enumerate(pieces)}
    model = BPE(vocab, _merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", _BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every pair of tokens whose concatenation is a token, best score first."""
    scores = dict(pieces[len(_SPECIAL) :])
    pairs = [
        (-scores[piece], piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(pairs, key=lambda pair: pair[0])]


def import_checkpoint(model: Path, tokenizer: Path, output: Path) -> None:
    """Write config, safetensors and tokenizer to `output`.

    Raises:
        FormatError: either file is damaged, or the two have different vocabularies.
        OSError: a file cannot be read or written.
    """
    llama, pieces = read_model(model), read_pieces(tokenizer)
    if len(pieces) != llama.config.vocab_size:
        raise FormatError(f"the tokenizer has {len(pieces)} tokens, the model {llama.config.vocab_size}")
    llama.save_pretrained(output)
    build_tokenizer(pieces, llama.config.max_position_embeddings).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Import a llama2.c checkpoint.")
    for name in ("model", "tokenizer", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    try:
        import_checkpoint(arguments.model, arguments.tokenizer, arguments.output)
    except (FormatError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
