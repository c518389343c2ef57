"""The command line, `npt`. Each command imports what it needs when it runs, and no sooner."""

import typer

from service.cli import (
    audit,
    bench,
    compare,
    config,
    convert,
    evaluate,
    facts,
    generate,
    keys,
    ledger,
    model,
    openapi,
    operations,
    serve,
    train,
    versions,
)

app = typer.Typer(
    name="npt",
    help="A language model that learns facts while it serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # They would print facts and prompts.
)
app.command("serve")(serve.command)
app.command("generate")(generate.command)
app.command("convert")(convert.command)
app.command("compare")(compare.command)
app.command("bench")(bench.command)
app.command("audit")(audit.command)
app.command("openapi")(openapi.command)
app.add_typer(facts.app, name="facts")
app.add_typer(versions.app, name="versions")
app.add_typer(operations.app, name="operations")
app.add_typer(config.app, name="config")
app.add_typer(keys.app, name="keys")
app.add_typer(ledger.app, name="ledger")
app.add_typer(model.app, name="model")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")


def main() -> None:
    """The entry point of the console script."""
    app()
