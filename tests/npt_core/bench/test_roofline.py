import pytest
import torch

from npt_core.bench import roofline
from npt_core.bench.load import NEW_TOKENS, PROMPT_TOKENS
from npt_core.bench.plain import without_adapters
from npt_core.bench.roofline import bytes_per_token, measure_bandwidth, weight_bytes
from npt_core.convert import convert_llama_to_npt
from tests.npt_core.tiny import new_llama


@pytest.mark.parametrize("tied", [False, True])
def test_step_reads_every_weight_but_an_embedding_that_is_no_head(tied: bool) -> None:
    llama = new_llama(tie_word_embeddings=tied)
    embedding = llama.model.embed_tokens.weight.numel()
    everything = llama.num_parameters()
    model = without_adapters(convert_llama_to_npt(llama))
    assert weight_bytes(model) == 4 * (everything if tied else everything - embedding)


def test_streams_share_the_weights_and_not_the_cache() -> None:
    model = without_adapters(convert_llama_to_npt(new_llama()))
    entries = PROMPT_TOKENS + NEW_TOKENS // 2 + 1
    cache = 2 * entries * 2 * 16 * 4  # layers, positions, keys and values, 2 heads of 8, float32
    assert bytes_per_token(model, 1) == weight_bytes(model) + cache
    assert bytes_per_token(model, 4) == weight_bytes(model) // 4 + cache


def test_bandwidth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._BIG, "cpu", 2**22)
    found = measure_bandwidth(2**20, torch.device("cpu"))
    assert min(found.memory, found.resident) > 1e6


def test_gpu_is_measured_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("record")

        def synchronize(self) -> None:
            told.append("synchronize")

        def elapsed_time(self, _end: object) -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert roofline._least_seconds(lambda: told.append("sum"), 1, torch.device("cuda")) == 0.002
    assert told == ["record", "sum", "record", "synchronize"] * 2


@pytest.mark.parametrize(("free", "size"), [(100 * 2**30, 8 * 2**30), (3 * 2**30, 3 * 2**29)])
def test_array_of_a_gpu_is_large_and_fits(monkeypatch: pytest.MonkeyPatch, free: int, size: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 2 * free))
    assert roofline._size(torch.device("cuda")) == size
