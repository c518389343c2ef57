"""Everything that runs in one process: the loaded model, its facts, the engine, the writer."""

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Protocol

import structlog
from anyio import CapacityLimiter

from npt_core.engine import Engine, EngineClosed, EngineConfig, StepRunner, alone, passes_for
from npt_core.placement import Device, DType
from service.access import Access
from service.blobs import Blobs
from service.bringing import bring_in
from service.folding import Folds
from service.housekeeping import Expiry, Housekeeping
from service.ledger import FolderLock, Ledger
from service.ledger.api_keys import ApiKeys
from service.metrics import Metrics
from service.operations import Operations
from service.replica import Replica
from service.runtime import Consolidator, Runtime
from service.settings import Settings, is_loopback
from service.storage import make_private_folder
from service.stores import open_blobs, open_ledger
from service.teaching import recalled
from service.version_gate import VersionGate
from service.writer import Writer

log = structlog.get_logger(__name__)

THREADS = 8
CLOSING_S = 30.0
CALIBRATION_FOLDER = "calibration"
"""Beside the facts, whose keys mean nothing under another calibration."""


class LoadRuntime(Protocol):
    """`npt_core.loading.load_runtime`, or a double of it."""

    def __call__(
        self, source: str, /, *, device: Device, dtype: DType, cache: Path | None = None
    ) -> Runtime: ...


@dataclass(frozen=True)
class Host:
    """What the endpoints work with. Closing it ends every answer and frees the data folder."""

    settings: Settings
    runtime: Runtime
    engine: Engine
    ledger: Ledger
    blobs: Blobs
    replica: Replica
    writer: Writer
    operations: Operations
    housekeeping: Housekeeping
    gate: VersionGate
    metrics: Metrics
    access: Access
    lock: FolderLock
    writing: CapacityLimiter
    """Threads of writers, who wait for their turns: of the threads that all else needs they take none."""
    asking: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(THREADS))
    """Threads that wait for the engine, behind what is being learned."""
    encoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(THREADS))
    """Threads that turn prompts into tokens, also where a database hangs and others wait for it."""
    draining: threading.Event = field(default_factory=threading.Event)
    left_behind: threading.Event = field(default_factory=threading.Event)

    @property
    def version(self) -> int:
        """The newest version."""
        return self.runtime.bank.version

    @property
    def dead(self) -> str | None:
        """Why only a restart helps, if that is so."""
        return None if self.engine.failure is None else f"the engine failed: {self.engine.failure}"

    @property
    def unready(self) -> str | None:
        """Why traffic should go elsewhere, if it should."""
        if self.draining.is_set():
            return "the server is shutting down"
        if self.dead is not None:
            return self.dead
        if self.replica.problem is not None:
            return self.replica.problem
        if self.replica.lag > self.settings.version_lag:
            return f"{self.replica.lag} versions behind the ledger"
        return None

    def close(self) -> None:
        """Let a write end, cancel what runs, then let go of the ledger and the folder. A write is
        `left_behind` where a disk, a store or a database hangs.
        """
        deadline = time.monotonic() + CLOSING_S
        self.housekeeping.close(deadline)
        self.operations.close(deadline)
        if not self.writer.close(deadline):
            self.left_behind.set()
        self.replica.close(deadline)
        self.engine.close()
        self.ledger.close()
        self.lock.release()


def open_host(settings: Settings, load_runtime: LoadRuntime) -> Host:
    """Open the data folder, load the model, and give it every fact it was taught.

    Raises:
        LedgerError, BlobError, StorageError: the data folder, the database or the object store cannot be
            used.
        Unguarded: there are no API keys, and other machines would reach the server.
        npt_core.checkpoint.CheckpointError: the checkpoint cannot.
        npt_core.placement.Unplaceable, npt_core.engine.UnsupportedModel: not on this device.
    """
    make_private_folder(settings.data)
    lock = FolderLock(settings.data)
    try:
        # A damaged ledger is told at once, not after the model took its time to load.
        ledger = open_ledger(settings)
        access = Access(ApiKeys(ledger))
        _refuse_to_serve_strangers(settings, access)
        blobs = open_blobs(settings)
        runtime, runner, replica = alone(_prepared, settings, load_runtime, ledger, blobs)
        return _assemble(settings, runtime, runner, ledger, blobs, replica, access, lock)
    except BaseException:
        lock.release()
        raise


class Unguarded(Exception):
    """Other machines would reach a server that asks nobody for a key."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host} is reachable from other machines and there are no API keys: make one (npt keys "
            "create), bind 127.0.0.1, or set NPT_ALLOW_UNAUTHENTICATED=1 if that is what you want"
        )


def _refuse_to_serve_strangers(settings: Settings, access: Access) -> None:
    if not (access.demanded or settings.allow_unauthenticated or is_loopback(settings.host)):
        raise Unguarded(settings.host)


def _prepared(
    settings: Settings, load_runtime: LoadRuntime, ledger: Ledger, blobs: Blobs
) -> tuple[Runtime, StepRunner, Replica]:
    """The model with every fact it was taught, and what computes its steps."""
    runtime = load_runtime(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        cache=settings.data / CALIBRATION_FOLDER,
    )
    ledger.bind(runtime.fingerprint)
    if runtime.bank_file is not None:
        bring_in(runtime.bank_file, ledger, blobs, runtime.bank)
    replica = Replica(ledger, blobs, runtime.bank)
    replica.catch_up()
    return runtime, runtime.runner(settings.kv_pages), replica


def _assemble(
    settings: Settings,
    runtime: Runtime,
    runner: StepRunner,
    ledger: Ledger,
    blobs: Blobs,
    replica: Replica,
    access: Access,
    lock: FolderLock,
) -> Host:
    bank, metrics = runtime.bank, Metrics()
    gate = VersionGate(lambda: replica.version)
    engine = _engine(settings, runtime, runner)
    writer = Writer(
        ledger,
        blobs,
        bank,
        replica,
        runtime.consolidator,
        Folds(ledger, replica, bank, runtime.fold_writer),
        metrics,
        engine.execute,
        max_pending=settings.max_pending_writes,
    )

    _watch_over(runtime.consolidator, engine, writer)
    operations = Operations(
        ledger,
        partial(recalled, ledger, replica),
        limit=settings.max_pending_operations,
        tell_refusal=metrics.rejections.labels("too_many_operations").inc,
    )
    expiry = Expiry(ledger, writer, lambda: bank.version)
    housekeeping = Housekeeping([expiry.tick, operations.tick])
    host = Host(
        settings,
        runtime,
        engine,
        ledger,
        blobs,
        replica,
        writer,
        operations,
        housekeeping,
        gate,
        metrics,
        access,
        lock,
        CapacityLimiter(settings.max_pending_writes + THREADS),  # more than may wait: they are refused
    )
    _published(host)
    _watch(host)
    _tell(host)
    replica.serve(partial(engine.execute, urgent=True), lambda: _published(host))
    housekeeping.start()
    return host


def _engine(settings: Settings, runtime: Runtime, runner: StepRunner) -> Engine:
    config = EngineConfig(
        settings.max_concurrency,
        settings.queue_size,
        settings.batch_tokens,
        writers_share=settings.writers_share,
    )
    return Engine(runner, runtime.bank, runtime.template.eos_token_ids, config)


def _watch_over(consolidator: Consolidator, engine: Engine, writer: Writer) -> None:
    """Consolidation lets steps of the engine go first, ends when it is cancelled, and tells where it is."""

    def pause() -> None:
        engine.pause()
        writer.stop_if_cancelled()

    consolidator.give_way(pause, passes_for(engine.runner, pause))
    consolidator.tell_steps(writer.tell_step)


def _published(host: Host) -> None:
    """There are new versions: wake who waits for them, and let go of those that are now too old, once what is
    being learned, which may read them, is done. Nobody waits for that: other versions can come first.
    """
    bank, engine = host.runtime.bank, host.engine
    host.gate.announce()
    oldest = host.version - host.settings.keep_versions
    with suppress(EngineClosed):
        retired = engine.post(lambda: bank.retire(oldest, engine.oldest_pinned))
        retired.add_done_callback(_tell_failure)


def _tell_failure(outcome: Future[None]) -> None:
    if (error := outcome.exception()) is not None:
        log.error("old versions are not let go of", reason=str(error))


def _watch(host: Host) -> None:
    bank, engine = host.runtime.bank, host.engine
    host.metrics.watch(
        {
            "npt_requests_running": ("Sequences being decoded.", lambda: engine.running),
            "npt_requests_waiting": ("Sequences in the queue.", lambda: engine.waiting),
            "npt_weights_version": ("The newest version.", lambda: bank.version),
            "npt_weights_version_lag": (
                "Versions that the ledger was seen to have and this replica lacks.",
                lambda: host.replica.lag,
            ),
            "npt_ledger_reachable": (
                "Whether the database answered when it was last asked.",
                lambda: float(host.replica.reachable),
            ),
            "npt_ready": ("Whether traffic may come here.", lambda: float(host.unready is None)),
            "npt_read_only": (
                "Whether nothing is written until restart, because the storage failed.",
                lambda: float(host.writer.read_only is not None),
            ),
            "npt_live_versions": ("Versions that can be pinned.", lambda: bank.version - bank.oldest + 1),
            "npt_bank_columns": ("Plastic columns at the newest version.", bank.num_columns),
            "npt_kv_cache_usage_ratio": (
                "Share of the pages of keys and values that running sequences hold.",
                lambda: engine.kv_usage,
            ),
        }
    )
    cache = engine.prefix_cache
    host.metrics.count(
        {
            "npt_prefix_cache_queries_total": (
                "Prompt tokens looked up in the prefix cache.",
                lambda: cache.queried_tokens,
            ),
            "npt_prefix_cache_hits_total": (
                "Prompt tokens found in the prefix cache.",
                lambda: cache.hit_tokens,
            ),
            "npt_draft_tokens_total": (
                "Guessed tokens that were computed beside a sequence that decoded alone.",
                lambda: engine.drafts.tried,
            ),
            "npt_draft_tokens_accepted_total": (
                "Guessed tokens that were right.",
                lambda: engine.drafts.accepted,
            ),
            "npt_preemptions_total": (
                "Sequences set back because pages ran out.",
                lambda: engine.preemptions,
            ),
        }
    )


def _tell(host: Host) -> None:
    def stamped() -> dict[str, str]:
        version, chain = host.replica.stamp
        return {"version": str(version), "chain": chain, "fingerprint": host.runtime.fingerprint}

    host.metrics.tell(
        "npt_weights_chain_info",
        "The newest version and its chain hash: replicas with equal hashes serve equal weights.",
        stamped,
    )
    host.metrics.tell(
        "npt_build_info",
        "The release, and the checkpoint that it serves.",
        lambda: {
            "version": metadata.version("npt"),
            "model": host.settings.model_name,
            "fingerprint": host.runtime.fingerprint,
        },
    )
