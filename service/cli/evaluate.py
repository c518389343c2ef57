"""`npt eval facts | tune`: how well facts are learned, and what learning them costs."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.failing import fail, told_in_one_line

app = typer.Typer(help="Measure learning by real generation.", no_args_is_help=True)

Model = Annotated[Path, typer.Option(help="Checkpoint folder.")]


@app.command("facts")
def facts(
    model: Model = Path("models/reference"),
    out: Annotated[Path, typer.Option(help="Folder for results; a stopped run goes on.")] = Path(
        "runs/evaluation"
    ),
    counts: Annotated[str, typer.Option(help="Numbers of facts, with commas.")] = "1,10,100,1000",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="20 facts, one seed, a minute.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder with wiki-leads.jsonl.xz.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that write facts.")] = 1,
) -> None:
    """Recall, paraphrase, locality, drift and cost, in both tiers and against baselines."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.evaluation import run_facts_evaluation

    try:
        numbers = tuple(int(part) for part in counts.split(","))
    except ValueError:
        fail(f"--counts {counts!r} is not a list of numbers such as 1,10,100")
    with told_in_one_line(CheckpointError, ValueError, OSError):
        typer.echo(run_facts_evaluation(model, out, numbers, tuple(range(seeds)), quick, data, processes))


@app.command("tune")
def tune(
    model: Model = Path("models/reference"),
    facts: Annotated[int, typer.Option(min=5, help="Facts of the development split.")] = 60,
    out: Annotated[Path, typer.Option(help="Where the table goes, as JSON lines.")] = Path(
        "runs/tuning.jsonl"
    ),
    write: Annotated[bool, typer.Option("--write", help="Store the best in the checkpoint.")] = False,
) -> None:
    """Choose layers, thresholds and margins on a development split."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.evaluation.tuning import tune as search

    with told_in_one_line(CheckpointError, ValueError, OSError):
        typer.echo(search(model, facts, out, write))


@app.command("equivalence")
def equivalence(
    teacher: Annotated[Path, typer.Option(help="The plain Llama it was made from.")],
    model: Model = Path("models/reference"),
    facts: Annotated[int, typer.Option(min=1, help="Fresh facts to read.")] = 200,
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents.")] = 300,
) -> None:
    """A converted model against its teacher: perplexity, and reading facts from a context."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.evaluation.equivalence import compare_with_teacher

    with told_in_one_line(CheckpointError, ValueError, OSError):
        typer.echo(compare_with_teacher(teacher, model, facts, documents))
