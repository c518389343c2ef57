from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from npt_core.convert import load_model
from tools.llama2c import FormatError, build_tokenizer, import_checkpoint, read_model, read_pieces

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 16, 24, 2, 4, 2, 32
MERGED = ["a", "b", "c", " ", "ab", "bc", "abc", " a", " ab", "ba", "cab"]
SCORES = dict(zip(MERGED, [-9, -8, -7, -6, -1, -2, -3, -5, -4, -0.5, -2.5], strict=True))
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *MERGED]
DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def tokenizer_bytes(pieces: list[str]) -> bytes:
    raw = [(SCORES.get(piece, 0.0), piece.encode()) for piece in pieces]
    body = b"".join(struct.pack("<fi", score, len(text)) + text for score, text in raw)
    return struct.pack("<i", max(len(text) for _, text in raw)) + body


def shapes(tied: bool) -> dict[str, tuple[int, ...]]:
    vocab, kv_dim, width = len(PIECES), KV_HEADS * DIM // HEADS, DIM // HEADS
    named: dict[str, tuple[int, ...]] = {
        "embedding": (vocab, DIM),
        "norm1": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, kv_dim, DIM),
        "wv": (LAYERS, kv_dim, DIM),
        "wo": (LAYERS, DIM, DIM),
        "norm2": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "norm": (DIM,),
        "rope": (2, CONTEXT, width // 2),
    }
    return named if tied else {**named, "classifier": (vocab, DIM)}


def written(path: Path, tied: bool) -> dict[str, Tensor]:
    """Writes a random checkpoint to `path` and returns its tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes(tied).items()}
    vocab = len(PIECES) if tied else -len(PIECES)
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocab, CONTEXT)
    path.write_bytes(header + b"".join(t.numpy().tobytes() for t in tensors.values()))
    return tensors


def llama2c_logits(w: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """What run.c computes, token by token: rope rotates neighbouring pairs."""
    width, shared = DIM // HEADS, HEADS // KV_HEADS
    keys: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    values: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    for position, token in enumerate(tokens):
        x = w["embedding"][token].clone()
        for layer in range(LAYERS):
            n = rms(x, w["norm1"][layer])
            q, k, v = (w[name][layer] @ n for name in ("wq", "wk", "wv"))
            keys[layer].append(rotated(k, position, width))
            values[layer].append(v)
            x = x + w["wo"][layer] @ attended(
                rotated(q, position, width), keys[layer], values[layer], width, shared
            )
            n = rms(x, w["norm2"][layer])
            gate = w["w1"][layer] @ n
            x = x + w["w2"][layer] @ (gate * torch.sigmoid(gate) * (w["w3"][layer] @ n))
    return w.get("classifier", w["embedding"]) @ rms(x, w["norm"])


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean() + 1e-5).sqrt()


def rotated(x: Tensor, position: int, width: int) -> Tensor:
    x = x.clone()
    for i in range(0, len(x), 2):
        angle = torch.tensor(position / 10000.0 ** ((i % width) / width))
        first, second = x[i].clone(), x[i + 1].clone()
        x[i] = first * angle.cos() - second * angle.sin()
        x[i + 1] = first * angle.sin() + second * angle.cos()
    return x


def attended(q: Tensor, keys: list[Tensor], values: list[Tensor], width: int, shared: int) -> Tensor:
    k, v = (torch.stack(each).view(len(each), -1, width) for each in (keys, values))
    heads = []
    for head, query in enumerate(q.view(-1, width)):
        weights = (k[:, head // shared] @ query / width**0.5).softmax(0)
        heads.append(weights @ v[:, head // shared])
    return torch.cat(heads)


def llama2c_encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """`encode` of run.c: characters or bytes, then the best-scored pair until none is left."""
    vocab = {piece.replace("\u2581", " "): i for i, (piece, _) in enumerate(pieces)}
    tokens = [vocab[" "]] if text else []
    for character in text:
        known = character in vocab
        tokens += [vocab[character]] if known else [byte + 3 for byte in character.encode()]
    names = {i: piece for piece, i in vocab.items()}
    while True:
        joined = [
            (pieces[vocab[names[a] + names[b]]][1], -i)
            for i, (a, b) in enumerate(pairwise(tokens))
            if names[a] + names[b] in vocab
        ]
        if not joined:
            return [1, *tokens]
        i = -max(joined)[1]
        tokens[i : i + 2] = [vocab[names[tokens[i]] + names[tokens[i + 1]]]]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float]]:
    path = tmp_path_factory.mktemp("tokenizer") / "tok.bin"
    path.write_bytes(tokenizer_bytes(PIECES))
    return read_pieces(path)


@pytest.mark.parametrize("tied", [True, False])
def test_the_imported_model_computes_what_llama2c_computes(tmp_path: Path, tied: bool) -> None:
    weights = written(tmp_path / "model.bin", tied)
    model = read_model(tmp_path / "model.bin")
    tokens = [1, 260, 263, 259, 262, 17]
    got = model(torch.tensor([tokens])).logits[0, -1]
    torch.testing.assert_close(got, llama2c_logits(weights, tokens), rtol=1e-4, atol=1e-4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_the_written_directory_loads_and_generates(tmp_path: Path) -> None:
    written(tmp_path / "model.bin", tied=True)
    (tmp_path / "tok.bin").write_bytes(tokenizer_bytes(PIECES))
    import_checkpoint(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    model, source = load_model(tmp_path / "out"), read_model(tmp_path / "model.bin")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("abc cab", return_tensors="pt")
    assert torch.equal(model(**batch).logits, source(**batch).logits)
    assert model.generate(**batch, max_new_tokens=3).shape[1] <= batch["input_ids"].shape[1] + 3
    assert model.generation_config.eos_token_id == [2, 1]


@given(st.text(alphabet="abc xé\n", max_size=30))
def test_text_is_split_as_llama2c_splits_it(pieces: list[tuple[str, float]], text: str) -> None:
    tokenizer = build_tokenizer(pieces, CONTEXT)
    tokens = tokenizer(text)["input_ids"]
    assert tokens == llama2c_encode(pieces, text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:20], "a header has 28 bytes"),
        (lambda data: data[:28], "truncated: 0 floats"),
        (lambda data: data[:-4], "truncated"),
        (lambda data: data[:-3], "no whole number of floats"),
        (lambda data: data + bytes(8), "2 floats left over"),
        (lambda data: struct.pack("<i", 15) + data[4:], "impossible header"),
        (lambda data: struct.pack("<i", -16) + data[4:], "impossible header"),
        (lambda data: b"ak42" + data[4:], "impossible header"),
    ],
)
def test_a_damaged_model_file_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "model.bin"
    written(path, tied=True)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tokenizer_bytes(PIECES)[:-1], "ends inside a token"),
        (tokenizer_bytes(PIECES) + b"\0", "ends inside a token"),
        (tokenizer_bytes(PIECES[1:]), "the first tokens are"),
        (b"", "the first tokens are"),
        (tokenizer_bytes(PIECES) + struct.pack("<fi", 0, 1) + b"\xff", "not UTF-8"),
    ],
)
def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tok.bin").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_pieces(tmp_path / "tok.bin")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "model.bin", tied=True)
    (tmp_path / "tok.bin").write_bytes(tokenizer_bytes(PIECES[:-1]))
    with pytest.raises(FormatError, match="the tokenizer has 269 tokens, the model 270"):
        import_checkpoint(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = DATA / "stories260K"
    if not (source / "stories260K_legacy.bin").is_file():
        pytest.skip(f"stories260K is not in {DATA}; set TEST_DATA to the folder that holds it")
    output = tmp_path_factory.mktemp("stories")
    import_checkpoint(source / "stories260K_legacy.bin", source / "tok512.bin", output)
    return output


def test_stories260k_tells_its_story_as_exact_v1(stories: Path) -> None:
    llama = LlamaForCausalLM.from_pretrained(stories)
    model, tokenizer = load_model(stories), AutoTokenizer.from_pretrained(stories)
    assert llama.num_parameters() == 260_032
    start = tokenizer("", return_tensors="pt")["input_ids"]
    assert start.tolist() == [[1]]
    story = model.generate(start, max_new_tokens=100, do_sample=False)
    text = tokenizer.decode(story[0], skip_special_tokens=True)
    assert text.startswith("Once upon a time, there was a little girl named Lily.")
    assert torch.equal(model(story).logits, llama(story).logits)
    assert tokenizer(text)["input_ids"] == story[0].tolist()
