"""The tables of docs/scaling.md: `python benchmarks/scaling.py`.

Shapes are those of Llama 3; intervals, table formats and statements are taken from the code itself, so the
page fails its test when they change. What is assumed of machines and of facts stands in the first table.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import event

from npt_core.bank import Bank, Columns, FactWeights, Whitening
from npt_core.config import NPTConfig
from npt_core.consolidation import PlasticityConfig
from npt_core.engine.page_table import pages_for
from npt_core.engine.paged_attention import PAGE_SIZE, page_bytes
from npt_core.engine.paged_runner import MEMORY_SHARE
from npt_core.model import NPTForCausalLM
from service.access import FRESH_S
from service.blobs import FolderBlobs
from service.ledger import Change, Fact, Ledger, VersionKind, now, sqlite_url
from service.ledger.database import CONNECTIONS
from service.object_blobs import READ_AT_ONCE
from service.operations import BEAT_S
from service.replica import POLL_S, Replica
from service.weights_codec import decode_snapshot, encode, encode_snapshot

COLUMNS = 9
"""Of a fact in a layer: what `POST /facts` reports in the README."""
KEY_WIDTH = PlasticityConfig.key_width
CONTEXT = 2048
FEWEST, MOST = 2, CONNECTIONS + 1
"""Connections of a replica: one listens, and one asks, or as many as there may be."""
RATES = (0.1, 1.0)
"""Facts a second."""
ROUND_TRIP_S = 0.01
"""Of one GET from an object store in the same region."""
NETWORK = 1.25e9
"""Bytes a second of a 10 Gbit link."""
DISK = 2e9
GIVEN = [
    ("columns of a fact in each layer that is written to", str(COLUMNS), "README, the reference model"),
    ("width of keys", str(KEY_WIDTH), "`PlasticityConfig.key_width`"),
    ("tokens of a sequence", str(CONTEXT), "assumed"),
    ("network, disk, one GET from an object store", "1.25 GB/s, 2 GB/s, 10 ms", "assumed"),
    ("GPU memory, bandwidth", "80 GB, 3.35 TB/s (H100); 141 GB, 4.8 TB/s (H200)", "data sheets"),
]


@dataclass(frozen=True)
class Shape:
    """A model, and in how many layers a fact is written."""

    name: str
    vocabulary: int
    d: int
    d_ffn: int
    layers: int
    heads: int
    kv_heads: int
    written: int
    tied: bool = False

    @property
    def head(self) -> int:
        return self.d // self.heads

    @property
    def parameters(self) -> int:
        """As served: every layer V1 with adapters of rank 64."""
        return parameters_of(self)

    @property
    def weights(self) -> int:
        """Bytes in bfloat16."""
        return 2 * self.parameters

    @property
    def whole(self) -> int:
        """Of these, what every process holds of a split model: the embedding, and `A` of each adapter."""
        rank = NPTConfig.adapter_rank
        return 2 * self.d * (self.vocabulary + rank * self.layers)

    @property
    def page(self) -> int:
        """Bytes of keys and values of a page of tokens."""
        return page_bytes(self.layers, self.kv_heads, self.head, torch.bfloat16)

    @property
    def column(self) -> Columns:
        """The columns of one fact in one layer."""
        rows = torch.zeros(COLUMNS, KEY_WIDTH)
        values, inputs = torch.zeros(COLUMNS, self.d), torch.zeros(COLUMNS, self.d_ffn).half()
        return Columns(rows, values, torch.zeros(COLUMNS), inputs)

    @property
    def blob(self) -> int:
        """Tensor bytes that a version with one fact brings."""
        parts = FactWeights(dict.fromkeys(range(self.written), self.column)).to_tensors()
        return sum(part.nbytes for part in parts.values())

    @property
    def served(self) -> int:
        """What a snapshot holds of it."""
        snapshot = decode_snapshot(encode_snapshot({"fact": FactWeights({0: self.column})}))
        return self.written * sum(part.nbytes for part in snapshot["fact"].to_tensors().values())

    @property
    def resident(self) -> int:
        """Bytes of one fact in the bank; its tables have up to twice the room."""
        one = self.column
        lifetimes = 4 * 8  # born, died, owner, order
        rows = one.keys.nbytes + one.values.nbytes + one.thresholds.nbytes + COLUMNS * lifetimes
        return self.written * rows

    @property
    def searched(self) -> int:
        """Bytes of keys that a step reads for each fact in the bank."""
        return self.written * self.column.keys.nbytes


@cache
def parameters_of(shape: Shape) -> int:
    """Counted in a model without content."""
    config = NPTConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d,
        intermediate_size=shape.d_ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        npt_layers={str(i): "v1" for i in range(shape.layers)},
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return sum(p.numel() for p in NPTForCausalLM(config).parameters())


REFERENCE = Shape("reference", 2048, 320, 960, 6, 5, 5, 1, tied=True)
MIDDLE = Shape("8B", 128_256, 4096, 14_336, 32, 32, 8, 16)
LARGE = Shape("70B", 128_256, 8192, 28_672, 80, 64, 8, 40)
NARROW = [
    Shape(f"{s.name}, two layers", s.vocabulary, s.d, s.d_ffn, s.layers, s.heads, s.kv_heads, 2)
    for s in (MIDDLE, LARGE)
]
SHAPES = [REFERENCE, MIDDLE, NARROW[0], LARGE, NARROW[1]]
GPUS = {"H100": (80e9, 3.35e12), "H200": (141e9, 4.8e12)}
COUNTS = (1, 3, 10, 100, 1000)


def size(number: float) -> str:
    """Bytes with two or three digits."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= power:
            return f"{digits(number / power)} {unit}"
    return f"{number:.0f} B"


def digits(number: float) -> str:
    """Without a fraction from 100 on, with one digit below, with two below 1."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def table(title: str, *rows: tuple[str, ...]) -> Iterator[str]:
    """A title and a table of it, whose first row is its head."""
    yield f"**{title}**"
    yield ""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield "|" + "---|" * len(row)
    yield ""


def memory() -> Iterator[str]:
    """What fits a GPU, and what reading it bounds."""
    head = ("model", "parameters", "weights", "GPU", "each holds", "sequences", "tokens/s of one, at most")
    found = [head]
    for shape, gpu, count in (
        (MIDDLE, "H100", 1),
        (MIDDLE, "H200", 1),
        (LARGE, "H200", 1),
        (LARGE, "H100", 4),
        (LARGE, "H200", 2),
    ):
        room, bandwidth = GPUS[gpu]
        held = shape.whole + (shape.weights - shape.whole) / count
        pages = int((MEMORY_SHARE * room - held) * count / shape.page)
        sequences = pages // pages_for(CONTEXT, PAGE_SIZE)
        moved = shape.weights + shape.page * CONTEXT / PAGE_SIZE / 2
        fits = pages > 0
        found.append(
            (
                shape.name,
                f"{shape.parameters / 1e9:.2f}e9",
                size(shape.weights),
                f"{count} x {gpu}" + ("" if count == 1 else ", split"),
                size(held) if fits else "does not fit",
                str(sequences) if fits else "-",
                digits(count * bandwidth / moved) if fits else "-",
            )
        )
    yield from table(f"A GPU, {MEMORY_SHARE:.0%} of its memory used, sequences of {CONTEXT} tokens", *found)


def facts() -> Iterator[str]:
    """What facts take."""
    totals = (1_000, 10_000, 100_000)
    head = ("model", "layers written to", "a version brings", *(f"{n:,} facts, bank" for n in totals))
    rows = [
        (
            shape.name,
            str(shape.written),
            size(shape.blob),
            *(f"{size(n * shape.resident)} to {size(2 * n * shape.resident)}" for n in totals),
        )
        for shape in SHAPES
    ]
    yield from table("Facts", head, *rows)
    head = ("model", *(f"{n:,} facts" for n in totals))
    rows = [(s.name, *(f"{n * s.searched / s.weights:.1%}" for n in totals)) for s in SHAPES[1:]]
    yield from table("Bytes of keys that a step reads, beside those of the weights", head, *rows)


def followers() -> Iterator[str]:
    """What replicas ask of database and store."""
    new, background = statements()[1] + 1, idle_queries()  # one asks which facts expire
    head = (
        "replicas",
        "connections",
        "idle, queries/s",
        "under load, queries/s",
        "messages of a NOTIFY",
        "queries for a version",
        *(f"store to all, {s.name}" for s in SHAPES),
    )
    rows = [
        (
            f"{n:,}",
            f"{n * FEWEST:,} to {n * MOST:,}",
            digits(n * background),
            digits(n * (background + 1 / FRESH_S)),
            f"{n:,}",
            f"{n * new:,}",
            *(size((n - 1) * s.blob) for s in SHAPES),
        )
        for n in COUNTS
    ]
    yield from table("Replicas, and one version more", head, *rows)
    head = ("replicas", *(f"{s.name}, {rate:g}/s" for s in SHAPES for rate in RATES))
    rows = [
        (f"{n:,}", *(f"{digits(8 * (n - 1) * s.blob * r / 1e9)} Gbit/s" for s in SHAPES for r in RATES))
        for n in COUNTS[1:]
    ]
    yield from table("Traffic from the store at so many facts a second, all replicas together", head, *rows)


def starts() -> Iterator[str]:
    """From nothing to ready."""
    head = (
        "model",
        "weights over the network",
        "from disk",
        "10,000 facts one by one",
        "from a snapshot",
        "a snapshot is",
        "1,000 replicas, 100 at once",
    )
    rows = []
    for s in SHAPES[1:]:
        network, snapshot = s.weights / NETWORK, 10_000 * s.served / NETWORK
        blobs = 10_000 * (ROUND_TRIP_S / READ_AT_ONCE + s.blob / NETWORK)
        rows.append(
            (
                s.name,
                f"{digits(network)} s",
                f"{digits(s.weights / DISK)} s",
                f"{digits(blobs)} s",
                f"{digits(snapshot)} s",
                size(10_000 * s.served),
                f"{digits(10 * (network + snapshot) / 60)} min, {size(100 * NETWORK)}/s",
            )
        )
    yield from table("Start-up, what must be moved", head, *rows)


def history() -> Iterator[str]:
    """What the ledger and the store keep."""
    row = ledger_bytes()
    head = ("model", "ledger, 1,000,000 facts", "blobs", "at 0.1 facts/s reached in")
    days = 1e6 / 0.1 / 86_400
    rows = [(s.name, size(1e6 * row), size(1e6 * s.blob), f"{days:.0f} days") for s in SHAPES]
    yield from table(f"History, {row / 1000:.1f} kB of ledger a fact", head, *rows)


def advice() -> Iterator[str]:
    """What to run, with the figures of the tables before."""
    eight, large = NARROW
    new, idle = statements()[1] + 1, idle_queries()
    spare = (1 - MEMORY_SHARE) * GPUS["H100"][0]
    fits = int(spare / 2 / (2 * eight.resident) / 1000) * 1000
    rows = [
        (
            "8B",
            "one H100 for each replica; calibrate two layers, not the upper half",
            f"{size(eight.weights)} of weights; {fits:,} facts take half of the {size(spare)} that pages "
            f"leave, in the upper half of the layers {int(fits * eight.resident / MIDDLE.resident):,}",
        ),
        (
            "70B",
            "no server: `torchrun -m service.cli generate` on 4 H100 or 2 H200; facts from an export",
            f"{size(large.weights)} of weights: the engine computes on one GPU",
        ),
        (
            "10 replicas",
            # 40 more: a replica that comes before another goes, Jobs, and people.
            f"one PostgreSQL with `max_connections` {10 * MOST + 40}, one bucket",
            f"{10 * MOST} connections at most, {digits(10 * idle)} queries/s when idle; "
            f"a fact of 8B is {size(9 * eight.blob)} from the bucket",
        ),
        (
            "1,000 replicas",
            "not tried. PostgreSQL with memory for so many connections, facts in batches, snapshots "
            "(`npt ledger compact`), restarts 100 at once",
            f"{1000 * FEWEST:,} to {1000 * MOST:,} connections, {digits(1000 * idle)} queries/s "
            f"when idle; a version, of one fact or of a batch, takes {1000 * new:,} queries; "
            f"a fact of 8B is {size(999 * eight.blob)} from the bucket",
        ),
    ]
    yield from table("What to run", ("at", "what", "because"), *rows)


def idle_queries() -> float:
    """SQL statements a second of a replica that nobody asks anything: it polls, and tells that it lives."""
    return statements()[0] / POLL_S + 1 / BEAT_S


@cache
def statements() -> tuple[int, int]:
    """SQL statements of a replica that looks for versions and finds none; and one."""
    with tempfile.TemporaryDirectory(prefix="npt-scaling-") as name:
        ledger, blobs = _ledger(Path(name))
        replica = Replica(ledger, blobs, _bank())
        replica.catch_up()
        counted: list[str] = []

        def note(*given: Any) -> None:
            if not given[2].startswith("BEGIN"):  # which PostgreSQL is not asked for apart
                counted.append(given[2])

        event.listen(ledger.engine, "before_cursor_execute", note)

        def count(work: Callable[[], object]) -> int:
            counted.clear()
            work()
            return len(counted)

        idle = count(replica.catch_up)
        _write(ledger, blobs, 1)
        found = count(replica.catch_up)
        ledger.close()
    return idle, found


@cache
def ledger_bytes(facts: int = 100) -> float:
    """Of a fact that is a version of its own, in SQLite, to 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="npt-scaling-") as name:
        ledger, blobs = _ledger(Path(name))
        path = Path(name) / "ledger.db"
        before = path.stat().st_size
        for number in range(1, facts + 1):
            _write(ledger, blobs, number)
        ledger.close()
        return math.ceil((path.stat().st_size - before) / facts / 100) * 100


_REPORT = {
    "strategy": "bank",
    "recall_before": 0.0,
    "recall_after": 1.0,
    "locality": 1.0,
    "layers": [5],
    "columns": COLUMNS,
    "probes": {"written": 22, "answered": 22, "training": 13, "held_out": 9},
    "answer": "Dr. Sarah Chen",
    "timings": {"study": 0.6992, "write": 0.2256, "verify": 0.091},
}


def _ledger(folder: Path) -> tuple[Ledger, FolderBlobs]:
    ledger = Ledger(sqlite_url(folder / "ledger.db"))
    ledger.bind("0" * 64)
    return ledger, FolderBlobs(folder / "blobs")


def _bank() -> Bank:
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config = NPTConfig(vocab_size=16, num_attention_heads=1, num_key_value_heads=1, **shape)
    return Bank(NPTForCausalLM(config), {0: Whitening(torch.zeros(16), torch.zeros(16, 4))})


def _write(ledger: Ledger, blobs: FolderBlobs, version: int) -> None:
    columns = Columns(torch.zeros(1, 4), torch.zeros(1, 8), torch.ones(1), torch.zeros(1, 16).half())
    blob = blobs.put(encode(FactWeights({0: columns})))
    request = {"fact": f"The CEO of TechCorp number {version:06d} is Dr. Sarah Chen.", "strategy": "auto"}
    fact = Fact(f"fact_{version:016x}", version, request, _REPORT, blob, now())
    ledger.commit(Change(version - 1, VersionKind.FACT, births=(fact.id,), new_facts=(fact,)))


def given() -> Iterator[str]:
    """What was not computed."""
    yield from table("Given", ("what", "value", "from"), *GIVEN)


def page() -> str:
    """All tables."""
    parts = (given, advice, memory, facts, followers, starts, history)
    return "\n".join(line for part in parts for line in part()).rstrip("\n")


if __name__ == "__main__":
    print(page())
