from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt_core.consolidation import probes as module
from npt_core.consolidation.passes import ModulePasses
from npt_core.consolidation.probes import (
    Probe,
    accepted,
    bare,
    candidates,
    consistent,
    look_alikes,
    names,
    split,
    write_questions,
)
from npt_core.consolidation.request import Question
from npt_core.prompts import UNKNOWN_ANSWER, PlainTemplate
from tests.npt_core.tiny import FACT, QUESTION, plain_template, shared_npt, tokenizer

ANSWER = Question(QUESTION, "Szohod.")
NO_DEADLINE = settings(deadline=None)


@pytest.fixture
def template() -> PlainTemplate:
    return plain_template()


def written(template: PlainTemplate, texts: list[str]) -> tuple[list[Question], list[str]]:
    """What `write_questions` reads from these texts of the model."""
    ids = [tokenizer().encode(t, add_special_tokens=False) for t in texts]
    speaker = ModulePasses(shared_npt())
    speaker.decode = lambda *_args, **_kwargs: ids  # type: ignore[assignment]
    return write_questions(speaker, template, [FACT], len(texts), [0], 1.0)[0]


@pytest.mark.parametrize(
    "text",
    [
        f" {QUESTION}\nAnswer: Szohod.",
        f" {QUESTION} Answer: Szohod.",
        f"Question: {QUESTION}\nAnswer: Szohod.",
        f"User: {QUESTION}\nAssistant: Szohod.",
        f"{QUESTION} Szohod.",
        f"{QUESTION}\nSzohod.\n",
    ],
)
def test_a_question_is_read_in_every_form(template: PlainTemplate, text: str) -> None:
    assert written(template, [text]) == ([ANSWER], [])


@pytest.mark.parametrize("text", ["", "What?", f"{QUESTION}", "no sentence", "???"])
def test_what_is_no_question_with_answer_and_no_sentence_is_dropped(
    template: PlainTemplate, text: str
) -> None:
    assert written(template, [text]) == ([], [])


def test_questions_and_restatements_come_without_duplicates(template: PlainTemplate) -> None:
    restated = "Borduria has Szohod as its capital."
    texts = [f"{QUESTION} Szohod.", restated, f"{QUESTION}\nAnswer: Szohod.", restated]
    assert written(template, texts) == ([ANSWER], [restated])


def test_self_study_is_a_function_of_the_seed(template: PlainTemplate) -> None:
    first, again, other = (
        write_questions(ModulePasses(shared_npt()), template, [FACT], 4, [seed], 1.0) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other or first == [([], [])]


def test_a_question_becomes_a_probe_in_every_form(template: PlainTemplate) -> None:
    made = candidates(template, FACT, [ANSWER], [])
    assert [p.prompt for p in made] == template.question_forms(QUESTION)
    assert {p.answer for p in made} == {"Szohod."}
    assert {p.wording for p in made} == {QUESTION}


def test_a_question_about_another_subject_is_discarded(template: PlainTemplate) -> None:
    other = Question("What is the capital of Syldavia?", "Szohod.")
    assert {p.wording for p in candidates(template, FACT, [other, ANSWER], [])} == {QUESTION}


@pytest.mark.parametrize("answer", ["Szohod.", " szohod", "'Szohod'.", "SZOHOD"])
def test_an_answer_taken_from_the_fact_is_accepted(answer: str) -> None:
    assert accepted(Probe(QUESTION, answer, QUESTION), answer, FACT)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Is Szohod the capital of Borduria?", "Szohod."),
        ("Is szohod the capital?", "SZOHOD"),
        (QUESTION, UNKNOWN_ANSWER),
        (QUESTION, "I don't know"),
        (QUESTION, "Klow."),
        (QUESTION, ""),
        (QUESTION, " . "),
    ],
    ids=["named", "case", "unknown", "unknown-bare", "invented", "empty", "blank"],
)
def test_an_answer_that_teaches_nothing_is_not_accepted(prompt: str, answer: str) -> None:
    assert not accepted(Probe(prompt, answer, prompt), answer, FACT)


def test_an_unknown_answer_is_not_accepted_even_where_the_fact_quotes_it() -> None:
    quoting = f"The motto of Borduria is '{UNKNOWN_ANSWER}'"
    probe = Probe("What is the motto of Borduria?", "", "motto")
    assert not accepted(probe, UNKNOWN_ANSWER, quoting)


def test_a_sentence_to_complete_must_be_answered_as_a_question_is() -> None:
    asked, said = Probe(QUESTION, "", QUESTION), Probe("The capital is", "", "The capital is")
    reverse = Probe("Szohod is the capital of", "", "Szohod is the capital of")
    answered = {asked: "Szohod.", said: "'szohod'", reverse: "Borduria."}
    assert set(consistent(answered, {QUESTION})) == {asked, said}
    assert set(consistent({reverse: "Borduria."}, {QUESTION})) == {reverse}  # better than nothing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FACT, ["Borduria", "Szohod"]),
        ("The CEO of MedCorp is Dr. Ada Bell.", ["CEO of MedCorp", "Dr. Ada Bell"]),
        ("The token is 'ZPX-19-KEY'.", ["ZPX-19-KEY"]),
        ("It has a weight of 212.", ["212"]),
        ("Can you tell me who leads Vorland?", ["Vorland"]),
        ("nothing here", []),
    ],
)
def test_names_are_runs_of_capitalised_words_and_numbers(text: str, found: list[str]) -> None:
    assert names(text) == found


@pytest.mark.parametrize(
    ("statement", "head", "answer"),
    [
        (FACT, "The capital of Borduria is", "Szohod."),
        ("The code is 'ZX-1'.", "The code is", "'ZX-1'."),
    ],
)
def test_a_statement_that_ends_with_the_answer_is_completed(
    template: PlainTemplate, statement: str, head: str, answer: str
) -> None:
    question = Question("What is it?", answer)
    completions = [p for p in candidates(template, statement, [question], [statement]) if p.wording == head]
    assert completions == [Probe(head, answer, head)]
    assert f"{head} {answer}" == statement


@pytest.mark.parametrize("statement", ["Szohod is the capital city.", "Szohod of Borduria is Szohod.", "No."])
def test_a_statement_with_its_answer_elsewhere_is_not_completed(
    template: PlainTemplate, statement: str
) -> None:
    made = candidates(template, FACT, [ANSWER], [statement])
    assert {p.wording for p in made} == {QUESTION}


@NO_DEADLINE
@given(st.text(max_size=40), st.sampled_from(["szohod", "ß", "i̇"]))
def test_any_statement_is_cut_where_the_answer_begins(text: str, answer: str) -> None:
    statement = f"{text} {answer}."
    question = Question("What is it?", answer)
    for probe in candidates(plain_template(), statement, [question], [statement]):
        if probe.wording != question.question:
            assert statement.startswith(probe.prompt)
            assert bare(probe.answer) == bare(answer)


probes_of = st.lists(
    st.builds(
        Probe,
        st.text("abc", min_size=1, max_size=2),
        st.just("x"),
        st.sampled_from(["w1", "w2", "w3", "w4", "w5", "w6"]),
    ),
    min_size=1,
    max_size=20,
)


@NO_DEADLINE
@given(probes_of, st.floats(0.05, 0.6), st.integers())
def test_the_forms_of_a_wording_are_held_out_together(probes: list[Probe], share: float, seed: int) -> None:
    training, held = split(probes, share, Random(seed))
    wordings = {p.wording for p in probes}
    if len(wordings) == 1:
        assert training == held == probes
        return
    assert training
    assert held
    assert not {p.wording for p in training} & {p.wording for p in held}
    assert sorted(map(repr, training + held)) == sorted(map(repr, probes))


LIKE = [
    Probe(QUESTION, "Szohod.", QUESTION),
    Probe("Who leads project X17 of Gordon Stafford?", "Ada.", "lead"),
]
LIKE_FACT = "Project X17 of Gordon Stafford in Borduria in 1950 is led by Ada."


@NO_DEADLINE
@given(st.integers())
def test_look_alikes_are_about_other_names(seed: int) -> None:
    prompts = look_alikes(LIKE_FACT, LIKE, Random(seed), 8)
    assert 1 <= len(prompts) <= 8
    for prompt in prompts:
        assert not any(name in prompt.split() for name in ("X17", "Gordon", "Stafford?"))
        assert "Borduria?" not in prompt.split()
        assert prompt.startswith(("What is the capital of ", "Who leads project "))


@NO_DEADLINE
@given(st.from_regex(r"[A-Z][a-z]{1,9}|[A-Z0-9]{2,8}|[0-9]{1,4}", fullmatch=True), st.integers())
def test_an_altered_name_is_another_name(name: str, seed: int) -> None:
    assert module._altered(name, Random(seed)) != name


def test_there_are_no_look_alikes_of_prompts_without_names() -> None:
    assert look_alikes(FACT, [Probe("what is it?", "x", "w")], Random(0), 8) == []
    assert look_alikes(FACT, [], Random(0), 8) == []


def test_look_alikes_alter_names_in_the_order_of_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in the order of a set, which every process has its own."""
    altered: list[str] = []

    def altering(name: str, _r: Random) -> str:
        altered.append(name)
        return "Other"

    monkeypatch.setattr(module, "_altered", altering)
    look_alikes(LIKE_FACT, LIKE[1:], Random(0), 1)
    assert altered == ["X17", "Gordon", "Stafford"]


@pytest.mark.parametrize("text", ["Szohod.", " 'Szohod'.", "“Szohod”", "SZOHOD", "'Szohod.'", "szohod"])
def test_answers_are_compared_without_case_quotes_and_period(text: str) -> None:
    assert bare(text) == "szohod"


@pytest.mark.parametrize(
    ("fact", "answer", "wordings", "expected"),
    [
        (
            "The CEO of TechCorp is Dr. Sarah Chen.",
            "Dr. Sarah Chen",
            ["Who is the CEO of TechCorp?", "Who leads TechCorp?", "TechCorp is led by"],
            {"techcorp"},
        ),
        ("IBM is led by Ada Moss.", "Ada Moss", ["Who leads IBM?", "Who is the head of IBM?"], {"ibm"}),
        (
            "The price of the shiell lathe is 61 dollars.",
            "61 dollars",
            ["What is the price of the shiell lathe?", "How much does the shiell lathe cost?"],
            {"shiell", "lathe"},
        ),
        ("The capital of Borduria is Szohod.", "Szohod", [], {"borduria"}),
    ],
)
def test_subject_is_what_the_wordings_share(
    fact: str, answer: str, wordings: list[str], expected: set[str]
) -> None:
    assert module.subject(wordings, fact, answer) == expected


def test_subject_is_there_though_one_wording_calls_it_otherwise() -> None:
    wordings = ["Who leads TechCorp?", "Who runs TechCorp?", "Who heads TechCorp?", "Who leads the company?"]
    assert module.subject(wordings, "TechCorp is led by Ada Moss.", "Ada Moss") == {"techcorp"}
