"""Shared shapes of requests and answers."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    StringConstraints,
    model_validator,
)

T = TypeVar("T")


class In(BaseModel):
    """A request body: no unknown fields, no guessing at types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _with_integers(cls, body: Any) -> Any:
        return {name: whole(value) for name, value in body.items()} if isinstance(body, dict) else body


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


class Page(Out, Generic[T]):
    """One page of a list; pass `next_cursor` as `cursor` for the next one."""

    items: list[T]
    next_cursor: str | None = Field(None, description="null on the last page")
    weights_version: int = Field(description="the newest version when this was answered")


def one_or_many(value: Any) -> Any:
    """A lone string as a list of one."""
    return [value] if isinstance(value, str) else value


_CONTROLS = r"\u0000-\u0008\u000B\u000C\u000E-\u001F"
_SPACES = r"\u0009-\u000D\u0020\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
"""What is stripped."""
_NOT_PRINTABLE = re.compile(rf"[{_CONTROLS}\ud800-\udfff]")


def printable(text: str) -> str:
    """Refuses control characters, which no tokenizer and no reader expects, and what is no text."""
    found = _NOT_PRINTABLE.search(text)
    if found is None:
        return text
    if found[0] > "\x1f":
        raise ValueError("must not contain half a surrogate pair")
    raise ValueError(f"must not contain the control character U+{ord(found[0]):04X}")


def whole(value: Any, depth: int = 2) -> Any:
    """A number without a fraction is an integer, however it is written, as JSON Schema has it; so are those
    of lists, down to `depth`, which no field of integers exceeds.
    """
    if isinstance(value, list) and depth:
        return [whole(each, depth - 1) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def described(**keywords: Any) -> GetPydanticSchema:
    """JSON Schema of what a validator refuses, so that the document refuses it, too."""

    def described_so(core: Any, handler: Any) -> dict[str, Any]:
        schema: Mapping[str, Any] = handler(core)
        return {**schema, **keywords}

    return GetPydanticSchema(get_pydantic_json_schema=described_so)


IS_PRINTABLE = AfterValidator(printable)
AS_PATTERN = described(pattern=f"^[^{_CONTROLS}]*$")
Printable = Annotated[str, IS_PRINTABLE, AS_PATTERN]
Prompt = Annotated[str, StringConstraints(min_length=1), IS_PRINTABLE, AS_PATTERN]
AS_PATTERN_OF_STRIPPED = described(pattern=f"^[^{_CONTROLS}]*[^{_CONTROLS}{_SPACES}][^{_CONTROLS}]*$")
"""There is something left."""
