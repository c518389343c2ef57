"""Facts by request: at once, or as an operation."""

import threading
from collections.abc import Callable
from dataclasses import asdict, replace

from pydantic import BaseModel

from npt_core.consolidation import Step
from service.commands import Added, AddFacts, Folded, FoldFacts
from service.ledger import IdempotencyKey, Ledger
from service.ledger.operations import Operation
from service.operations import Operations
from service.replica import Replica
from service.schemas.facts import BatchCreated, BatchRehearsed, FactCreated, FactRehearsed
from service.schemas.versions import FoldedOut, FoldRehearsed
from service.writer import Writer, added_in

CREATE, BATCH, FOLD = "facts.create", "facts.batch", "versions.fold"


def teach_later(
    operations: Operations, writer: Writer, command: AddFacts, action: str, dry_run: bool
) -> Operation:
    """The command as an operation; raises as `Operations.submit`."""

    def work(key: IdempotencyKey, cancelled: threading.Event, tell: Callable[[Step], None]) -> BaseModel:
        return _taught(writer, replace(command, key=key, cancelled=cancelled, tell=tell), action, dry_run)

    request = {"facts": [dict(fact.document) for fact in command.facts], "dry_run": dry_run}
    return operations.submit(command.actor, action, request, command.key, work)


def fold_later(operations: Operations, writer: Writer, command: FoldFacts, dry_run: bool) -> Operation:
    """As `teach_later`, for a fold."""

    def work(key: IdempotencyKey, cancelled: threading.Event, _: Callable[[Step], None]) -> BaseModel:
        folded = writer.fold(replace(command, key=key, cancelled=cancelled), dry_run)
        return FoldRehearsed.of(folded) if dry_run else FoldedOut.made(folded)

    facts = None if command.facts is None else list(command.facts)
    request = {"facts": facts, "bars": asdict(command.bars), "dry_run": dry_run}
    return operations.submit(command.actor, FOLD, request, command.key, work)


def _taught(writer: Writer, command: AddFacts, action: str, dry_run: bool) -> BaseModel:
    if dry_run:
        rehearsed = writer.rehearse(command)
        return FactRehearsed.of(rehearsed) if action == CREATE else BatchRehearsed.of(rehearsed)
    return _answer(action, writer.add(command))


def _answer(action: str, added: Added) -> BaseModel:
    return FactCreated.of(added) if action == CREATE else BatchCreated.of(added)


def recalled(ledger: Ledger, replica: Replica, action: str, version: int) -> BaseModel:
    """The answer to a write of `action` that made `version`."""
    added = added_in(ledger, version)
    if action != FOLD:
        return _answer(action, added)
    return FoldedOut.made(Folded(added.version, replica.load_fold(added.version.fold).facts, None))
