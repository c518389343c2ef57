"""Threads that compute."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` on a thread that ends with it; returns what it returns, raises what it raises.

    OpenMP (libgomp) keeps a team of workers for every thread that ever computed in parallel, until
    that thread ends. Once there are more of them than processors, waiting threads go to sleep at
    every barrier instead of spinning, and every step of an engine is two to three times slower. So
    whatever computes beside an engine, such as loading, gets a thread of its own here, and the main
    thread never computes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="npt-alone") as executor:
        return executor.submit(work, *args, **kwargs).result()
