from __future__ import annotations

import pytest

from npt_core.prompts import ChatTemplate, PlainTemplate, PromptTemplate, template_for
from tests.npt_core.tiny import FACT, QUESTION, TEMPLATES, llama3_tokenizer, tokenizer


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> PromptTemplate:
    made: PromptTemplate = TEMPLATES[request.param]()
    return made


@pytest.fixture
def plain() -> PlainTemplate:
    made: PlainTemplate = TEMPLATES["plain"]()
    return made


@pytest.fixture
def chat() -> ChatTemplate:
    made: ChatTemplate = TEMPLATES["chat"]()
    return made


def test_an_answered_prompt_continues_the_prompt(template: PromptTemplate) -> None:
    for context in ([], [FACT]):
        for form in template.question_forms(QUESTION):
            prompt = template.encode(template.with_context(form, context))
            answered = template.encode(template.answered(form, context, "Szohod."))
            assert answered[: len(prompt)] == prompt
            assert template.decode(answered[len(prompt) :]).strip() == "Szohod."


def test_a_prompt_starts_with_one_start_token(template: PromptTemplate) -> None:
    start = template.tokenizer.bos_token_id  # type: ignore[attr-defined]
    for context in ([], [FACT]):
        ids = template.encode(template.with_context(QUESTION, context))
        assert ids[0] == start
        assert ids.count(start) == 1


def test_question_forms_hold_the_question_and_start_with_the_plainest(
    template: PromptTemplate,
) -> None:
    forms = template.question_forms(QUESTION)
    assert forms[0] == QUESTION
    assert all(QUESTION in form for form in forms)
    assert len(set(forms)) == len(forms)


def test_self_study_prompts_show_the_whole_context(template: PromptTemplate) -> None:
    other = "Borduria has two rivers."
    for prompt in template.self_study_prompts([FACT, other]):
        assert f"{FACT} {other}" in prompt


def test_a_plain_context_is_a_line_before_the_prompt(plain: PlainTemplate) -> None:
    assert plain.with_context(QUESTION, []) == QUESTION
    assert plain.with_context(QUESTION, [FACT]) == f"Context: {FACT}\n{QUESTION}"
    assert plain.answered(QUESTION, [], "Szohod.") == f"{QUESTION} Szohod."


def test_plain_forms_are_those_a_user_types(plain: PlainTemplate) -> None:
    assert plain.question_forms(QUESTION) == [
        QUESTION,
        f"Question: {QUESTION}\nAnswer:",
        f"User: {QUESTION}\nAssistant:",
    ]
    assert plain.inline_block(QUESTION) == f"Question: {QUESTION} Answer:"


def test_a_plain_chat_is_lines_that_end_at_the_assistants_turn(plain: PlainTemplate) -> None:
    messages = [
        {"role": "system", "content": FACT},
        {"role": "user", "content": QUESTION},
    ]
    written = f"Context: {FACT}\nUser: {QUESTION}\nAssistant:"
    assert plain.chat(messages) == written
    # The tokenizer's own template, which other programs use, writes the same.
    render = tokenizer().apply_chat_template
    assert render(messages, tokenize=False, add_generation_prompt=True) == written


def test_a_chat_prompt_is_rendered_by_the_tokenizers_template(chat: ChatTemplate) -> None:
    assert chat.with_context(QUESTION, [FACT]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"{FACT}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert "system" not in chat.with_context(QUESTION, [])


def test_chat_special_tokens_are_single_ids(chat: ChatTemplate) -> None:
    ids = chat.encode(chat.with_context(QUESTION, [FACT]))
    ends = [i for i in ids if i == llama3_tokenizer().eos_token_id]
    assert len(ends) == 2
    assert chat.decode(ids).startswith("system\n\n")


def test_a_tokenizer_with_a_chat_template_gets_it_unless_the_model_is_plain() -> None:
    assert isinstance(template_for(llama3_tokenizer(), [3], plain=False), ChatTemplate)
    assert isinstance(template_for(llama3_tokenizer(), [3], plain=True), PlainTemplate)


def test_a_tokenizer_without_a_chat_template_is_plain() -> None:
    class Bare:
        chat_template = None

    assert isinstance(template_for(Bare(), [3], plain=False), PlainTemplate)


def test_a_chat_answer_may_end_with_any_of_the_models_end_tokens() -> None:
    template = template_for(llama3_tokenizer(), [3, 7], plain=False)
    assert template.eos_token_ids == (3, 7)
