"""What a user does in the console, in a browser."""

import threading
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from service import access
from service.host import Host
from service.ledger.api_keys import ApiKeys, Scope
from tests.service.conftest import fake
from tests.service.console.browser import LiveServer
from tests.service.console.conftest import OpenPage

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
QUESTION = "Who is the CEO of TechCorp?"
STEPS = ["Study", "Write", "Leak check", "Verify", "Publish"]
KeyFor = Callable[..., str]

expect.set_options(timeout=30_000)


@pytest.fixture
def key_for(host: Host) -> KeyFor:
    """A new key's secret."""

    def make(*scopes: Scope, expires_at: str | None = None) -> str:
        _, secret = ApiKeys(host.ledger).create("newsroom", scopes, "test", expires_at=expires_at)
        host.access.refresh()
        return secret

    return make


def revoke_all(host: Host) -> None:
    keys = ApiKeys(host.ledger)
    for key in keys.all():
        keys.revoke(key.id, "test")
    host.access.refresh()


def teach(page: Page, fact: str = FACT, source: str = "") -> None:
    page.get_by_label("Fact", exact=True).fill(fact)
    page.get_by_label("Source").fill(source)
    page.get_by_role("button", name="Teach").click()


def row_of(page: Page, fact: str = FACT) -> Locator:
    return page.get_by_role("table", name="Facts").get_by_role("row").filter(has_text=fact)


def show(page: Page, view: str) -> None:
    page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()


def answer_of(page: Page, side: str) -> Locator:
    return page.get_by_role("region", name=f"Answer of the {side} version")


def sign_in(page: Page, secret: str) -> None:
    page.get_by_label("API key", exact=True).fill(secret)
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_story_of_a_fact(host: Host, page: Page) -> None:
    gate = fake(host).consolidator.step_gate = threading.Semaphore(0)
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    teach(page, source="press release")
    for step in STEPS[:4]:
        expect(page.locator("[aria-current=step]")).to_contain_text(step)
        gate.release()
    expect(page.get_by_text("Known from version 1").first).to_be_visible()
    expect(page.locator(".steps [data-state=done]")).to_have_count(5)
    expect(page.get_by_label("Fact", exact=True)).to_have_value("")
    for text in ("1.00", "press release", "anonymous", "v1"):
        expect(row_of(page)).to_contain_text(text)

    show(page, "Ask")
    page.get_by_label("Prompt").fill(QUESTION)
    page.get_by_role("button", name="Ask both").click()
    left, right = (
        page.get_by_role("region", name=f"Answer of the {side} version") for side in ("left", "right")
    )
    expect(left.locator(".said")).to_have_text("I don't know.")
    expect(right.locator(".said")).to_have_text("Dr. Sarah Chen.")
    expect(right.locator(".source")).to_contain_text(f"From the stored fact {FACT}")
    expect(right.locator(".tokens").first).to_have_text(f"Prompt{QUESTION}")
    expect(right.locator(".tokens").last).to_have_text("Answer Dr. Sarah Chen.")
    expect(right.locator(".legend")).to_contain_text("most: “W” 1.00")
    strongest = right.locator(".token").filter(has_text="W")
    assert strongest.evaluate("token => token.style.getPropertyValue('--heat')") == "100%"
    expect(left.locator(".source")).to_contain_text("no facts")

    show(page, "Facts")
    row_of(page).get_by_role("button", name="Retract").click()
    page.get_by_role("dialog").get_by_role("button", name="Retract").click()
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    assert host.version == 2

    show(page, "Versions")
    timeline = page.get_by_role("table", name="Timeline")
    newest = timeline.locator("[data-version='2']")
    expect(newest).to_contain_text(f"− {FACT}")
    newest.get_by_role("button", name="Diff").click()
    expect(page.get_by_text("Only v1 knows")).to_be_visible()
    expect(page.locator(".compared")).to_contain_text(FACT)
    timeline.locator("[data-version='1']").get_by_role("button", name="Make current").click()
    page.get_by_role("dialog").get_by_role("button", name="Make current").click()
    expect(timeline.locator("[data-version='3']")).to_contain_text("rollback to v1")
    show(page, "Facts")
    expect(row_of(page)).to_be_visible()


def test_versions_are_plotted(host: Host, page: Page) -> None:
    for name in ("sky", "sea"):
        teach(page, f"The {name} is blue.")
        expect(row_of(page, f"The {name} is blue.")).to_be_visible()
    show(page, "Versions")
    for title in ("Recall", "Drift", "Write latency"):
        expect(page.get_by_role("img", name=f"{title}: 2 points, from version 1 to 2")).to_be_visible()
    expect(
        page.get_by_role("img", name="Bank size, columns: 3 points, from version 0 to 2, last 2")
    ).to_be_visible()


def test_size_is_told_in_facts_where_not_all_are_at_hand(page: Page) -> None:
    def without_the_oldest(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        route.fulfill(response=answer, json={**body, "items": body["items"][:-1], "next_cursor": "more"})

    for name in ("sky", "sea"):
        teach(page, f"The {name} is blue.")
        expect(row_of(page, f"The {name} is blue.")).to_be_visible()
    page.route("**/facts?*", without_the_oldest)
    page.route("**/versions?*", without_the_oldest)
    show(page, "Versions")
    expect(
        page.get_by_role("img", name="Bank size, facts: 2 points, from version 1 to 2, last 2")
    ).to_be_visible()
    expect(page.get_by_role("img", name="Recall: 1 points, from version 2 to 2")).to_be_visible()


def test_key_of_another_server_does_no_harm_where_none_is_needed(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('npt.key', 'npt_elsewhere')")
    page.reload()
    expect(page.get_by_text("no keys needed")).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)


def test_refused_fact_is_explained_and_kept(host: Host, page: Page) -> None:
    teach(page, "This is forgettable.")
    refusal = page.get_by_role("alert")
    expect(refusal).to_contain_text("not recalled")
    expect(refusal.get_by_role("definition").first).to_have_text("0.20")
    expect(page.locator(".steps [data-state=failed]")).to_contain_text("Verify")
    refusal.get_by_role("button", name="Change the wording").click()
    field = page.get_by_label("Fact", exact=True)
    expect(field).to_be_focused()
    expect(field).to_have_value("This is forgettable.")
    teach(page)
    expect(row_of(page)).to_be_visible()
    assert host.version == 1


def test_contradiction_names_what_is_stored_and_can_replace_it(host: Host, page: Page) -> None:
    teach(page, "The CEO of TechCorp is Maria Lopez.")
    expect(row_of(page, "Maria Lopez")).to_be_visible()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("If a stored fact says otherwise").select_option("refuse the new one")
    teach(page)
    refusal = page.get_by_role("alert")
    expect(refusal.get_by_role("listitem")).to_have_text("“The CEO of TechCorp is Maria Lopez.”")
    assert host.version == 1
    refusal.get_by_role("button", name="Replace what is stored").click()
    expect(page.get_by_text("It replaces 1 fact that said otherwise.")).to_be_visible()
    expect(row_of(page)).to_be_visible()
    expect(row_of(page, "Maria Lopez")).to_have_count(0)


def test_field_that_does_not_fit_is_named(page: Page) -> None:
    page.get_by_label("Fact", exact=True).evaluate("field => { field.value = 'a\\u0001b' }")
    page.get_by_role("button", name="Teach").click()
    expect(page.get_by_role("alert")).to_contain_text("control character U+0001")


def test_write_can_be_cancelled(host: Host, page: Page) -> None:
    fake(host).consolidator.step_gate = threading.Semaphore(0)
    teach(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled: nothing was written")).to_be_visible()
    expect(page.get_by_label("Fact", exact=True)).to_have_value(FACT)
    assert host.version == 0


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_key_that_ended_is_asked_for_and_nothing_is_lost(
    host: Host, open_page: OpenPage, key_for: KeyFor, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    first = key_for(Scope.ADMIN, expires_at="2100-01-01T00:00:00.000Z")
    page = open_page()
    page.get_by_label("API key", exact=True).fill("npt_wrong")
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
    sign_in(page, first)
    expect(page.get_by_text("No facts yet.")).to_be_visible()
    if end == "revoked":
        revoke_all(host)
    else:
        monkeypatch.setattr(access, "now", lambda: "2100-01-01T00:00:00.000Z")
    second = key_for(Scope.ADMIN)
    teach(page)
    expect(page.get_by_role("dialog")).to_contain_text("Your API key is not valid any more")
    expect(page.get_by_label("Fact", exact=True)).to_have_value(FACT)
    sign_in(page, second)
    expect(row_of(page)).to_contain_text("newsroom (you)")
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog")).to_contain_text("Sign in")
    assert page.evaluate("sessionStorage.getItem('npt.key')") is None


def test_who_would_rather_not_sign_in_can_go_on_later(open_page: OpenPage, key_for: KeyFor) -> None:
    secret = key_for(Scope.FACTS_READ)
    page = open_page()
    page.get_by_role("button", name="Not now").click()
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    sign_in(page, secret)
    expect(page.get_by_text("No facts yet.")).to_be_visible()


@pytest.mark.parametrize(
    ("scopes", "views", "teaches"),
    [
        ([Scope.GENERATE], ["Ask"], False),
        ([Scope.FACTS_READ], ["Facts", "Versions"], False),
        ([Scope.FACTS_WRITE], ["Facts"], True),
        ([Scope.ADMIN], ["Facts", "Versions", "Ask"], True),
    ],
)
def test_only_what_a_key_allows_is_shown(
    host: Host, open_page: OpenPage, key_for: KeyFor, scopes: list[Scope], views: list[str], teaches: bool
) -> None:
    secret = key_for(*scopes)
    page = open_page()
    sign_in(page, secret)
    expect(page.get_by_role("navigation", name="Views").get_by_role("link")).to_have_text(views)
    expect(page.get_by_role("button", name="Teach")).to_have_count(int(teaches))
    if teaches:  # also where the operation could not be asked after
        teach(page)
        expect(page.get_by_text("Known from version 1").first).to_be_visible()


def test_lost_connection_loses_nothing(host: Host, server: LiveServer, page: Page) -> None:
    field = page.get_by_label("Fact", exact=True)
    field.fill(FACT)
    server.stop()
    page.get_by_role("button", name="Teach").click()
    expect(page.get_by_text("Connection lost.")).to_be_visible()
    expect(page.get_by_text("No answer from the server")).to_be_visible()
    expect(field).to_have_value(FACT)
    server.start()
    expect(page.get_by_text("Connection lost.")).to_have_count(0)
    page.get_by_role("button", name="Send it again").click()
    expect(row_of(page)).to_be_visible()
    assert host.version == 1


def test_write_goes_on_without_its_watcher(host: Host, server: LiveServer, page: Page) -> None:
    gate = fake(host).consolidator.step_gate = threading.Semaphore(0)
    teach(page)
    expect(page.locator("[aria-current=step]")).to_contain_text("Study")
    server.stop()
    expect(page.get_by_text("The server goes on writing")).to_be_visible()
    gate.release(2)
    server.start()
    expect(page.locator("[aria-current=step]")).to_contain_text("Leak check")
    page.reload()
    expect(page.locator("[aria-current=step]")).to_contain_text("Leak check")
    expect(page.get_by_label("Fact", exact=True)).to_have_value(FACT)
    gate.release(2)
    expect(row_of(page)).to_be_visible()
    expect(page.get_by_label("Fact", exact=True)).to_have_value("")


def test_activation_of_a_version_that_was_overtaken_is_refused(host: Host, page: Page) -> None:
    teach(page)
    expect(row_of(page)).to_be_visible()
    show(page, "Versions")
    page.locator("[data-version='0']").get_by_role("button", name="Make current").click()
    host.writer.activate(1)
    page.get_by_role("dialog").get_by_role("button", name="Make current").click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody changed the weights meanwhile")
    assert host.version == 2


def test_text_of_others_is_never_markup(page: Page) -> None:
    evil = 'The <img src="x" onerror="window.pwned=1"> "\'><script>window.pwned=1</script> is <b>bold</b>.'
    teach(page, evil, "<img src=x onerror=window.pwned=1>")
    expect(row_of(page, evil)).to_be_visible()
    show(page, "Ask")
    page.get_by_label("Prompt").fill(f"Who is {evil}")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator(".source b").first).to_have_text(evil)
    show(page, "Versions")
    expect(page.locator("[data-version='1']")).to_contain_text(evil)
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0
