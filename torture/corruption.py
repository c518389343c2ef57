"""Bits flipped and files cut short: found at start-up, or without effect, but never served."""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from service.blobs import BlobError
from service.host import open_host
from service.ledger import LedgerError
from service.settings import Settings
from service.stores import BLOB_FOLDER, LEDGER_FILE
from tests.service.fakes import FakeRuntime, load_fake_runtime
from torture.process import WriterProcess

CHANGES = ("fact", "batch", "fact", "retract", "fact", "rollback", "batch")


@dataclass
class Outcome:
    """What a run saw. `harmless`: bytes that nothing depends on, as all that is served was compared."""

    detected: int = 0
    harmless: int = 0
    problems: list[str] = field(default_factory=list)


def run(folder: Path, rounds: int, seed: int = 0) -> Outcome:
    """Damage a copy of one data folder `rounds` times, each in one place."""
    draw, outcome = random.Random(seed), Outcome()
    sound = folder / "sound"
    writer = WriterProcess(sound, "none", "ask")
    for change in CHANGES:
        writer.ask(change)
        writer.line()
    writer.kill()
    expected = _served(sound)
    for number in range(rounds):
        data = folder / "damaged"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(sound, data)
        what = _damage(data, draw)
        try:
            served = _served(data)
        except (LedgerError, BlobError) as error:
            outcome.detected += 1
            if "\n" in str(error):
                outcome.problems.append(f"not one line: {what}: {error}")
            continue
        if served == expected:
            outcome.harmless += 1
        else:
            outcome.problems.append(f"served: {number}: {what}")
    return outcome


def _damage(data: Path, draw: random.Random) -> str:
    files = [data / LEDGER_FILE, *sorted((data / BLOB_FOLDER).iterdir())]
    # As many in the ledger as in all blobs together.
    path = files[0] if draw.random() < 0.5 else draw.choice(files[1:])
    content = bytearray(path.read_bytes())
    if draw.random() < 0.25:
        length = draw.randrange(len(content))
        path.write_bytes(content[:length])
        return f"{path.name} cut to {length} of {len(content)} bytes"
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at} of {path.name}"


def _served(data: Path) -> tuple[object, ...]:
    """All that answers depend on, and all that the service tells of its history."""
    host = open_host(Settings(data=data), load_fake_runtime)
    try:
        runtime = host.runtime
        if not isinstance(runtime, FakeRuntime):
            raise TypeError("the double was expected")
        lives = [tuple(life) for life in runtime.bank.lives]
        return lives, host.ledger.versions(), host.ledger.facts(), host.ledger.audit()
    finally:
        host.close()
