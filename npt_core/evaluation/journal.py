"""Everything measured, as JSON lines: a run that was stopped goes on where it was."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Metrics = dict[str, float]


@dataclass(frozen=True)
class Key:
    """What was measured. `detail` tells apart what the other fields do not."""

    method: str
    protocol: str
    order: str = "random"
    facts: int = 1
    seed: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Record:
    """One measurement; rates in 0..1, `perplexity` as a relative change, `kl` in nats per token."""

    key: Key
    metrics: Metrics


@dataclass
class Journal:
    """Records by key. With `path`, each is on disk before the next is measured."""

    path: Path | None = None
    progress: Callable[[str], None] | None = None
    records: dict[Key, Metrics] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            for line in text.splitlines():
                self._read(line)
            if text and not text.endswith("\n"):  # cut by a crash: the next line must not join it
                self.path.write_text(text + "\n", encoding="utf-8")

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return  # the line that was being written when the run was stopped
        if "note" in entry:
            self.notes[entry["note"]] = entry["value"]
        else:
            self.records[Key(**entry["key"])] = entry["metrics"]

    def once(self, key: Key, measure: Callable[[], Mapping[str, float]], told: bool = True) -> Metrics:
        """The metrics of `key`, measured now unless they are known; `told` reports progress."""
        if key not in self.records:
            begin = time.perf_counter()
            self.records[key] = dict(measure())
            self._append({"key": asdict(key), "metrics": self.records[key]})
            if told:
                self._say(key, time.perf_counter() - begin)
        return self.records[key]

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of `name`, made now unless it is known."""
        if name not in self.notes:
            value = make()
            self.notes[name] = value
            self._append({"note": name, "value": value})
        return self.notes[name]

    def of_seeds(self, seeds: Collection[int]) -> list[Record]:
        """The records of `seeds`, in the order of measuring."""
        return [Record(key, metrics) for key, metrics in self.records.items() if key.seed in seeds]

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _say(self, key: Key, seconds: float) -> None:
        if self.progress is not None:
            shown = ("recall", "locality", "perplexity", "seconds")
            known = self.records[key]
            figures = " ".join(f"{name} {known[name]:.4f}" for name in shown if name in known)
            parts = [
                key.method,
                key.protocol,
                key.order,
                key.detail,
                f"n={key.facts}",
                f"seed {key.seed}",
            ]
            self.progress(f"[{seconds:6.1f} s] {' '.join(p for p in parts if p)}: {figures}")
