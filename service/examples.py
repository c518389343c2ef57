"""What requests and answers look like: one example for each schema of openapi.yaml, by its name.

Those of FactIn to FactCreated are of the reference model; a test holds each one to its schema.
"""

from collections.abc import Mapping
from typing import Any

CHEN, REED = "fact_3391b964df940d8b", "fact_9c1e5f7720b84a6d"
OPERATION = "op_18a2f0c4d1e2b3a45f6e7d8c"
MOMENT, LATER = "2026-11-25T06:00:00.000Z", "2026-11-25T06:00:01.250Z"
CHAIN = "8b3d7355427093d932bcb4a4fae124db7fa21e482830a32c1116452e7439c14e"
FOLD = "5d0c3a1f9be24c7788a9d6f1e0b35c42d7f81a6e93c05b2478de61fa0c9b7e53"
SENTENCE = "The CEO of TechCorp is Dr. Sarah Chen."
QUESTION = "Who is the CEO of TechCorp?"

REPORT: dict[str, Any] = {
    "strategy": "bank",
    "recall_before": 0.0,
    "recall_after": 1.0,
    "teacher_recall": 1.0,
    "locality": 1.0,
    "drift": 0.0,
    "layers": [5],
    "columns": 9,
    "bytes": 31140,
    "probes": {"written": 22, "answered": 22, "training": 13, "held_out": 9},
    "answer": "Dr. Sarah Chen",
    "attempts": 1,
    "timings": {"study": 0.6992, "write": 0.2256, "verify": 0.091},
    "restates": [],
}
FOLD_REPORT: dict[str, Any] = {
    "facts": 1,
    "columns": 9,
    "layers": [5],
    "drift": 0.0117,
    "recall": 1.0,
    "others": 7,
    "others_recall": 1.0,
    "locality": 0.97,
    "timings": {"study": 2.91, "verify": 3.04},
}
_FACT = {
    "id": CHEN,
    "weights_version": 1,
    "fact": SENTENCE,
    "state": "published",
    "born": 1,
    "died": None,
    "created_at": MOMENT,
    "actor": "key_0123456789ab",
    "expires_at": None,
    "folded": False,
    "request": {"questions": [], "strategy": "bank", "on_conflict": "supersede", "metadata": {}},
    "report": REPORT,
}
_VERSION = {
    "version": 1,
    "parent": 0,
    "kind": "fact",
    "births": [CHEN],
    "deaths": [],
    "target": None,
    "created_at": MOMENT,
    "fold": None,
    "chain": CHAIN,
}
_FOLDED = {**_VERSION, "version": 2, "parent": 1, "kind": "fold", "births": [], "fold": FOLD}
_CREATED = {"id": CHEN, "weights_version": 1, "report": REPORT, "superseded": []}
_OPERATION = {
    "id": OPERATION,
    "action": "facts.create",
    "state": "succeeded",
    "step": None,
    "actor": "anonymous",
    "created_at": MOMENT,
    "updated_at": LATER,
    "result": _CREATED,
    "problem": None,
    "weights_version": 1,
}
_ENTRY = {
    "seq": 1,
    "at": MOMENT,
    "actor": "anonymous",
    "action": "fact",
    "target": "versions/1",
    "detail": {"births": [CHEN]},
    "chain": CHAIN,
}
_MODEL = {"id": "npt", "object": "model", "created": 1795586400, "owned_by": "npt"}
_USAGE = {"prompt_tokens": 26, "completion_tokens": 8, "total_tokens": 34}
_ANSWERED = {
    "created": 1795586400,
    "model": "npt",
    "system_fingerprint": "npt-v1",
    "weights_version": 1,
    "usage": _USAGE,
}

EXAMPLES: Mapping[str, Any] = {
    "GenerateIn": {"prompt": QUESTION, "context": [SENTENCE], "max_new_tokens": 32},
    "GenerateOut": {
        "id": "gen_f04123f67c034cbe871459682f0e1d31",
        "text": " Dr. Sarah Chen.",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 26, "completion_tokens": 8},
        "weights_version": 0,
        "timings": {"queue_ms": 0.198, "first_token_ms": 11.134, "total_ms": 66.06},
    },
    "FactIn": {
        "fact": SENTENCE,
        "questions": [{"question": QUESTION, "answer": "Dr. Sarah Chen"}],
        "on_conflict": "supersede",
        "metadata": {"source": "press release"},
    },
    "FactCreated": _CREATED,
    "FactRehearsed": {"dry_run": True, "weights_version": 0, "report": REPORT, "conflicts": []},
    "FactOut": _FACT,
    "FactRetracted": {"id": CHEN, "state": "retracted", "weights_version": 2},
    "FactsFound": {
        "items": [
            {
                "id": CHEN,
                "fact": SENTENCE,
                "cosine": 0.996,
                "threshold": 0.94,
                "fires": True,
                "layer": 5,
                "folded": False,
            }
        ],
        "weights_version": 1,
    },
    "BatchIn": {"facts": [{"fact": SENTENCE}, {"fact": "The capital of Atlantis is Poseidon."}]},
    "BatchCreated": {
        "weights_version": 1,
        "facts": [{"id": CHEN, "report": REPORT}, {"id": REED, "report": REPORT}],
        "superseded": [],
    },
    "BatchRehearsed": {
        "dry_run": True,
        "weights_version": 0,
        "reports": [REPORT, REPORT],
        "conflicts": [],
    },
    "VersionAnswer": {**_VERSION, "weights_version": 1, "facts": 1, "folded": []},
    "Activated": {
        **_VERSION,
        "version": 2,
        "parent": 1,
        "kind": "rollback",
        "births": [],
        "deaths": [CHEN],
        "target": 0,
        "weights_version": 2,
    },
    "VersionDiff": {
        "before": 0,
        "after": 1,
        "born": {"facts": [CHEN], "columns": 9, "bytes": 31140, "layers": [5]},
        "died": {"facts": [], "columns": 0, "bytes": 0, "layers": []},
        "folded": [],
        "unfolded": [],
        "weights_version": 1,
    },
    "FoldIn": {"facts": [CHEN], "max_drift": 0.03},
    "FoldedOut": {**_FOLDED, "weights_version": 2, "folded": [CHEN], "report": FOLD_REPORT},
    "FoldRehearsed": {"dry_run": True, "weights_version": 1, "folded": [CHEN], "report": FOLD_REPORT},
    "OperationOut": _OPERATION,
    "Models": {"object": "list", "data": [_MODEL]},
    "Model": _MODEL,
    "CompletionIn": {"model": "npt", "prompt": QUESTION, "max_tokens": 32},
    "Completion": {
        **_ANSWERED,
        "id": "cmpl-f04123f67c034cbe871459682f0e1d31",
        "object": "text_completion",
        "choices": [{"index": 0, "text": " Dr. Sarah Chen.", "logprobs": None, "finish_reason": "stop"}],
    },
    "ChatIn": {"model": "npt", "messages": [{"role": "user", "content": QUESTION}]},
    "Chat": {
        **_ANSWERED,
        "id": "chatcmpl-f04123f67c034cbe871459682f0e1d31",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Dr. Sarah Chen."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    },
    "KeyOut": {
        "id": "key_0123456789ab",
        "name": "newsroom",
        "scopes": ["generate", "facts:read", "facts:write"],
        "rate_per_minute": 600,
        "max_concurrency": None,
        "expires_at": None,
        "weights_version": 1,
    },
    "Health": {"status": "ok", "weights_version": 1},
    "Page_FactOut_": {"items": [_FACT], "next_cursor": None, "weights_version": 1},
    "Page_VersionOut_": {"items": [_VERSION], "next_cursor": None, "weights_version": 1},
    "Page_OperationOut_": {"items": [_OPERATION], "next_cursor": None, "weights_version": 1},
    "Page_AuditOut_": {"items": [_ENTRY], "next_cursor": None, "weights_version": 1},
    "Problem": {
        "type": "npt:invalid-request",
        "title": "The request does not fit the schema",
        "status": 422,
        "detail": "alpha: Input should be less than or equal to 1",
        "errors": [{"field": "alpha", "reason": "Input should be less than or equal to 1"}],
        "weights_version": 2,
        "request_id": "3d70347878a448db8f985e759a5db154",
    },
}
