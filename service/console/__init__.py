"""The console: a page for people, made of the API alone. Its files are part of the package."""

import hashlib
from importlib import resources
from typing import Annotated, NamedTuple

from fastapi import APIRouter, HTTPException, Path, Request, Response

router = APIRouter(prefix="/console", include_in_schema=False)

PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # What a page may do that shows other people's text: load its own files and ask its own server. Text never
    # becomes markup, whatever a script does.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again with its tag, so that a new release is seen at once
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    tag: str


def _read() -> dict[str, _File]:
    found = {}
    for entry in resources.files(__name__).joinpath("static").iterdir():
        content = entry.read_bytes()
        suffix = entry.name[entry.name.rindex(".") :]
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[entry.name] = _File(content, MEDIA_TYPES[suffix], tag)
    return found


_FILES = _read()
"""Small, and read once: no path that a client sends ever reaches the disk."""


@router.get("")
async def console_page(request: Request) -> Response:
    """The page, which loads the rest."""
    return _answer(request, _FILES[PAGE])


@router.get("/{name}")
async def console_file(request: Request, name: Annotated[str, Path(max_length=64)]) -> Response:
    """One of its styles and scripts."""
    if name not in _FILES:
        raise HTTPException(404)
    return _answer(request, _FILES[name])


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
