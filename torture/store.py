"""A server of S3's protocol behind a proxy that spoils some of its answers, and of what is stored, midway; a
service that keeps its blobs there, under clients that write, restarted now and then.
"""

import asyncio
import base64
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import httpx2

from service.ledger import Ledger, sqlite_url
from service.object_blobs import ObjectBlobs
from service.stores import LEDGER_FILE
from tests.service.s3 import bucket_client, moto_server
from torture.clients import DOCUMENTED
from torture.history import Acknowledged, problems_of
from torture.kill import post
from torture.process import ServerProcess

BUCKET = "weights"
URL = f"s3://{BUCKET}/npt"
CLIENTS = 3
UPLOAD = "upload"
"""A bit of what is stored is flipped. The server that stands for S3 looks at no checksum: the proxy does."""
FAULTS = ("refused", "reset", "unavailable", "failed", "cut", "flipped", "slow", UPLOAD)
CHECKSUM = b"x-amz-checksum-sha256"
RESTART_EVERY = 25
"""Facts: a start reads every blob through the same proxy."""
ATTEMPTS = 40
"""Of a start: each may meet a fault."""
SLOW_S = 0.3
_ANSWERS = {
    "unavailable": b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "failed": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
}
_CODE = b"<Error><Code>BadDigest</Code></Error>"
_BAD_DIGEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(_CODE),
    _CODE,
)


@dataclass
class Outcome:
    """What a run saw."""

    facts: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    starts_refused: int = 0
    problems: list[str] = field(default_factory=list)


class Proxy:
    """One request for each connection; a share of them meets a fault. On a thread of its own."""

    def __init__(self, target: str, share: float, seed: int) -> None:
        self._target, self.share = target.removeprefix("http://").split(":"), share
        self._draw = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        begun = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self.url = f"http://127.0.0.1:{begun.result(60).sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._draw.choice(FAULTS) if self._draw.random() < self.share else None
        try:
            await self._pass(reader, writer, fault)
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str | None
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if fault == UPLOAD and not _length(head):
            fault = None  # nothing is stored
        if fault is not None:
            self.faults[fault] += 1
        if fault == "refused":
            writer.transport.abort()
            return
        if fault in _ANSWERS:
            writer.write(_ANSWERS[fault])
            await writer.drain()
            return
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        body = await reader.readexactly(_length(head))
        if fault == UPLOAD:
            body = _flipped(body)
        if not _is_whole(head, body):
            writer.write(_BAD_DIGEST)
            await writer.drain()
            return
        there = await asyncio.open_connection(self._target[0], int(self._target[1]))
        try:
            there[1].write(_closing(head) + body)
            await there[1].drain()
            # What was asked for is done; the answer may get lost.
            answer = await there[0].read(-1)
        finally:
            there[1].close()
        if fault == "reset":
            writer.transport.abort()
            return
        writer.write(_spoilt(answer, fault))
        await writer.drain()


def _closing(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


def _length(head: bytes) -> int:
    return int(_header(head, b"content-length") or 0)


def _header(head: bytes, name: bytes) -> bytes | None:
    fields = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((value.strip() for field, _, value in fields if field.lower() == name), None)


def _is_whole(head: bytes, body: bytes) -> bool:
    """Whether it is what the checksum says, if there is one."""
    said = _header(head, CHECKSUM)
    return said is None or base64.b64decode(said) == hashlib.sha256(body).digest()


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def _spoilt(answer: bytes, fault: str | None) -> bytes:
    head, gap, body = answer.partition(b"\r\n\r\n")
    if fault == "cut":
        return head + gap + body[: len(body) // 2] if body else head[: len(head) // 2]
    if fault == "flipped" and body:
        body = _flipped(body)
    return _closing(head + gap) + body


def run(folder: Path, facts: int, share: float = 0.2, seed: int = 0) -> Outcome:
    """Until so many facts are acknowledged."""
    outcome = Outcome()
    with moto_server() as url:
        bucket_client(url).create_bucket(Bucket=BUCKET)
        proxy = Proxy(url, share, seed)
        try:
            acknowledged = _written(folder, proxy, facts, outcome)
        finally:
            proxy.close()
        outcome.faults = dict(proxy.faults)
        outcome.problems += _lost(folder, url, acknowledged)
    outcome.facts = len(acknowledged)
    return outcome


def _written(folder: Path, proxy: Proxy, facts: int, outcome: Outcome) -> list[Acknowledged]:
    acknowledged: list[Acknowledged] = []
    while len(acknowledged) < facts:
        with _server(folder, proxy.url, outcome) as server:
            _write(server.url, acknowledged, outcome)
            _read(server.url, acknowledged, outcome)
    return acknowledged


@contextmanager
def _server(folder: Path, store: str, outcome: Outcome) -> Iterator[ServerProcess]:
    """One that started; a start that met a fault may be refused, and is repeated, as an orchestrator does."""
    environment = {"NPT_BLOB_STORE": URL, **environment_of(store)}
    for number in range(ATTEMPTS):
        log = folder / f"{outcome.starts}-{number}.log"
        try:
            server = ServerProcess(folder / "data", environment, log=log)
        except RuntimeError:
            outcome.starts_refused += 1
            if "Traceback" in log.read_text():
                outcome.problems.append(f"start: {log.read_text()[-600:]}")
            continue
        outcome.starts += 1
        try:
            yield server
        finally:
            if server.stop() != 0:
                outcome.problems.append("unclean: a server did not end with 0")
        return
    raise RuntimeError("no start succeeds")


def environment_of(store: str) -> dict[str, str]:
    """What clients of the store find it by."""
    return {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


def _write(url: str, acknowledged: list[Acknowledged], outcome: Outcome) -> None:
    first, lock = len(acknowledged), threading.Lock()
    refused: Counter[str] = Counter(outcome.refused)

    def client(name: int) -> None:
        number = 0
        with httpx2.Client(base_url=url, timeout=120) as http:
            while len(acknowledged) < first + RESTART_EVERY:
                key = f"{outcome.starts}-{name}-{number}"
                answer = post(http, key, f"The thing {key}- is {number}.")
                with lock:
                    if answer.status_code == 201:
                        made = answer.json()
                        acknowledged.append(Acknowledged(made["weights_version"], "fact", made["id"], key))
                        number += 1
                        continue
                    told = answer.status_code, answer.json().get("type")
                    refused[f"{told[0]} {told[1]}"] += 1
                    if told not in DOCUMENTED or told[0] != 503:
                        outcome.problems.append(f"undocumented: {answer.text[:300]}")
                        return

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.refused = dict(refused)


def _read(url: str, acknowledged: list[Acknowledged], outcome: Outcome) -> None:
    """The last fact is known, whatever the store does."""
    last = acknowledged[-1]
    number = last.key.rpartition("-")[2]
    asked = {"prompt": f"What is thing {last.key}-?", "weights_version": last.version}
    said = httpx2.post(f"{url}/generate", json=asked, timeout=120).json().get("text")
    if said != f" {number}.":
        outcome.problems.append(f"answer: {last.key}: {said!r}")


def _lost(folder: Path, store: str, acknowledged: list[Acknowledged]) -> list[str]:
    """Looked for without the proxy."""
    ledger = Ledger(sqlite_url(folder / "data" / LEDGER_FILE))
    try:
        with patch.dict("os.environ", environment_of(store)):
            return problems_of(ledger, ObjectBlobs(URL), acknowledged)
    finally:
        ledger.close()
