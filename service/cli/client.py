"""Talking to a server, over the network or to one that lives in this process."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

URL = "http://127.0.0.1:8080"
API_KEY = "NPT_API_KEY"
SOURCE_API_KEY = "NPT_SOURCE_API_KEY"
WRITE_TIMEOUT_S = 600.0
"""Generous: a fact on a large model may wait for others, and an answer for its turn."""
_UNLIMITED = httpx2.Limits()
"""A load of many streams must wait for the server, never for a connection of the client's pool."""


class ClientError(Exception):
    """The server refused, or cannot be reached; the message is for a person.

    `kind`: status and problem type of a refusal, such as `503 npt:overloaded`; else None.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class Client:
    """JSON in, JSON out."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer to one request; what is None is left out. Raises `ClientError`."""
        response = await self._http.request(
            method, path, json=body, headers=_given(headers), params=_given(query)
        )
        _check(response)
        return _answer(response)

    async def download(self, path: str, query: Mapping[str, Any], target: Path) -> None:
        """Keep an answer at `target`, whole or not at all. Raises `ClientError`, OSError."""
        unfinished = target.with_name(f".{target.name}.part")
        async with self._http.stream("GET", path, params=_given(query)) as response:
            if response.is_error:
                await response.aread()
            _check(response)
            try:
                with unfinished.open("wb") as file:
                    async for chunk in response.aiter_bytes():
                        file.write(chunk)
                unfinished.replace(target)
            finally:
                unfinished.unlink(missing_ok=True)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Server-sent events, as name and data. Raises `ClientError`."""
        async with self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                await response.aread()
            _check(response)
            name = ""
            async for line in response.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)


@asynccontextmanager
async def connected(
    url: str, transport: httpx2.AsyncBaseTransport | None = None, key_variable: str = API_KEY
) -> AsyncIterator[Client]:
    """A client of the server at `url`, with the API key in `NPT_API_KEY`, or another variable, if there is
    one. Network errors become `ClientError`.
    """
    key = os.environ.get(key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx2.AsyncClient(
            base_url=url,
            transport=transport,
            timeout=WRITE_TIMEOUT_S,
            limits=_UNLIMITED,
            headers=headers,
        ) as http:
            yield Client(http)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise ClientError(f"cannot talk to {url}: {reason}") from error


def _given(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}


def _answer(response: httpx2.Response) -> dict[str, Any]:
    """The answer of a service like ours. Raises `ClientError` for that of any other."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "weights_version" not in answer:
        raise ClientError(f"{response.url} is not an NPT service")
    return answer


def _check(response: httpx2.Response) -> None:
    if not response.is_error:
        return
    status = str(response.status_code)
    try:
        problem = response.json()
        told = ": ".join(filter(None, (problem["title"], problem.get("detail"))))
        kind = f"{status} {problem['type']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{response.url} answered {status}", status) from error
    raise ClientError(told, kind)
