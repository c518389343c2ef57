"""`npt audit`."""

import json
from typing import Any

from service.cli.options import DEFAULT_URL, Cursor, Json, Limit, Url, ask, show_page


def command(limit: Limit = 100, cursor: Cursor = None, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Who did what, oldest first. Needs a key with the scope `admin`."""
    query = {"limit": limit, "cursor": cursor}
    page = ask(url, lambda client: client.call("GET", "/audit", query=query))
    show_page(page, as_json, _line)


def _line(entry: dict[str, Any]) -> str:
    detail = json.dumps(entry["detail"], ensure_ascii=False)
    return "  ".join(
        (str(entry["seq"]), entry["at"], entry["actor"], entry["action"], entry["target"], detail)
    )
