"""A process that writes: `python -m torture.writer DATA MUTANT MODE`.

`forever` writes one change after the other. `ask` makes one for each line on standard input: `fact`,
`batch`, `retract`, `rollback` or `fold`, or that of the last key once more, `again`; or tidies up: `compact`,
`collect` or `reseal`; or answers a prompt: `read`. Each change that is made is one line of JSON on standard
output, each that is refused a line with `refused` and why, and what is tidied a line with `tidied`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

from npt_core.engine import GenerationRequest, SamplingParams, TokenEvent
from service.commands import WriteError
from service.compaction import compact
from service.fact_requests import add_command, fold_command
from service.garbage import collect
from service.host import Host, open_host
from service.ledger import ANONYMOUS, LedgerError
from service.logs import configure_logging
from service.schemas.facts import FactContent
from service.schemas.versions import FoldIn
from service.settings import Settings
from service.storage import StorageError
from tests.service.fakes import load_fake_runtime
from torture.history import Acknowledged
from torture.mutants import ACK_FIRST, plant

READY = "ready"
TIDYING = ("compact", "collect", "reseal")


class Author:
    """Makes changes to one host, each as it is named."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._names = count(host.version)
        self._last: Callable[[], Acknowledged] | None = None

    def make(self, change: str) -> Acknowledged:
        """One change. Raises what the writer refuses."""
        every = {
            "fact": self.fact,
            "batch": self.batch,
            "retract": self.retract,
            "rollback": self.rollback,
            "fold": self.fold,
            "again": self.again,
        }
        return every[change]()

    def fact(self) -> Acknowledged:
        return self._teach(1)

    def batch(self) -> Acknowledged:
        return self._teach(3)

    def retract(self) -> Acknowledged:
        newest = max(self.host.ledger.live(self.host.version))
        version = self.host.writer.retract(newest).version
        return Acknowledged(version.version, str(version.kind), newest)

    def rollback(self) -> Acknowledged:
        version = self.host.writer.activate(self.host.version // 2).version
        return Acknowledged(version.version, str(version.kind), "")

    def fold(self) -> Acknowledged:
        newest = max(self.host.ledger.live(self.host.version) - self.host.replica.folded)
        key = f"fold-{next(self._names)}"
        command = fold_command(FoldIn(facts=[newest]), ANONYMOUS, key)

        def made() -> Acknowledged:
            version = self.host.writer.fold(command).version
            return Acknowledged(version.version, str(version.kind), "", key)

        return self._keyed(made)

    def again(self) -> Acknowledged:
        """What was asked for last under a key, as a client repeats what was not answered."""
        if self._last is None:
            raise LookupError("nothing was asked for under a key")
        return self._last()

    def tidy(self, what: str) -> str:
        """What changes no version: a snapshot, the end of blobs that nothing needs, or one stored again."""
        ledger, blobs = self.host.ledger, self.host.blobs
        if what == "compact":
            return f"tidied {compact(ledger, blobs, keep=1)}"
        if what == "collect":
            return f"tidied {len(collect(ledger, blobs, timedelta(0)).deleted)}"
        name = min(ledger.blobs())
        return f"tidied {blobs.put(blobs.get(name))}"

    def read(self) -> str:
        """What the model says now."""
        prompt = tuple(b"Who is thing 0?")
        events = self.host.engine.submit(GenerationRequest(prompt, SamplingParams(16)))
        return bytes(event.token_id for event in events if isinstance(event, TokenEvent)).decode()

    def changes(self) -> Iterator[str]:
        """Names of changes for ever, mostly of facts."""
        for number in count(1):
            knows = bool(self.host.ledger.live(self.host.version))
            if number % 7 == 0 and knows:
                yield "retract"
            elif number % 11 == 0:
                yield "rollback"
            else:
                yield "batch" if number % 5 == 0 else "fact"

    def _teach(self, facts: int) -> Acknowledged:
        number = next(self._names)
        asked = [FactContent(fact=f"The thing {number}-{i}- is {'v' * 500}.") for i in range(facts)]
        key = f"key-{number}"
        command = add_command(asked, 2, ANONYMOUS, key, batch=facts > 1)

        def made() -> Acknowledged:
            added = self.host.writer.add(command)
            return Acknowledged(added.version.version, str(added.version.kind), added.facts[0].id, key)

        return self._keyed(made)

    def _keyed(self, made: Callable[[], Acknowledged]) -> Acknowledged:
        self._last = made
        return made()


def main() -> None:
    data, mutant, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    configure_logging("CRITICAL")
    plant(mutant)
    host = open_host(Settings(data=data), load_fake_runtime)
    author = Author(host)
    _say(READY)
    for change in author.changes() if mode == "forever" else map(str.strip, sys.stdin):
        if mutant == ACK_FIRST and change == "fact":
            _say(Acknowledged(host.version + 1, "fact", "").line())
        try:
            _say(_answer(author, change))
        except (WriteError, StorageError, LedgerError) as error:
            _say(f"refused {type(error).__name__}: {error}")
    host.close()


def _answer(author: Author, asked: str) -> str:
    if asked == "read":
        return author.read()
    return author.tidy(asked) if asked in TIDYING else author.make(asked).line()


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # the call that fails was this one
        os._exit(1)


if __name__ == "__main__":
    main()
