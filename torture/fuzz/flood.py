"""Malformed requests by the thousand, against a running server; the same ones for the same seed."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field, replace

import httpx2
import psutil

from torture.fuzz.judge import Judge
from torture.fuzz.mutations import spoilt
from torture.fuzz.requests import QUESTION, Request, drawn
from torture.fuzz.wire import FRAMINGS, TIMEOUT_S, Answer, Framing, ask, sound

CLIENTS = 4
WIRE_SHARE = 0.25
"""Of requests whose framing is spoilt, too."""
WARM_UP = 0.2
"""Of all requests: what memory they leave is of caches that fill."""
MAY_GROW_MIB = 48.0
SAMPLES = 50


@dataclass
class Outcome:
    """What a run saw. Memory in MiB: after the warm-up, at most, at the end."""

    requests: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    warm_mib: float = 0.0
    peak_mib: float = 0.0
    last_mib: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    """A request and how it is sent."""

    request: Request
    framing: Framing | None
    draw: random.Random


def case_of(seed: int, number: int, key: str) -> Case:
    """The `number`-th request of a run."""
    draw = random.Random(f"{seed}-{number}")
    request = spoilt(draw, drawn(draw))
    if not any(name == b"Authorization" for name, _ in request.headers):
        request = request.with_headers((b"Authorization", b"Bearer " + key.encode()))
    framing = draw.choice(FRAMINGS) if draw.random() < WIRE_SHARE else None
    return Case(request, framing, draw)


class Flood:
    """One run against one server."""

    def __init__(self, port: int, pid: int, key: str, count: int, seed: int) -> None:
        self._port, self._key, self._count, self._seed = port, key, count, seed
        self._process = psutil.Process(pid)
        self._url = f"http://127.0.0.1:{port}"
        self._judge = Judge(httpx2.get(f"{self._url}/openapi.json").json())
        self._lock = threading.Lock()
        self._statuses: Counter[str] = Counter()
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """All requests, by several clients at once. The last question is answered as the first."""
        before = self._said()
        clients = [threading.Thread(target=self._client, args=(first,)) for first in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        outcome = self._outcome
        outcome.answers = dict(sorted(self._statuses.items()))
        outcome.last_mib = self._mib()
        if self._said() != before:
            outcome.problems.append("the last answer is another than the first")
        if outcome.last_mib - outcome.warm_mib > MAY_GROW_MIB:
            outcome.problems.append(f"memory grew from {outcome.warm_mib} to {outcome.last_mib} MiB")
        return outcome

    def _client(self, first: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=TIMEOUT_S) as http:
            for number in range(first, self._count, CLIENTS):
                case = case_of(self._seed, number, self._key)
                try:
                    told = self._told(http, case)
                except (OSError, httpx2.TransportError) as error:
                    told = f"{type(error).__name__}: {error}"
                with self._lock:
                    self._note(number, case, told)

    def _told(self, http: httpx2.Client, case: Case) -> Answer | str | None:
        if case.framing is not None:
            return ask(self._port, case.framing(case.draw, case.request))
        return self._by_library(http, case) or ask(self._port, sound(case.draw, case.request))

    def _by_library(self, http: httpx2.Client, case: Case) -> Answer | None:
        """By an HTTP library, where it can express the request."""
        request = case.request
        if request.method != request.method.upper():
            return None  # it would mend that
        try:
            built = http.build_request(
                request.method.decode(),
                request.target.decode(),
                headers=list(request.headers),
                content=request.body,
            )
            if built.url.raw_path != request.target:
                return None
            answer = http.send(built)
        except (ValueError, httpx2.InvalidURL, httpx2.LocalProtocolError):
            return None
        return Answer(answer.status_code, answer.headers, answer.content)

    def _note(self, number: int, case: Case, told: Answer | str | None) -> None:
        outcome = self._outcome
        outcome.requests += 1
        objection: str | None = None
        if isinstance(told, Answer):
            self._statuses[str(told.status)] += 1
            objection = self._judge.objection(case.request, told)
            objection = objection and f"{objection}: {told.status} {told.body[:300]!r}"
        elif told is None:
            outcome.unanswered += 1
            objection = None if case.framing is not None else "no answer"
        else:
            objection = told
        if objection is not None:
            shown = replace(case.request, body=(case.request.body or b"")[:300])
            framing = case.framing.__name__ if case.framing else "sound"
            outcome.problems.append(f"{number}: {objection} to {framing} {shown}")
        self._weigh()

    def _weigh(self) -> None:
        outcome, warm = self._outcome, int(self._count * WARM_UP)
        if outcome.requests == warm:
            outcome.warm_mib = outcome.peak_mib = self._mib()
        elif outcome.requests > warm and outcome.requests % max(self._count // SAMPLES, 1) == 0:
            outcome.peak_mib = max(outcome.peak_mib, self._mib())

    def _mib(self) -> float:
        return round(self._process.memory_info().rss / 2**20, 1)

    def _said(self) -> str:
        """What the base model says: a good request, which must be answered whatever came before."""
        asked = {"prompt": QUESTION, "weights_version": 0}
        answer = httpx2.post(
            f"{self._url}/generate",
            json=asked,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=TIMEOUT_S,
        )
        return answer.raise_for_status().json()["text"]
