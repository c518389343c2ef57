"""What is alive in this process: counted before and after, so that a leak has a number."""

import gc
import threading
from collections import Counter

import psutil

from npt_core.engine import Engine, Sequence, Stream
from npt_core.engine.page_table import PageTable
from npt_core.engine.sampler import Sampler


def resident_bytes() -> int:
    """Memory of this process that is in use now (not its peak)."""
    return int(psutil.Process().memory_info().rss)


def alive() -> Counter[str]:
    """Threads, and objects of requests that somebody still holds."""
    gc.collect()
    kinds = (Sequence, Stream, Sampler)
    found = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in kinds)
    found["threads"] = threading.active_count()
    return found


def unused(pages: PageTable, engine: Engine) -> bool:
    """Whether nobody but the prefix cache holds a page, and no page twice."""
    held = [pages.references(page) for page in range(pages.size)]
    return sum(held) == len(engine.prefix_cache) == pages.size - pages.free and max(held) <= 1


def is_idle(engine: Engine) -> bool:
    """Whether an engine has forgotten everybody it answered."""
    engine.execute(lambda: None)  # the step that gave the last token, and told so, is over
    return (
        (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)
        and not engine._samplers
        and unused(engine.pages, engine)
    )
