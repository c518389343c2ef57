import threading

import pytest
import torch
from torch import nn

from npt_core.engine import Gate, give_way


def test_pieces_follow_one_another_while_no_step_is_due() -> None:
    gate = Gate()
    for _ in range(3):
        gate.turn()
        gate.leave()


def test_no_piece_starts_within_a_step_and_no_step_within_a_piece() -> None:
    gate, inside, wrong = Gate(0.5), [0], list[str]()

    def write() -> None:
        for _ in range(200):
            gate.turn()
            inside[0] += 1
            if inside[0] != 1:
                wrong.append("piece in company")
            inside[0] -= 1
            gate.leave()
        done.set()

    done = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        with gate.step():
            inside[0] += 1
            if inside[0] != 1:
                wrong.append("step in company")
            inside[0] -= 1
    writer.join()
    assert not wrong


def test_writer_waits_for_its_share_and_goes_on_when_the_engine_is_idle() -> None:
    gate, passed = Gate(), threading.Event()
    with gate.step():
        writer = threading.Thread(target=lambda: (gate.turn(), passed.set(), gate.leave()))
        writer.start()
        assert not passed.wait(0.05)
    gate.idle()
    assert passed.wait(10)
    writer.join()


def test_forward_that_fails_leaves_the_gate_open() -> None:
    gate, model = Gate(), nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    give_way(model, gate)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3))
    with gate.step():
        pass
