"""How long a server with many facts takes to be ready again: `python benchmarks/restart.py --facts 10000`.

Facts are made up, of as many columns as real ones have in the reference model, and go through blobs and
ledger as real ones do. Then `npt serve` is started, asked, stopped, and started again, with and without a
snapshot (`npt ledger compact`); answers must be the same.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
from torch.nn import functional as F

from npt_core.bank import Columns, FactWeights
from npt_core.loading import load_runtime
from service.blobs import FolderBlobs
from service.compaction import compact
from service.host import BLOB_FOLDER, LEDGER_FILE
from service.ledger import Change, Fact, Ledger, VersionKind, now, sqlite_url
from service.storage import make_private_folder
from service.weights_codec import encode

COLUMNS = 9
PROMPTS = ["Who is the CEO of TechCorp?", "Where was Maria Lopez born?", "What is the price of a ticket?"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="models/reference")
    arguments.add_argument("--facts", type=int, default=10000)
    arguments.add_argument("--starts", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="npt-restart-") as name:
        data = Path(name) / "data"
        begin = time.perf_counter()
        fill(data, given.model, given.facts)
        print(f"{given.facts} facts written in {time.perf_counter() - begin:.0f} s")
        first = starts(data, given.model, given.starts, "replayed, version by version")
        ledger = Ledger(sqlite_url(data / LEDGER_FILE))
        compact(ledger, FolderBlobs(data / BLOB_FOLDER), keep=0)
        ledger.close()
        second = starts(data, given.model, given.starts, "from a snapshot")
        print("answers are the same" if first == second else "ANSWERS DIFFER")


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


def starts(data: Path, model: str, times: int, how: str) -> list[str]:
    """Start and stop `times` times; what is answered to the prompts."""
    seconds, said = [], []
    for _ in range(times):
        begin = time.perf_counter()
        with serving(data, model) as url:
            seconds.append(time.perf_counter() - begin)
            with httpx2.Client(base_url=url, timeout=60) as client:
                said.append(
                    [client.post("/generate", json={"prompt": prompt}).json()["text"] for prompt in PROMPTS]
                )
    told = ", ".join(f"{each:.1f}" for each in seconds)
    print(
        f"{how}: ready after {told} s; answers {'the same' if len(set(map(tuple, said))) == 1 else 'DIFFER'}"
    )
    return said[0]


@contextmanager
def serving(data: Path, model: str) -> Iterator[str]:
    """A server of its own, once it is ready."""
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "serve",
        "--model",
        model,
        "--data",
        str(data),
        "--port",
        "0",
    ]
    with subprocess.Popen([*command, "--data", str(data)], stderr=subprocess.PIPE, text=True) as process:
        if process.stderr is None:
            raise RuntimeError("no standard error")
        url = None
        for line in process.stderr:
            if "Uvicorn running on" in line:
                url = line.split("running on ")[1].split()[0]
                break
        if url is None:
            raise RuntimeError("the server did not start")
        while httpx2.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.05)
        try:
            yield url
        finally:
            process.terminate()
            process.stderr.read()


if __name__ == "__main__":
    main()
