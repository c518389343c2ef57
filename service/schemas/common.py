"""Shared shapes of requests and answers."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

T = TypeVar("T")


class In(BaseModel):
    """A request body: no unknown fields, no guessing at types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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


def printable(text: str) -> str:
    """Refuses control characters, which no tokenizer and no reader expects."""
    found = next((c for c in text if ord(c) < 32 and c not in "\n\r\t"), None)
    if found is not None:
        raise ValueError(f"must not contain the control character U+{ord(found):04X}")
    return text


Printable = AfterValidator(printable)
Text = Annotated[str, Printable]
