"""The reader and the comparison that the README test relies on."""

import pytest

from tests.transcript import Step, compare, steps


def test_steps_are_commands_with_their_output() -> None:
    markdown = (
        "text\n```sh\n$ not this\n```\n"
        "```console\n$ one\na\n\nb\n$ two \\\n  -x\n$ three '{\n> }'\nc\n```\n"
        "```console\n$ four\n```\n"
    )
    assert steps(markdown) == [
        Step("one", "a\n\nb"),
        Step("two \\\n  -x", ""),
        Step("three '{\n}'", "c"),
        Step("four", ""),
    ]


def test_output_before_a_command_is_refused() -> None:
    with pytest.raises(ValueError, match="before any command"):
        steps("```console\noutput\n```\n")


@pytest.mark.parametrize(
    ("printed", "real"),
    [
        ("plain text", "plain text\n"),
        ('{"a": 1, "b": [true, null]}', '{\n  "b": [true, null],\n  "a": 1\n}'),
        ('{"recall": 0.97}', '{"recall": 0.98}'),
        ('{"recall": 1.0}', '{"recall": 1}'),
        ('{"id": "x", "created_at": "now"}', '{"id": "y", "created_at": "then"}'),
        (
            '{"timings": {"total_ms": 10, "stages": [1.5]}}',
            '{"timings": {"total_ms": 99.5, "stages": [7]}}',
        ),
        (
            'event: token\ndata: {"id": "x", "text": "a"}',
            'event: token\ndata: {"text": "a", "id": "y"}',
        ),
    ],
)
def test_equal_outputs(printed: str, real: str) -> None:
    compare(printed, real)


@pytest.mark.parametrize(
    ("printed", "real"),
    [
        ("plain text", "other text"),
        ("one line", "one line\nand another"),
        ('{"weights_version": 1}', '{"weights_version": 2}'),
        ('{"recall": 0.97}', '{"recall": 0.5}'),
        ('{"text": "Ann"}', '{"text": "Bob"}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": true}', '{"a": 1}'),
        ('{"id": "x"}', '{"id": 7}'),
        ('{"timings": {"total_ms": 1}}', '{"timings": {"other_ms": 1}}'),
        ('{"timings": {"unit": "ms"}}', '{"timings": {"unit": "s"}}'),
        ("[1]", "[1, 2]"),
        ('data: {"text": "a"}', '{"text": "a"}'),
        ('{"text": "a"}', "curl: no answer"),
    ],
)
def test_different_outputs(printed: str, real: str) -> None:
    with pytest.raises(AssertionError):
        compare(printed, real)


def test_a_printed_id_stands_for_the_real_one() -> None:
    assert compare('{"items": [{"id": "fact_1"}]}', '{"items": [{"id": "fact_9"}]}') == {"fact_1": "fact_9"}
