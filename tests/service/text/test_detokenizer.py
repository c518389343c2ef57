from collections.abc import Sequence
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from service.text.detokenizer import MOST_PENDING, PROMPT_TAIL, Detokenizer


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def decode_words(ids: Sequence[int]) -> str:
    """As SentencePiece: the space that begins a text is not written."""
    return "".join(f" {i}" for i in ids)[1:]


def streamed(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()


@given(st.text())
def test_pieces_of_bytes_are_the_whole_text(text: str) -> None:
    assert streamed(Detokenizer(decode_bytes), text.encode()) == text


@given(st.binary(max_size=100))
def test_bytes_that_are_no_text_end_as_replacement_characters(data: bytes) -> None:
    assert streamed(Detokenizer(decode_bytes), data) == decode_bytes(data)


@given(st.text(min_size=1, max_size=20))
def test_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)


@given(st.text("aé€😀\ufffd", min_size=20), st.lists(st.integers(1, 5), min_size=1))
def test_pieces_that_end_in_the_middle_of_characters_are_the_whole_text(text: str, sizes: list[int]) -> None:
    data, tokens = text.encode(), list[bytes]()
    for size in cycle(sizes):
        if not data:
            break
        tokens.append(data[:size])
        data = data[size:]
    detokenizer = Detokenizer(lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"))
    assert streamed(detokenizer, range(len(tokens))) == text


@pytest.mark.parametrize("ids", [[0x80] * 500, [*"\ufffd".encode()] * 200], ids=["no text", "replacements"])
def test_few_tokens_are_decoded_at_a_time(ids: list[int]) -> None:
    """All were, again and again, while the text ended in replacement characters."""
    longest = 0

    def decode(asked: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(asked))
        return decode_bytes(asked)

    assert streamed(Detokenizer(decode), ids) == decode_bytes(ids)
    assert longest <= PROMPT_TAIL + MOST_PENDING


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), max_size=20))
def test_answer_continues_its_prompt(prompt: list[int], answer: list[int]) -> None:
    whole = decode_words(prompt) + streamed(Detokenizer(decode_words, prompt), answer)
    assert whole == decode_words([*prompt, *answer])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE, as Llama 3 has it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(["the cat sat on the mat, the naïve café"] * 10, trainer)
    return trained


@given(st.text(min_size=1))
def test_pieces_of_byte_level_bpe_are_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert streamed(Detokenizer(tokenizer.decode), ids) == tokenizer.decode(ids)
