"""How long the console takes to be seen: `python benchmarks/console.py`.

A server of the reference model with a few facts, and Chromium on the same machine. First contentful paint and
the list of facts, in milliseconds since the page was asked for: in a browser that was never there, and in one
that knows its files.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tools.chromium import FLAGS, chromium
from tools.serving import serving

FACTS = ("The CEO of TechCorp is Dr. Sarah Chen.", "The capital of Atlantis is Poseidon.")
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
NOW = "performance.now()"
SIZE = "performance.getEntriesByType('resource').reduce((sum, each) => sum + each.transferSize, 0)"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="models/reference")
    arguments.add_argument("--visits", type=int, default=10)
    given = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="npt-console-") as name,
        serving(Path(name) / "data", given.model) as url,
        sync_playwright() as playwright,
    ):
        for fact in FACTS:
            httpx2.post(f"{url}/facts", json={"fact": fact}, timeout=120).raise_for_status()
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        visit(browser.new_context(), url)  # the browser itself warms up
        told("first visit", first_visits(browser, url, given.visits))
        known = browser.new_context()
        visit(known, url)
        told("next visits", [visit(known, url) for _ in range(given.visits)])
        browser.close()


def first_visits(browser: Browser, url: str, visits: int) -> list[tuple[float, float, float]]:
    """Each by somebody else."""
    return [visit(browser.new_context(), url) for _ in range(visits)]


def visit(context: BrowserContext, url: str) -> tuple[float, float, float]:
    """Milliseconds to the first paint and to the list of facts; kilobytes that were sent."""
    page = context.new_page()
    page.goto(f"{url}/console")
    page.get_by_text(FACTS[0]).wait_for()
    listed = page.evaluate(NOW)
    page.wait_for_function(PAINT)
    measured = page.evaluate(PAINT), listed, page.evaluate(SIZE) / 1000
    page.close()
    return measured


def told(name: str, visits: Sequence[tuple[float, float, float]]) -> None:
    paints, lists, sizes = (sorted(each) for each in zip(*visits, strict=True))
    print(
        f"{name}: first paint {statistics.median(paints):.0f} ms (slowest {paints[-1]:.0f}), facts listed "
        f"{statistics.median(lists):.0f} ms (slowest {lists[-1]:.0f}), {statistics.median(sizes):.0f} kB"
    )


if __name__ == "__main__":
    main()
