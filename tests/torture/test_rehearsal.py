"""The short form of `make rehearsal`; and that its clients see what must not be."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from service import problems
from tests.service.postgres import postgres_or_skip
from torture import rehearsal
from torture.balancer import Balancer
from torture.clients import Caller, Journal, Taught

FACT = Taught(3, "fact_1", "key", "What is thing a-?", "Blue")


@pytest.mark.timeout(900)  # half a minute alone, minutes beside other work
def test_clients_notice_nothing_of_what_a_cluster_does_to_its_replicas(tmp_path: Path) -> None:
    server = postgres_or_skip()
    try:
        outcome = rehearsal.run(tmp_path, server=server, readers=3)
    finally:
        server.remove()
    assert outcome.problems == []
    assert (outcome.drained, outcome.killed, outcome.refused_to_start) == (6, 2, 1)
    assert 0 < outcome.acknowledged == outcome.moved
    assert outcome.recalled == (outcome.moved, outcome.moved)
    assert min(outcome.answers, outcome.streams, outcome.pinned, outcome.compared) > 0


def test_two_texts_for_one_version_are_seen() -> None:
    journal = Journal(exact=False)
    for text in (" Blue.", " Blue.", " Green."):
        journal.said(FACT, 3, text, 0.1)
    assert [problem.partition(":")[0] for problem in journal.problems] == ["mixed"]


def test_version_that_knows_what_came_later_is_seen() -> None:
    journal = Journal()
    journal.said(FACT, 3, " Blue.", 0.1)
    journal.said(FACT, 2, " I don't know.", 0.1)
    assert journal.problems == []
    journal.said(FACT, 1, " Blue.", 0.1)
    assert [problem.partition(":")[0] for problem in journal.problems] == ["mixed"]


def test_only_the_kill_of_its_replica_may_cut_a_request() -> None:
    journal = Journal(replica_of={5001: 1, 5002: 2}.get)
    begin = time.monotonic()
    journal.without_answer(begin, "reader", 5001)
    assert (journal.cut, len(journal.problems)) == (0, 1)
    journal.killed(1)
    journal.without_answer(begin, "reader", 5001)
    assert (journal.cut, len(journal.problems)) == (1, 1)
    for port in (5002, 5003):  # of another replica, and of none
        journal.without_answer(begin, "reader", port)
    assert (journal.cut, len(journal.problems)) == (1, 3)


class _Replica(BaseHTTPRequestHandler):
    """Ready, and says which one it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = str(self.server.server_address[1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(port)))
        self.end_headers()
        self.wfile.write(port.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_balancer_knows_to_which_replica_a_caller_was_led() -> None:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Replica) for _ in range(2)]
    balancer = Balancer()
    try:
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            balancer.add(server.server_port)
            balancer.wait(server.server_port)
        with Caller(balancer.url) as first, Caller(balancer.url) as second:
            callers = [first, second, first]
            said = [int(caller.get("/").text) for caller in callers]
            assert [balancer.replica_of(caller.port) for caller in callers] == said
            assert len(set(said)) == 2
        assert balancer.replica_of(1) is None
    finally:
        balancer.close()
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "wrong"),
    [
        (503, problems.OVERLOADED.type, False),
        (503, problems.FACT_NOT_FOUND.type, True),
        (500, problems.INTERNAL.type, True),
        (502, "about:blank", True),
    ],
)
def test_refusal_that_is_not_documented_is_seen(status: int, kind: str, wrong: bool) -> None:
    journal = Journal()
    journal.refusal(httpx2.Response(status, json={"type": kind}))
    assert bool(journal.problems) is wrong
    assert sum(journal.refused.values()) == 1
