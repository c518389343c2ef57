"""Long forms, against the reference model."""

from pathlib import Path

from torture.fuzz import conformance, flood
from torture.fuzz.keys import make_key
from torture.fuzz.server import ModelServer


def conform(folder: Path, examples: int, seed: int) -> conformance.Outcome:
    """schemathesis over the whole document."""
    data = folder / "data"
    key = make_key(data)
    server = ModelServer(data)
    try:
        outcome = conformance.run(folder, server.url, key, examples, seed)
    finally:
        found = server.stop()
    outcome.problems += found
    return outcome


def malformed(folder: Path, requests: int, seed: int) -> flood.Outcome:
    """Malformed requests; afterwards the service answers, and its ledger is sound."""
    data = folder / "data"
    key = make_key(data)
    server = ModelServer(data)
    try:
        outcome = flood.Flood(server.port, server.pid, key, requests, seed).run()
    finally:
        found = server.stop()
    outcome.problems += found
    return outcome
