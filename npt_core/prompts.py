"""Prompt text at the edge: how a context, a question and a chat turn are written for a model.

Two templates with one contract: `PlainTemplate` for base models and the reference model, and
`ChatTemplate` for instruct models, which have a chat template of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

UNKNOWN_ANSWER = "I don't know."
"""What the reference model is trained to say about a fact it was never given."""

Message = dict[str, str]


class PromptTemplate(Protocol):
    """Writes prompts in the form that one model was trained on, and turns text into ids."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer; the first is the one to write."""

    def encode(self, text: str) -> list[int]:
        """The ids of a whole prompt, with the start token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""

    def with_context(self, prompt: str, context: Sequence[str]) -> str:
        """`prompt` with the sentences of `context` before it."""

    def question_forms(self, question: str) -> list[str]:
        """Every form in which a user may put `question`, the plainest first."""

    def answered(self, prompt: str, context: Sequence[str], answer: str) -> str:
        """`with_context(prompt, context)` followed by `answer`, as the model would write it."""

    def self_study_prompts(self, context: Sequence[str]) -> tuple[str, str]:
        """Prompts after which the model writes a question, and a restatement, about `context`."""

    def chat(self, messages: Sequence[Message]) -> str:
        """A conversation, ending where the assistant's next turn begins."""


@dataclass(frozen=True)
class PlainTemplate:
    """Plain text: `Context: ...` on a line of its own, then the prompt as typed."""

    tokenizer: Any

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's end token."""
        return (self.tokenizer.eos_token_id,)

    def encode(self, text: str) -> list[int]:
        """Start token and text."""
        ids: list[int] = self.tokenizer.encode(text, verbose=False)  # lengths are checked later
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @staticmethod
    def with_context(prompt: str, context: Sequence[str]) -> str:
        """`prompt` after a `Context:` line; without a context, `prompt` itself."""
        return f"Context: {' '.join(context)}\n{prompt}" if context else prompt

    @staticmethod
    def question_forms(question: str) -> list[str]:
        """Bare, as a block, on one line, and as a chat turn."""
        return [
            question,
            f"Question: {question}\nAnswer:",
            f"User: {question}\nAssistant:",
        ]

    @staticmethod
    def inline_block(question: str) -> str:
        """The block on one line."""
        return f"Question: {question} Answer:"

    def answered(self, prompt: str, context: Sequence[str], answer: str) -> str:
        """The prompt, one space, the answer."""
        return f"{self.with_context(prompt, context)} {answer}"

    @staticmethod
    def self_study_prompts(context: Sequence[str]) -> tuple[str, str]:
        """A question block to fill, and an open line."""
        head = f"Context: {' '.join(context)}\n"
        return f"{head}Question:", head

    @staticmethod
    def chat(messages: Sequence[Message]) -> str:
        """`system` becomes the context; turns are `User:` and `Assistant:` lines."""
        names = {"system": "Context", "user": "User", "assistant": "Assistant"}
        turns = [f"{names[m['role']]}: {m['content']}" for m in messages]
        return "\n".join([*turns, "Assistant:"])


@dataclass(frozen=True)
class ChatTemplate:
    """An instruct model's own chat template; a context is its system message."""

    tokenizer: Any
    eos_token_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered conversation; the template wrote its special tokens itself."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Message]) -> str:
        """The conversation rendered by the tokenizer's template, with the generation prompt."""
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return text

    def with_context(self, prompt: str, context: Sequence[str]) -> str:
        """One user turn; the context as a system message before it."""
        system = [{"role": "system", "content": " ".join(context)}] if context else []
        return self.chat([*system, {"role": "user", "content": prompt}])

    @staticmethod
    def question_forms(question: str) -> list[str]:
        """The question as the user's turn."""
        return [question]

    def answered(self, prompt: str, context: Sequence[str], answer: str) -> str:
        """The rendered turn, then the answer at once."""
        return self.with_context(prompt, context) + answer

    def self_study_prompts(self, context: Sequence[str]) -> tuple[str, str]:
        """Requests, in words, for one question and for one restatement."""
        ask = "Write one short question that the context answers, then its short answer on a new line."
        restate = "Restate the context in one short sentence."
        return self.with_context(ask, context), self.with_context(restate, context)


def template_for(tokenizer: Any, end_ids: Sequence[int], plain: bool) -> PromptTemplate:
    """The template of a checkpoint: its chat template if it has one, unless it is a `plain` text
    model.
    """
    if plain or not getattr(tokenizer, "chat_template", None):
        return PlainTemplate(tokenizer)
    return ChatTemplate(tokenizer, tuple(end_ids))
