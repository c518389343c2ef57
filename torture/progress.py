"""How far a long run is, told on standard error."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

EVERY_S = 15.0

T = TypeVar("T")


def told(each: Sequence[T], what: str) -> Iterator[T]:
    """`each`, and every `EVERY_S` seconds how many there were, and how long the rest will take."""
    yield from tqdm(each, what, mininterval=EVERY_S)
