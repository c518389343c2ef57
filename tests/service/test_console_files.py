"""What the server gives a browser, without a browser."""

import re

import httpx2
import pytest

from service.console import _FILES
from service.host import Host
from service.ledger.api_keys import ApiKeys, Scope
from tests.service.conftest import client_of

ELSEWHERE = re.compile(r"""(?:src|href|url\(|from|import)\s*[=(]?\s*["']?(?:https?:)?//""")


async def test_page_needs_no_key_and_may_load_nothing_from_elsewhere(host: Host) -> None:
    ApiKeys(host.ledger).create("test", [Scope.ADMIN], "test")
    host.access.refresh()
    async with client_of(host) as client:
        page = await client.get("/console")
        policy = page.headers["Content-Security-Policy"]
        assert page.status_code == 200
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert (await client.get("/facts")).status_code == 401
        for name in _FILES:
            answer = await client.get(f"/console/{name}")
            assert answer.status_code == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", sorted(_FILES))
def test_files_name_no_other_place_and_write_no_markup(name: str) -> None:
    text = _FILES[name].content.decode()
    assert not ELSEWHERE.search(text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", text)
    assert not re.search(r"\sstyle=|<style|<script>|\son\w+=", text)


def test_page_loads_every_module_at_once() -> None:
    page = _FILES["index.html"].content.decode()
    for name in _FILES:
        assert (f"console/{name}" in page) == (name != "index.html")


async def test_file_that_is_known_is_not_sent_again(client: httpx2.AsyncClient) -> None:
    first = await client.get("/console/main.js")
    again = await client.get("/console/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%2e%2e/app.py"])
async def test_other_files_are_not_there(client: httpx2.AsyncClient, name: str) -> None:
    assert (await client.get(f"/console/{name}")).status_code == 404
