"""Bits flipped and files cut short: found at start-up, or when they are read, but never served.

What counts are damages of live bytes: of a blob that the ledger needs, or in the ledger such that SQL reads
something else, or nothing. Each of these has to be found; where bytes were struck that nothing refers to,
everything that the service tells is compared.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from service.blobs import BlobError, FolderBlobs
from service.host import open_host
from service.ledger import ANONYMOUS, Ledger, LedgerError, now, sqlite_url, tables
from service.ledger.api_keys import ApiKeys, Scope
from service.ledger.database import reading
from service.ledger.operations import Operation, OperationLog, OperationState
from service.settings import Settings
from service.stores import BLOB_FOLDER, LEDGER_FILE
from tests.service.fakes import FakeRuntime, load_fake_runtime
from torture import contents
from torture.process import WriterProcess

CHANGES = (
    *("fact", "batch", "fact", "retract", "fact", "rollback", "fact", "fold", "compact"),
    *("fact", "batch", "retract", "fold", "fact"),
)
A_BLOB = "a blob"


@dataclass
class Outcome:
    """What a run saw of damages to live bytes, and how many others there were."""

    live: int = 0
    detected: int = 0
    """The start was refused, in one line."""
    detected_when_read: int = 0
    """Blobs that no start reads, but a fold or a snapshot may."""
    dead: int = 0
    """Nothing refers to the byte, and all that is told was as before, or the start was refused."""
    problems: list[str] = field(default_factory=list)


def run(folder: Path, rounds: int, seed: int = 0) -> Outcome:
    """Damage copies of one data folder, each in one place, until so many damages were of live bytes."""
    sound, draw, outcome = _Sound(folder / "sound"), random.Random(seed), Outcome()
    while outcome.live < rounds:
        data = folder / "damaged"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(sound.data, data)
        path, what = _damage(data, draw)
        struck = sound.struck(path)
        outcome.live += bool(struck)
        outcome.dead += not struck
        problem = _look(sound, data, struck, outcome)
        if problem is not None:
            outcome.problems.append(f"{problem} ({what}: {', '.join(sorted(struck)) or 'dead'})")
    return outcome


class _Sound:
    """A data folder with something in every table, and all that the service tells of it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        _write(data)
        self.told = _told(data)
        self._contents = contents.read(data / LEDGER_FILE)
        self.needed = _needed(data)

    def struck(self, path: Path) -> set[str]:
        """What is live and not as it was: columns, or a blob."""
        if path.name == LEDGER_FILE:
            return contents.changed(self._contents, contents.read(path))
        return {A_BLOB} if path.name in self.needed else set()


def _look(sound: _Sound, data: Path, struck: set[str], outcome: Outcome) -> str | None:
    """What the service makes of it; the problem, if that is one."""
    try:
        told = _told(data)
    except (LedgerError, BlobError) as error:
        outcome.detected += bool(struck)
        return f"not one line: {error}" if "\n" in str(error) else None
    except Exception as error:  # whatever it is, nobody is told in one line
        return f"not told: {error!r}"
    if struck == {A_BLOB} and _unread(data, sound.needed):
        outcome.detected_when_read += 1
        struck = set()
    if told != sound.told:
        return "served"
    return "not found" if struck else None


def _unread(data: Path, names: set[str]) -> bool:
    """Whether one of these blobs is refused where it is read."""
    blobs = FolderBlobs(data / BLOB_FOLDER)
    try:
        for name in names:
            blobs.get(name)
    except BlobError:
        return True
    return False


def _write(data: Path) -> None:
    """Something in every table."""
    writer = WriterProcess(data, "none", "ask")
    try:
        for change in CHANGES:
            writer.ask(change)
            said = writer.line() or "died"
            if not said.startswith(("{", "tidied")):
                raise RuntimeError(f"{change}: {said}")
    finally:
        writer.kill()
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    try:
        keys = ApiKeys(ledger)
        keys.create("all", [Scope.ADMIN], ANONYMOUS)
        until = "2999-01-01T00:00:00.000Z"
        former, _ = keys.create("former", [Scope.GENERATE], ANONYMOUS, 60, 4, until)
        keys.revoke(former.id, ANONYMOUS)
        OperationLog(ledger.engine).add(_operation())
    finally:
        ledger.close()


def _operation() -> Operation:
    moment, request = now(), {"facts": [{"fact": "The sky is blue."}]}
    state, result = OperationState.SUCCEEDED, {"id": "fact_1"}
    return Operation("op_1", ANONYMOUS, "facts", state, request, result, "owner", moment, moment)


def _needed(data: Path) -> set[str]:
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    try:
        return ledger.blobs()
    finally:
        ledger.close()


def _damage(data: Path, draw: random.Random) -> tuple[Path, str]:
    files = [data / LEDGER_FILE, *sorted((data / BLOB_FOLDER).iterdir())]
    # As many in the ledger as in all blobs together.
    path = files[0] if draw.random() < 0.5 else draw.choice(files[1:])
    content = bytearray(path.read_bytes())
    if draw.random() < 0.25:
        length = draw.randrange(len(content))
        path.write_bytes(content[:length])
        return path, f"{path.name} cut to {length} of {len(content)} bytes"
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return path, f"bit {bit} of byte {at} of {path.name}"


def _told(data: Path) -> tuple[object, ...]:
    """All that the service tells, and every row."""
    host = open_host(Settings(data=data), load_fake_runtime)
    try:
        runtime, ledger = host.runtime, host.ledger
        if not isinstance(runtime, FakeRuntime):
            raise TypeError("the double was expected")
        lives = [tuple(life) for life in runtime.bank.lives]
        keys, operations = ApiKeys(ledger).all(), OperationLog(ledger.engine).page("", 100, None)
        return lives, ledger.facts(), keys, operations, _rows(ledger)
    finally:
        host.close()


def _rows(ledger: Ledger) -> list[list[tuple[object, ...]]]:
    everything = tables.metadata.sorted_tables
    with reading(ledger.engine) as connection:
        return [[tuple(row) for row in connection.execute(select(table))] for table in everything]
