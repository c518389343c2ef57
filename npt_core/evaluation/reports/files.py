"""The files of a report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npt_core.evaluation.evaluate import Results
from npt_core.evaluation.reports.plot import draw
from npt_core.evaluation.reports.render import PLOT_FILE, as_markdown, as_text


def write_reports(results: Results, folder: Path, command: str = "npt eval facts") -> str:
    """Writes `table.txt`, `results.json`, `evaluation.md` and its plot; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = as_text(results)
    (folder / "table.txt").write_text(table, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(results, command), encoding="utf-8")
    draw(results, folder / PLOT_FILE)
    return table


def as_json(results: Results) -> dict[str, Any]:
    """Everything measured; the write of each single fact included."""
    return {
        "config": json.loads(json.dumps(asdict(results.config), default=str)),
        "about": results.about,
        "notes": results.notes,
        "records": [asdict(record.key) | {"metrics": record.metrics} for record in results.records],
    }
