"""axe-core looks at every view, in both schemes and on a small screen."""

import threading
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from service.host import Host
from service.ledger.api_keys import ApiKeys, Scope
from tests.service.conftest import fake
from tests.service.console.conftest import OpenPage
from tests.service.console.test_story import QUESTION, answer_of, row_of, show, teach

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}


def look(page: Page) -> None:
    """axe may find nothing, serious or not."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    told = [
        f"{each['id']}: {node['html'][:120]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]
    assert told == []


def fits(page: Page) -> bool:
    """Whether nothing is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_view_is_open_to_everybody(
    host: Host, open_page: OpenPage, scheme: str, screen: dict[str, int]
) -> None:
    # axe writes styles into the page, which it may not do by itself.
    page = open_page(color_scheme=scheme, viewport=screen, bypass_csp=True, reduced_motion="reduce")
    gate = fake(host).consolidator.step_gate = threading.Semaphore(0)
    teach(page)
    expect(page.locator("[aria-current=step]")).to_contain_text("Study")
    look(page)
    gate.release(100)
    row_of(page).get_by_role("button", name="The CEO").click()
    page.get_by_text("More", exact=True).click()
    look(page)
    teach(page, "This is forgettable.")
    expect(page.get_by_role("alert")).to_be_visible()
    look(page)
    show(page, "Versions")
    page.locator("[data-version='1']").get_by_role("button", name="Diff").click()
    expect(page.get_by_text("Only v1 knows")).to_be_visible()
    look(page)
    assert fits(page)
    page.locator("[data-version='0']").get_by_role("button", name="Make current").click()
    look(page)
    page.get_by_role("button", name="Cancel").click()
    show(page, "Ask")
    page.get_by_label("Prompt").fill(QUESTION)
    page.get_by_role("button", name="Ask both").click()
    expect(answer_of(page, "right").locator(".said")).to_be_visible()
    look(page)
    assert fits(page)


def test_asking_for_a_key_is_open_to_everybody(host: Host, open_page: OpenPage) -> None:
    ApiKeys(host.ledger).create("newsroom", [Scope.ADMIN], "test")
    host.access.refresh()
    page = open_page(bypass_csp=True)
    expect(page.get_by_role("dialog")).to_be_visible()
    look(page)


def test_page_without_a_label_is_found_out(open_page: OpenPage) -> None:
    page = open_page(bypass_csp=True)
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    page.evaluate(
        "document.querySelector('[name=fact]').closest('label').replaceWith(document.createElement('input'))"
    )
    with pytest.raises(AssertionError, match="label"):
        look(page)


def test_a_fact_is_taught_and_retracted_with_the_keyboard_alone(host: Host, page: Page) -> None:
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    page.keyboard.press("Tab")
    assert focused(page)["text"] == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page)["name"] == "fact"
    page.keyboard.type("The sky is blue.")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert focused(page)["text"] == "Teach"
    assert focused(page)["outline"] == "solid"
    page.keyboard.press("Enter")
    row = row_of(page, "The sky is blue.")
    expect(row).to_be_visible()
    row.get_by_role("button", name="Retract").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert focused(page)["text"] == "Retract"
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert host.version == 1
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    assert host.version == 2


def focused(page: Page) -> Any:
    return page.locator(":focus").evaluate(
        "e => ({ text: e.textContent, name: e.name, outline: getComputedStyle(e).outlineStyle })"
    )
