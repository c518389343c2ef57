from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from npt_core.training.tokenizer import BOS, EOS, PAD, load_tokenizer, train_tokenizer
from tests.npt_core.tiny import plain_template, texts, tokenizer


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    template = plain_template()
    assert template.decode(template.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["don't . , !", "  two  spaces ", "a\n\nb\t", "é 漢字 🙂", "ZPX-2031", "x" * 300]
)
def test_spaces_signs_and_other_scripts_come_back(text: str) -> None:
    template = plain_template()
    assert template.decode(template.encode(text)) == text


def test_special_tokens_have_fixed_ids_and_encoding_starts_with_the_start() -> None:
    t = tokenizer()
    assert t.convert_tokens_to_ids([PAD, BOS, EOS]) == [0, 1, 2]
    assert (t.pad_token_id, t.bos_token_id, t.eos_token_id) == (0, 1, 2)
    assert t.encode("a")[0] == 1
    assert t.encode("a").count(1) == 1
    assert 2 not in t.encode("a")
    assert 1 not in t.encode("a", add_special_tokens=False)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_every_digit_is_a_token_of_its_own(number: int) -> None:
    ids = tokenizer().encode(str(number), add_special_tokens=False)
    assert [tokenizer().decode([i]) for i in ids] == list(str(number))


def test_prompt_and_answer_encode_as_their_parts() -> None:
    """Training encodes spans, serving whole prompts: both must give the same ids."""
    t = tokenizer()
    for question, answer in (("Who leads Xyz?", " Ada Bell."), ("Question: Who?\nAnswer:", " 19.")):
        parts = [t.encode(x, add_special_tokens=False) for x in (question, answer)]
        assert t.encode(question + answer, add_special_tokens=False) == parts[0] + parts[1]


def test_training_is_reproducible() -> None:
    again = train_tokenizer(texts(), 400, 256)
    assert again.get_vocab() == tokenizer().get_vocab()
    assert len(again) == 400


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        text = "Context: Ada's code is 'ZX-19'.\nUser: What?\nAssistant:"
        assert loaded.encode(text) == tokenizer().encode(text)
        assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text
        assert loaded.chat_template == tokenizer().chat_template
        assert loaded.model_max_length == 256


def test_the_chat_template_ends_the_assistants_turns() -> None:
    messages = [
        {"role": "system", "content": "Ada leads Xyz."},
        {"role": "user", "content": "Who leads Xyz?"},
        {"role": "assistant", "content": "Ada."},
        {"role": "user", "content": "Who?"},
    ]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"Context: Ada leads Xyz.\nUser: Who leads Xyz?\nAssistant: Ada.{EOS}\nUser: Who?\nAssistant:"
    )
