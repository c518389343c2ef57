"""Threads that compute."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def alone(work: Callable[[], T]) -> T:
    """What `work` returns or raises, computed on a thread that ends with it.

    libgomp keeps workers for every thread that ever computed in parallel. Once these are more than
    the processors, all of them sleep between products instead of spinning, and an engine beside
    them is two to three times slower. Those of a thread that ends are gone.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="npt-alone") as executor:
        return executor.submit(work).result()
