"""Writes that are answered before they are done, one after the other, on a thread of their own.

Each has an idempotency key, its own id if the client gave none: where a process died between the write
and the note that it was done, the key tells what became of it.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import structlog
from opentelemetry.context import Context
from pydantic import BaseModel

from npt_core.consolidation import Step
from service import problems, tracing
from service.blobs import BlobError
from service.commands import (
    Cancelled,
    Interrupted,
    OperationElsewhere,
    OperationEnded,
    OperationNotFound,
    TooManyOperations,
    TooManyWrites,
)
from service.ledger import IdempotencyKey, Ledger, LedgerDamaged, LedgerError, timestamp
from service.ledger.chain import digest
from service.ledger.operations import OPEN, Operation, OperationLog, OperationState
from service.storage import StorageError

log = structlog.get_logger(__name__)

BEAT_S = 10.0
"""So often a process says that it still works on its operations."""
LEASE_S = 60.0
"""Operations of another process that was silent for so long are told as failed."""
KEPT = timedelta(days=7)
"""How long the outcome of an operation can be asked for."""
RETRY_S = 0.1

Work = Callable[[IdempotencyKey, threading.Event, Callable[[Step], None]], BaseModel]
"""Does a write under a key, unless the event is set meanwhile, and tells of its steps; the answer."""
Recall = Callable[[str, int], BaseModel]
"""The answer to a write of an action, from the version that it made."""


def utc() -> datetime:
    """This moment."""
    return datetime.now(UTC)


def nothing() -> None:
    """Counts no refusals."""


@dataclass(slots=True)
class _Job:
    id: str
    key: IdempotencyKey
    work: Work
    context: Context
    cancelled: threading.Event = field(default_factory=threading.Event)
    step: Step | None = None

    def tell(self, step: Step) -> None:
        self.step = step


class Operations:
    """Runs operations of this process, and answers for those of all. Thread-safe.

    Raises the `WriteError`, `LedgerError` and `StorageError` trees.
    """

    def __init__(
        self,
        ledger: Ledger,
        recall: Recall,
        *,
        limit: int = 256,
        clock: Callable[[], datetime] = utc,
        tell_refusal: Callable[[], None] = nothing,
    ) -> None:
        self._ledger = ledger
        self._log = OperationLog(ledger.engine)
        self._recall = recall
        self._clock = clock
        self._tell_refusal = tell_refusal
        self._owner = token_hex(8)
        self._jobs: dict[str, _Job] = {}
        self._queue: queue.Queue[_Job | None] = queue.Queue()
        self._limit = limit
        self._lock = threading.Lock()
        self._closing = False
        self._next_beat = self._clock()
        self._settle_abandoned(self._clock() if not ledger.shared else self._clock() - _LEASE)
        self._worker = threading.Thread(target=self._run, name="npt-operations", daemon=True)
        self._worker.start()

    def submit(
        self, actor: str, action: str, request: Mapping[str, Any], key: IdempotencyKey | None, work: Work
    ) -> Operation:
        """Accept a write, durably; it is done when its turn comes."""
        now = self._now()
        operation_id = f"op_{time.time_ns():016x}{token_hex(4)}"
        used = key or IdempotencyKey(operation_id, digest(request))
        kept = {**request, "idempotency_key": used.key, "digest": used.digest}
        operation = Operation(
            operation_id, actor, action, OperationState.PENDING, kept, None, self._owner, now, now
        )
        job = _Job(operation_id, used, work, tracing.current())
        with self._lock:
            if self._closing:
                raise Interrupted
            if len(self._jobs) >= self._limit:
                self._tell_refusal()
                raise TooManyOperations(self._limit)
            self._jobs[operation_id] = job
        try:
            self._log.add(operation)
        except BaseException:
            self._jobs.pop(operation_id, None)
            raise
        self._queue.put(job)
        return operation

    def get(self, operation_id: str) -> Operation:
        """One operation, of whatever process."""
        found = self._log.get(operation_id)
        if found is None:
            raise OperationNotFound(operation_id)
        return found

    def step(self, operation_id: str) -> Step | None:
        """Where a fact is that this process writes; it is kept nowhere, so others cannot tell."""
        job = self._jobs.get(operation_id)
        return None if job is None else job.step

    def page(self, after: str, limit: int, state: OperationState | None) -> list[Operation]:
        """Operations after an id, oldest first."""
        return self._log.page(after, limit, state)

    def cancel(self, operation_id: str) -> Operation:
        """End one: at once where it waits, between two pieces of work where it runs here, and never once its
        version is stored. What is returned tells whether it has ended already.
        """
        found = self.get(operation_id)
        if self._log.move(operation_id, [OperationState.PENDING], OperationState.CANCELLED, self._now()):
            return self.get(operation_id)
        job = self._jobs.get(operation_id)
        if job is not None:
            job.cancelled.set()
            return self.get(operation_id)
        found = self.get(operation_id)
        if found.state in OPEN:
            raise OperationElsewhere(operation_id)
        raise OperationEnded(operation_id, found.state)

    def tick(self) -> None:
        """Called now and then: say that we live, and tell of those that do not."""
        now = self._clock()
        if now < self._next_beat:
            return
        self._next_beat = now + timedelta(seconds=BEAT_S)
        if self._jobs:
            self._log.beat(self._owner, timestamp(now))
        if self._ledger.shared:
            self._settle_abandoned(now - _LEASE)
        self._log.forget(timestamp(now - KEPT))

    def close(self, deadline: float) -> None:
        """Let the one that runs end, until `deadline` (monotonic); those that wait are told as failed."""
        with self._lock:
            self._closing = True
        self._queue.put(None)
        self._worker.join(max(deadline - time.monotonic(), 0))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._closing:
                self._end(job.id, OperationState.FAILED, problems.problem_of(Interrupted()))
            elif self._move(job.id, [OperationState.PENDING], OperationState.RUNNING, None):
                with tracing.below(job.context):
                    outcome = self._outcome(job)
                self._end(job.id, *outcome)
            self._jobs.pop(job.id, None)

    def _outcome(self, job: _Job) -> tuple[OperationState, BaseModel | None]:
        try:
            while True:
                try:
                    return OperationState.SUCCEEDED, job.work(job.key, job.cancelled, job.tell)
                except TooManyWrites:  # others wait for their answers: they go first
                    if job.cancelled.wait(RETRY_S):
                        raise Cancelled from None
        except Cancelled:
            return OperationState.CANCELLED, None
        except Exception as error:
            # Whatever it is, it is told: nobody else waits for the outcome.
            problem = problems.problem_of(error)
            if problem.type == problems.INTERNAL.type:
                log.exception("an operation failed", operation=job.id)
            return OperationState.FAILED, problem

    def _end(self, operation_id: str, state: OperationState, result: BaseModel | None) -> None:
        self._move(operation_id, OPEN, state, result)

    def _move(
        self,
        operation_id: str,
        before: Sequence[OperationState],
        state: OperationState,
        result: BaseModel | None,
    ) -> bool:
        """As the log does it, and again while the database does not answer; given up when we close, and where
        the operation's row is damaged, which whoever reads it is told.
        """
        told = None if result is None else result.model_dump(mode="json", exclude_none=True)
        while True:
            try:
                return self._log.move(operation_id, before, state, self._now(), told)
            except (LedgerError, StorageError) as error:
                log.error(
                    "cannot note what became of an operation", operation=operation_id, reason=str(error)
                )
                if self._closing or isinstance(error, LedgerDamaged):
                    return False
                time.sleep(RETRY_S)

    def _settle_abandoned(self, before: datetime) -> None:
        """Whoever worked on them is gone: their keys tell whether they had written."""
        for operation in self._log.abandoned(self._owner, timestamp(before)):
            made = self._made_by(operation)
            if made is None:
                problem = problems.problem_of(Interrupted())
                self._end(operation.id, OperationState.FAILED, problem)
            else:
                self._end(operation.id, OperationState.SUCCEEDED, self._recalled(operation, made))

    def _recalled(self, operation: Operation, made: int) -> BaseModel | None:
        try:
            return self._recall(operation.action, made)
        except BlobError as error:  # compacted since
            log.warning("an answer cannot be given again", operation=operation.id, reason=str(error))
            return None

    def _made_by(self, operation: Operation) -> int | None:
        found = self._ledger.find_key(operation.actor, operation.request["idempotency_key"])
        if found is None or found[0].digest != operation.request["digest"]:
            return None
        return found[1]

    def _now(self) -> str:
        return timestamp(self._clock())


_LEASE = timedelta(seconds=LEASE_S)
