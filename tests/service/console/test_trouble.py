"""What is between the console and its server: gateways, several replicas, keys; and lists that are long."""

import json
import re
import threading

from playwright.sync_api import Page, Route, expect

from service.host import Host
from service.ledger.api_keys import Scope
from tests.service.conftest import fake
from tests.service.console.conftest import OpenPage
from tests.service.console.test_story import (
    FACT,
    KeyFor,
    answer_of,
    key_for,  # noqa: F401
    row_of,
    show,
    sign_in,
    teach,
)

PULSE = re.compile(r"/console/icon\.svg$")
LISTEN_MS = 5000
BEHIND_MS = 60_000


def problem(status: int, type_: str, detail: str) -> dict[str, object]:
    """What `Route.fulfill` is told of a problem."""
    body = {"type": type_, "title": "No", "detail": detail}
    return {"status": status, "body": json.dumps(body), "content_type": "application/problem+json"}


def listen(page: Page) -> None:
    """Until the page has listened once more; its clock is one of the test."""
    with page.expect_response(PULSE):
        page.clock.run_for(LISTEN_MS)


def hear(page: Page, version: int) -> None:
    """As the answer of some replica says it."""
    page.evaluate("async (version) => (await import('/console/api.js')).heardOf(version)", version)


def with_pages_of(page: Page, file: str, **sizes: int) -> None:
    """Give the constants of a script other values."""

    def smaller(route: Route) -> None:
        answer = route.fetch()
        body = answer.text()
        for name, value in sizes.items():
            body, found = re.subn(rf"(?m)^const {name} = \d+;", f"const {name} = {value};", body)
            assert found == 1
        route.fulfill(response=answer, body=body)

    page.route(f"**/console/{file}", smaller)
    page.reload()


def test_gateway_that_leads_to_no_probe_is_no_lost_connection(page: Page) -> None:
    page.clock.install()
    page.route(re.compile(r"/(livez|readyz|startupz)$"), lambda route: route.fulfill(status=404))
    page.reload()
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    listen(page)
    listen(page)
    expect(page.get_by_text("Connection lost.")).to_have_count(0)


def test_gateway_without_a_server_is_a_lost_connection_until_there_is_one(host: Host, page: Page) -> None:
    page.clock.install()
    page.reload()
    page.route(PULSE, lambda route: route.fulfill(status=503, body="no healthy upstream"))
    listen(page)
    expect(page.get_by_text("Connection lost.")).to_be_visible()
    host.writer.activate(0)
    page.unroute(PULSE)
    page.route(PULSE, lambda route: route.fulfill(status=404, headers={"X-NPT-Weights-Version": "1"}))
    listen(page)
    expect(page.get_by_text("Connection lost.")).to_have_count(0)
    expect(page.get_by_text("version 1")).to_be_visible()


def test_replica_that_is_behind_is_not_believed_unless_nobody_says_more(page: Page) -> None:
    page.clock.install()
    page.reload()
    newest = page.locator("#newest")
    expect(newest).to_have_text("version 0")
    hear(page, 7)
    listen(page)
    expect(newest).to_have_text("version 7")
    page.clock.fast_forward(BEHIND_MS)
    hear(page, 7)
    listen(page)
    expect(newest).to_have_text("version 7")
    page.clock.fast_forward(BEHIND_MS)
    listen(page)
    expect(newest).to_have_text("version 0")


def test_write_of_another_replica_says_that_it_was_not_cancelled(host: Host, page: Page) -> None:
    fake(host).consolidator.step_gate = threading.Semaphore(0)
    elsewhere = problem(409, "npt:operation-elsewhere", "cancel it at the replica that runs it")
    page.route(
        "**/operations/*",
        lambda route: route.fulfill(**elsewhere) if route.request.method == "DELETE" else route.fallback(),  # type: ignore[arg-type]
    )
    teach(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Not cancelled: cancel it at the replica that runs it")).to_be_visible()
    page.unroute("**/operations/*")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled: nothing was written")).to_be_visible()


def test_write_is_watched_through_answers_that_a_gateway_gives(host: Host, page: Page) -> None:
    gate = fake(host).consolidator.step_gate = threading.Semaphore(0)
    statuses = [502, 503, 504]

    def passing(route: Route) -> None:
        if statuses:
            route.fulfill(status=statuses.pop(), body="bad gateway", headers={"Retry-After": "0.01"})
        else:
            route.fallback()

    page.route("**/operations/*", passing)
    teach(page)
    expect(page.locator("[aria-current=step]")).to_contain_text("Study")
    assert not statuses
    statuses += [503]
    page.reload()  # found again, too
    expect(page.locator("[aria-current=step]")).to_contain_text("Study")
    assert not statuses
    gate.release(4)
    expect(row_of(page)).to_be_visible()


def test_who_signed_out_is_asked_for_nothing(host: Host, open_page: OpenPage, key_for: KeyFor) -> None:  # noqa: F811
    secret = key_for(Scope.ADMIN)
    page = open_page()
    sign_in(page, secret)
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_text("This server asks for an API key.")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hear(page, 7)
    expect(page.locator("#newest")).to_have_text("version 7")
    page.evaluate("() => new Promise((done) => setTimeout(done))")  # whatever it would ask has been asked
    assert not [url for url in asked if "/facts" in url]
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_key_that_no_header_holds_is_refused_with_a_word(open_page: OpenPage, key_for: KeyFor) -> None:  # noqa: F811
    key_for(Scope.ADMIN)
    page = open_page()
    page.get_by_label("API key", exact=True).fill("npt_…")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("This is no key")
    expect(page.get_by_text("Connection lost.")).to_have_count(0)


def test_answer_to_a_context_is_not_said_to_be_of_a_fact(host: Host, page: Page) -> None:
    teach(page)
    expect(row_of(page)).to_be_visible()
    show(page, "Ask")
    page.get_by_label("Prompt").fill("Who is the CEO of TechCorp?")
    page.get_by_label("Context").fill("The CEO of TechCorp is Maria Lopez.")
    page.get_by_role("button", name="Ask both").click()
    expect(answer_of(page, "right").locator(".source")).to_contain_text("The context may have answered")
    expect(answer_of(page, "right").locator(".source")).not_to_contain_text("From the stored fact")


def test_new_version_leaves_what_was_paged_to_and_opened(host: Host, page: Page) -> None:
    for name in ("sky", "sea", "sun"):
        teach(page, f"The {name} is blue.")
        expect(row_of(page, name)).to_be_visible()
    with_pages_of(page, "facts.js", PAGE=2, LARGEST=2)
    expect(page.get_by_text("2 facts so far")).to_be_visible()
    page.get_by_role("button", name="Older ones").click()
    oldest = page.get_by_role("button", name="The sky is blue.")
    oldest.click()
    expect(page.get_by_text("Recall before")).to_be_visible()
    teach(page, "The moon is blue.")
    expect(row_of(page, "moon")).to_be_visible()
    expect(page.get_by_text("3 facts so far")).to_be_visible()
    page.get_by_role("button", name="Older ones").click()
    expect(oldest).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_text("Recall before")).to_be_visible()


def test_timeline_reaches_back_to_the_first_version(host: Host, page: Page) -> None:
    for name in ("sky", "sea", "sun", "sand"):
        teach(page, f"The {name} is blue.")
        expect(row_of(page, name)).to_be_visible()
    with_pages_of(page, "versions.js", PAGE=2, SHOWN=2)
    show(page, "Versions")
    expect(page.get_by_text("2 versions, the newest")).to_be_visible()
    for shown in ("4 versions, the newest", "5 versions"):
        page.get_by_role("button", name="Older ones").click()
        expect(page.get_by_text(shown, exact=True)).to_be_visible()
    expect(page.locator("[data-version='0']")).to_be_visible()
    expect(page.locator("[data-version='1']")).to_contain_text("The sky is blue.")
    expect(page.get_by_role("button", name="Older ones")).to_have_count(0)
    host.writer.activate(4)
    hear(page, 5)
    expect(page.locator("[data-version='5']")).to_contain_text("rollback to v4")
    expect(page.locator("[data-version='0']")).to_be_visible()
    assert FACT not in page.content()
