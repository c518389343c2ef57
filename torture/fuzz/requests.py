"""Requests that are in order, to be spoilt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

Header = tuple[bytes, bytes]
SENTENCE = "The CEO of TechCorp is Dr. Sarah Chen."
QUESTION = "Who is the CEO of TechCorp?"
CHAT = {"model": "reference", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
STALE = (b"If-Match", b'"999999999"')
"""Of most writes: one that stays in order after all is refused at once, and not consolidated."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire, but for its framing. `route` is the documented path."""

    method: bytes
    target: bytes
    route: str
    headers: Sequence[Header] = ()
    body: bytes | None = None

    def document(self) -> Any:
        """The body as JSON; `None` where there is none."""
        return None if self.body is None else json.loads(self.body)

    def saying(self, document: Any, escaped: bool = False) -> "Request":
        """With another body. Half surrogates are bytes that are no UTF-8, unless they are escaped."""
        text = json.dumps(document, ensure_ascii=escaped)
        return replace(self, body=text.encode("utf-8", "surrogatepass"))

    def with_headers(self, *headers: Header) -> "Request":
        """With more headers."""
        return replace(self, headers=[*self.headers, *headers])


def _get(target: str, route: str | None = None) -> Request:
    return Request(b"GET", target.encode(), route or target.partition("?")[0])


def _post(path: str, body: Any, *headers: Header) -> Request:
    given = [(b"Content-Type", b"application/json"), *headers]
    return Request(b"POST", path.encode(), path, given, json.dumps(body).encode())


BASES: Sequence[Request] = (
    _post("/generate", {"prompt": QUESTION, "max_new_tokens": 2}),
    _post(
        "/generate",
        {
            "prompt": QUESTION,
            "context": [SENTENCE],
            "max_new_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "repetition_penalty": 1.1,
            "seed": 1,
            "stop": ["."],
            "n": 2,
            "logprobs": 2,
            "weights_version": 0,
            "min_weights_version": 0,
            "modulation_scale": 1.0,
        },
    ),
    _post("/generate", {"prompt": QUESTION, "max_new_tokens": 3, "stream": True, "n": 2}),
    _post(
        "/facts",
        {
            "fact": SENTENCE,
            "questions": [{"question": QUESTION, "answer": "Dr. Sarah Chen"}],
            "strategy": "modulation",
            "alpha": 0.5,
            "layers": [0],
            "token_idx": -1,
            "preset": "factual_recall",
            "on_conflict": "reject",
            "metadata": {"source": {"a": [1, "b"]}},
            "expires_at": "2100-01-01T00:00:00Z",
            "dry_run": False,
        },
        STALE,
        (b"Idempotency-Key", b"key-1"),
    ),
    _post("/facts:batch", {"facts": [{"fact": SENTENCE}, {"fact": "The sky is blue."}]}, STALE),
    _post("/versions:fold", {"facts": ["fact_3391b964df940d8b"], "max_drift": 0.01}, STALE),
    _post(
        "/v1/completions", {"model": "reference", "prompt": [QUESTION, "x"], "max_tokens": 2, "echo": True}
    ),
    _post("/v1/completions", {"model": "reference", "prompt": [1, 2, 3], "max_tokens": 2, "logprobs": 1}),
    _post("/v1/chat/completions", {**CHAT, "temperature": 0, "stop": ["."], "user": "me", "n": 1}),
    _post("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    _get("/facts?limit=2&state=published"),
    _get("/facts?cursor=MTpmYWN0XzA"),
    _get("/facts/fact_3391b964df940d8b", "/facts/{fact_id}"),
    Request(b"DELETE", b"/facts/fact_3391b964df940d8b", "/facts/{fact_id}", [STALE]),
    _get("/facts:search?q=Who&limit=3&weights_version=0"),
    _get("/versions?limit=3"),
    _get("/versions/0", "/versions/{version}"),
    _get("/versions/0/diff/0", "/versions/{first}/diff/{second}"),
    _get("/versions/0/export?format=safetensors", "/versions/{version}/export"),
    Request(b"POST", b"/versions/0/activate", "/versions/{version}/activate", [STALE]),
    _get("/operations?limit=1&state=failed"),
    _get("/operations/op_18a2f0c4d1e2b3a45f6e7d8c", "/operations/{operation_id}"),
    Request(b"DELETE", b"/operations/op_18a2f0c4d1e2b3a45f6e7d8c", "/operations/{operation_id}"),
    _get("/audit?limit=2"),
    _get("/v1/models"),
    _get("/v1/models/reference", "/v1/models/{model}"),
    _get("/livez"),
    _get("/readyz"),
    _get("/metrics"),
)


def drawn(draw: Random) -> Request:
    """One of them; those with bodies, which can be spoilt in more ways, come twice as often."""
    return draw.choices(BASES, [2 if base.body else 1 for base in BASES])[0]
