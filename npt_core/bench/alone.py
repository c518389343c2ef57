"""A thread for one measurement."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` on a thread that ends with it; returns what it returns, raises what it raises.

    OpenMP (libgomp) keeps a team of workers for every thread that ever computed in parallel, until
    that thread ends. Once there are more of them than processors, waiting threads go to sleep at
    every barrier instead of spinning, and everything measured afterwards is two to three times
    slower. So whatever computes, loading included, gets a thread of its own here or in an engine
    that is closed before the next measurement, and the main thread never computes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="npt-bench") as executor:
        return executor.submit(work, *args, **kwargs).result()
