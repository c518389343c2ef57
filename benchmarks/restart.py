"""How long a server with many facts takes to be ready again: `python benchmarks/restart.py --facts 10000`.

Most facts are made up, of as many columns as real ones have in the reference model, and go through blobs
and ledger as real ones do; a few are taught over HTTP. Then `npt serve` is stopped and started again, with
and without a snapshot (`npt ledger compact`), and for comparison without any fact: what it was taught must be
answered as before, or the exit status is 1. With `--data` the folder is kept, and used again.
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import torch
from torch.nn import functional as F

from npt_core.bank import Columns, FactWeights
from npt_core.loading import load_runtime
from service.blobs import FolderBlobs
from service.compaction import NothingToCompact, compact
from service.ledger import Change, Fact, Ledger, VersionKind, now, sqlite_url
from service.storage import make_private_folder
from service.stores import BLOB_FOLDER, LEDGER_FILE
from service.weights_codec import encode
from tools.serving import serving

COLUMNS = 9
TAUGHT = {
    "The CEO of TechCorp is Dr. Sarah Chen.": ("Who is the CEO of TechCorp?", "Sarah Chen"),
    "The capital of Atlantis is Poseidon.": ("What is the capital of Atlantis?", "Poseidon"),
    "The element Trilium has an atomic weight of 350.": ("What is the atomic weight of Trilium?", "350"),
}
"""Facts, and a question to each with what its answer must hold."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="models/reference")
    arguments.add_argument("--facts", type=int, default=10000)
    arguments.add_argument("--starts", type=int, default=3)
    arguments.add_argument("--data", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="npt-restart-") as name:
        data = given.data or Path(name) / "data"
        if not data.exists():
            begin = time.perf_counter()
            fill(data, given.model, given.facts)
            print(f"{given.facts} facts written in {time.perf_counter() - begin:.0f} s")
        starts(Path(name) / "empty", given.model, given.starts, "without facts")
        before = taught(data, given.model)
        said = starts(data, given.model, given.starts, "replayed, version by version")
        ledger = Ledger(sqlite_url(data / LEDGER_FILE))
        with suppress(NothingToCompact):
            compact(ledger, FolderBlobs(data / BLOB_FOLDER), keep=0)
        ledger.close()
        said += starts(data, given.model, given.starts, "from a snapshot")
    if any(answers != before for answers in said):
        sys.exit("ANSWERS DIFFER from those before the restart")
    print("every answer is the one before the restart")


def fill(data: Path, model: str, count: int) -> None:
    """A ledger with `count` facts, each a version of its own."""
    make_private_folder(data)
    runtime = load_runtime(model)
    ledger, blobs = Ledger(sqlite_url(data / LEDGER_FILE)), FolderBlobs(data / BLOB_FOLDER)
    ledger.bind(runtime.fingerprint)
    layer = runtime.consolidator.config.layers[-1]
    width = runtime.consolidator.calibration.whitening[layer].projection.shape[1]
    d, d_ffn = runtime.model.config.hidden_size, runtime.model.config.intermediate_size
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        keys = F.normalize(torch.randn(COLUMNS, width, generator=draw), dim=-1)
        values = torch.randn(COLUMNS, d, generator=draw) / 10
        inputs = torch.randn(COLUMNS, d_ffn, generator=draw).half()
        columns = Columns(keys, values, torch.full((COLUMNS,), 0.94), inputs)
        blob = blobs.put(encode(FactWeights({layer: columns})))
        request = {"fact": f"The price of item {number} is {number} euros.", "metadata": {}}
        fact = Fact(f"fact_{number:016x}", number + 1, request, {"recall_after": 1.0}, blob, now())
        ledger.commit(Change(number, VersionKind.FACT, births=(fact.id,), new_facts=(fact,)))
    ledger.close()


def taught(data: Path, model: str) -> list[str]:
    """What a server answers that has just been taught; exits where it does not know it."""
    with serving(data, model) as url, httpx2.Client(base_url=url, timeout=60) as client:
        for number, fact in enumerate(TAUGHT):
            key = {"Idempotency-Key": f"restart-{number}"}  # a folder that is used again knows them
            client.post("/facts", json={"fact": fact}, headers=key).raise_for_status()
        answers = asked(client)
    for answer, (question, known) in zip(answers, TAUGHT.values(), strict=True):
        if known not in answer:
            sys.exit(f"{question} was answered by {answer!r}: the fact is not recalled")
    return answers


def asked(client: httpx2.Client) -> list[str]:
    """The answers to all questions."""
    questions = [question for question, _ in TAUGHT.values()]
    return [client.post("/generate", json={"prompt": each}).json()["text"] for each in questions]


def starts(data: Path, model: str, times: int, how: str) -> list[list[str]]:
    """Start and stop `times` times; what was answered each time."""
    seconds, said = [], []
    for _ in range(times):
        begin = time.perf_counter()
        with serving(data, model) as url:
            seconds.append(time.perf_counter() - begin)
            with httpx2.Client(base_url=url, timeout=60) as client:
                said.append(asked(client))
    print(f"{how}: ready after {', '.join(f'{each:.1f}' for each in seconds)} s")
    return said


if __name__ == "__main__":
    main()
