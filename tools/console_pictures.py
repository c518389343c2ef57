"""The pictures of docs/console.md, taken of a server of the reference model that learns, forgets and is
rolled back: `python -m tools.console_pictures`. Looks as it should where the font Inter is installed
(Debian: fonts-inter).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, Page, sync_playwright

from tools.chromium import FLAGS, chromium
from tools.serving import serving

DESKTOP = {"viewport": {"width": 1200, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
FACTS = [
    ("The capital of Atlantis is Poseidon.", "atlas, 3rd edition"),
    ("The element Trilium has an atomic weight of 350.", "lab report 17"),
    ("The codename for project Chronos is 'Sundial'.", "minutes of 12 May"),
    ("The Zephyr API uses authentication token 'ZPH-2024-SECRET'.", "runbook"),
    ("The CEO of TechCorp is Maria Lopez.", "annual report"),
]
NEW = ("The CEO of TechCorp is Dr. Sarah Chen.", "press release")
QUESTION = "Who is the CEO of TechCorp?"
UNREADABLE = "??? !!! ..."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="models/reference")
    arguments.add_argument("--out", type=Path, default=Path("docs/console"))
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="npt-pictures-") as name:
        data = Path(name) / "data"
        keys = [key_of(data, who) for who in ("newsroom", "lab")]
        with serving(data, given.model) as url, sync_playwright() as playwright:
            fill(url, keys)
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            take(browser, f"{url}/console", keys[0], given.out)
            browser.close()


def key_of(data: Path, name: str) -> str:
    """A key that may do everything."""
    command = [sys.executable, "-m", "service.cli", "keys", "create", name, "--scope", "admin"]
    done = subprocess.run([*command, "--data", str(data)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def fill(url: str, keys: list[str]) -> None:
    """A history with everything that a history can have but folds."""
    with httpx2.Client(base_url=url, timeout=120) as client:
        for number, (fact, source) in enumerate(FACTS):
            client.headers["Authorization"] = f"Bearer {keys[number % len(keys)]}"
            body = {"fact": fact, "metadata": {"source": source}}
            made = client.post("/facts", json=body).raise_for_status().json()
        client.delete(f"/facts/{made['id']}").raise_for_status()
        client.post(f"/versions/{made['weights_version']}/activate").raise_for_status()


def take(browser: Browser, url: str, key: str, out: Path) -> None:
    """Every picture, as <view>-<screen>-<scheme>.png."""
    with page_of(browser, url, key, "light", DESKTOP) as page:
        teach(page, *NEW)
        page.get_by_text("Known from version").first.wait_for()
        page.get_by_text(NEW[0]).nth(1).wait_for()
        page.screenshot(path=out / "facts-desktop-light.png")
        ask(page, QUESTION)
        page.screenshot(path=out / "ask-desktop-light.png")
    with page_of(browser, url, key, "dark", DESKTOP) as page:
        show(page, "Versions")
        page.locator("[data-version='8']").get_by_role("button", name="Diff").click()
        page.get_by_text("Only v8 knows").wait_for()
        page.screenshot(path=out / "versions-desktop-dark.png")
    with page_of(browser, url, key, "dark", PHONE) as page:
        page.get_by_text(NEW[0]).wait_for()
        page.screenshot(path=out / "facts-phone-dark.png")
        ask(page, QUESTION)
        page.get_by_role("region", name="Answer of the right version").scroll_into_view_if_needed()
        page.screenshot(path=out / "ask-phone-dark.png")
    with page_of(browser, url, key, "light", PHONE) as page:
        teach(page, UNREADABLE, "")
        page.get_by_role("alert").wait_for()
        page.screenshot(path=out / "refused-phone-light.png")


@contextmanager
def page_of(browser: Browser, url: str, key: str, scheme: str, screen: dict[str, object]) -> Iterator[Page]:
    """The console in a browser of its own, signed in."""
    context = browser.new_context(color_scheme=scheme, **screen)
    context.add_init_script(f"sessionStorage.setItem('npt.key', '{key}')")
    page = context.new_page()
    page.goto(url)
    page.get_by_role("navigation", name="Views").get_by_role("link").first.wait_for()
    yield page
    context.close()


def show(page: Page, view: str) -> None:
    page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()


def teach(page: Page, fact: str, source: str) -> None:
    page.get_by_label("Fact", exact=True).fill(fact)
    page.get_by_label("Source").fill(source)
    page.get_by_role("button", name="Teach").click()


def ask(page: Page, question: str) -> None:
    show(page, "Ask")
    page.get_by_label("Prompt").fill(question)
    page.get_by_role("button", name="Ask both").click()
    for side in ("left", "right"):
        page.get_by_role("region", name=f"Answer of the {side} version").locator(".heat").wait_for()
    page.evaluate("scrollTo(0, 0)")


if __name__ == "__main__":
    main()
