"""The compiled kernels compute what torch computes, and each row by itself."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import npt_core.native.library as native
from npt_core.engine.kernels import gated, rotated
from npt_core.layers import Modulation
from npt_core.native import Library, Panels
from tests.programs import skip_or_fail

PAGE = 16
COMPILED = ("generic", "avx2", "avx512") if platform.machine() == "x86_64" else ("generic",)
CAPABILITY = torch.backends.cpu.get_cpu_capability()
RUNNABLE = COMPILED[: {"AVX512": 3, "AVX2": 2}.get(CAPABILITY, 1)]
"""Those that this processor can compute with."""


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=RUNNABLE)
def library(request: pytest.FixtureRequest) -> Library:
    return Library(file_of(request.param))


def file_of(unit: str) -> Path:
    file = native.FOLDER / f"kernels-{unit}.so"
    if not file.is_file():
        skip_or_fail(f"{file.name} was not compiled: install a C compiler, then the project")
    return file


@pytest.mark.parametrize("unit", COMPILED)
def test_kernels_of_other_processors_can_be_loaded(unit: str) -> None:
    assert Library(file_of(unit)).panel == {"generic": 8, "avx2": 16, "avx512": 32}[unit]


@pytest.mark.parametrize(("inputs", "outputs"), [(320, 1920), (64, 40), (2100, 72), (7, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_equal_torch_and_no_row_depends_on_others(
    library: Library, inputs: int, outputs: int, biased: bool
) -> None:
    x, matrix = noise(1, 29, inputs), noise(2, inputs, outputs)
    bias = noise(3, outputs) if biased else None
    panels = Panels.of(library, matrix)
    whole = panels.times(x, bias)
    exact = x.double() @ matrix.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(whole, exact.float(), rtol=1e-4, atol=1e-3)
    for rows in range(1, 29):
        assert torch.equal(panels.times(x[29 - rows :], bias), whole[29 - rows :])
    # Rows that do not lie one after the other.
    assert torch.equal(panels.times(x[::2], bias), whole[::2])
    assert panels.times(x[:0], bias).shape == (0, outputs)


@pytest.mark.parametrize(("count", "width"), [(1, 64), (15, 64), (16, 128), (200, 3), (5000, 64), (77, 18)])
def test_largest_scores_equal_those_of_all(library: Library, count: int, width: int) -> None:
    """Also where keys begin a larger room, in which anything lies behind them."""
    q, room = noise(1, 27, width), noise(2, count + 40, width)
    room[count:] = float("inf")
    for rows in (1, 6, 13, 27):
        found = library.largest(q[:rows], room[:count])
        torch.testing.assert_close(found, (q[:rows] @ room[:count].T).amax(-1), rtol=1e-5, atol=1e-5)


def test_threads_change_no_bit(library: Library) -> None:
    panels, x = Panels.of(library, noise(1, 320, 960)), noise(2, 33, 320)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((panels.times(x, None), attended(library, (90, 17, 1, 16, 33, 64, 7), 6, 2, 64)[0]))
    finally:
        torch.set_num_threads(before)
    for product, mixed in found[1:]:
        assert torch.equal(product, found[0][0])
        assert torch.equal(mixed, found[0][1])


def attention(
    library: Library,
    qkv: Tensor,
    memory: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    angles: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Of queries, keys and values `[rows, heads + 2 kv_heads, width]`, which a unit matrix projects."""
    rows, all_heads, width = qkv.shape
    kv_heads = memory[0].shape[1]
    unit = Panels.of(library, torch.eye(all_heads * width))
    tensors = *angles, *places, tables[1], tables[2], tables[0]
    batch = native.Batch(
        *(t.data_ptr() for t in tensors), rows, all_heads - 2 * kv_heads, kv_heads, width, PAGE, scale
    )
    addresses = memory[0].data_ptr(), memory[1].data_ptr()
    longest = int(tables[2].max())
    return library.attention(qkv.reshape(rows, -1), unit.matrix(None), batch, addresses, longest)


def looked(
    library: Library,
    q: Tensor,
    memory: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Of queries `[rows, heads, width]` that nothing rotates; keys and values are in `memory` already."""
    pages, starts, lengths = tables
    last = lengths - 1
    slots = pages[starts + last // PAGE].long() * PAGE + last % PAGE
    qkv = torch.cat([q, memory[0][slots], memory[1][slots]], 1)
    angles = torch.ones(int(lengths.max()), q.shape[-1]), torch.zeros(int(lengths.max()), q.shape[-1])
    return attention(library, qkv, memory, tables, (last, slots), angles, scale)


def attended(
    library: Library, lengths: tuple[int, ...], heads: int, groups: int, width: int
) -> tuple[Tensor, Tensor]:
    """By the kernel, and by torch, over pages that lie anywhere."""
    kv_heads = heads // groups
    counts = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)).int()
    starts = torch.tensor([sum(counts[:i]) for i in range(len(counts))])
    keys, values = (noise(i, PAGE * len(order), kv_heads, width) for i in (2, 3))
    q = 2 * noise(4, len(lengths), heads, width)
    tables = order, starts, torch.tensor(lengths)
    found = looked(library, q, (keys, values), tables, width**-0.5)
    wanted = []
    for row, length in enumerate(lengths):
        pages = order[starts[row] : starts[row] + counts[row]].long()
        slots = (pages[:, None] * PAGE + torch.arange(PAGE)).flatten()[:length]
        k, v = (part[slots].repeat_interleave(groups, 1).transpose(0, 1) for part in (keys, values))
        wanted.append(F.scaled_dot_product_attention(q[row, :, None], k, v)[:, 0])
    return found, torch.stack(wanted)


@pytest.mark.parametrize(("heads", "groups", "width"), [(5, 1, 64), (8, 4, 128), (4, 2, 8), (2, 1, 20)])
def test_attention_equals_that_of_torch(library: Library, heads: int, groups: int, width: int) -> None:
    for lengths in ((1,), (100,), (3, 16, 17, 90, 1, 250)):
        found, wanted = attended(library, lengths, heads, groups, width)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0, 5, 16])
def test_tokens_of_a_prompt_attend_together_as_each_alone(library: Library, start: int) -> None:
    """Rows for which keys are read at once, up to a draft or another sequence."""
    heads, width, end = 4, 64, 45
    keys, values = noise(1, 48, 2, width), noise(2, 48, 2, width)
    lengths = torch.tensor([*range(start + 1, end + 1), 30, 31, 31])
    rows = len(lengths)
    q, starts = noise(3, rows, heads, width), torch.tensor([0] * (rows - 3) + [0, 0, 1])
    pages = torch.tensor([2, 0, 1], dtype=torch.int32)
    together = looked(library, q, (keys, values), (pages, starts, lengths), 0.125)
    for row in range(rows):
        tables = pages, starts[row : row + 1].clone(), lengths[row : row + 1].clone()
        alone = looked(library, q[row : row + 1], (keys, values), tables, 0.125)
        assert torch.equal(together[row], alone[0]), row


def test_scores_may_be_far_apart(library: Library) -> None:
    """The softmax of what overflows without its maximum taken off, and of what underflows beside it."""
    keys, values = torch.zeros(2, PAGE, 1, 8)
    keys[:3] = torch.tensor([300.0, -300.0, 299.0])[:, None, None]
    values[:3] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    tables = torch.tensor([0], dtype=torch.int32), torch.tensor([0]), torch.tensor([3])
    found = looked(library, torch.ones(1, 1, 8), (keys, values), tables, 0.125)
    wanted = torch.softmax(torch.tensor([300.0, -300.0, 299.0]), 0) @ torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(found, wanted.expand(1, 1, 8))


def test_rotation_writes_keys_and_values_into_their_slots(library: Library) -> None:
    heads, kv_heads, width, rows = 4, 2, 12, 5
    qkv, angles = noise(1, rows, heads + 2 * kv_heads, width), noise(2, 40, width // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    sin[:, : width // 2] *= -1
    positions, slots = torch.tensor([3, 0, 39, 7, 8]), torch.tensor([0, 16, 32, 48, 64])
    keys, values = torch.zeros(2, 5 * PAGE, kv_heads, width)
    # Each row looks at the first slot of a page of its own: at its own value.
    tables = torch.arange(5, dtype=torch.int32), torch.arange(5), torch.ones(5, dtype=torch.int64)
    out = attention(library, qkv, (keys, values), tables, (positions, slots), (cos, sin), 0.125)
    turned = rotated(qkv[:, heads : heads + kv_heads], cos[positions][:, None], sin[positions][:, None])
    torch.testing.assert_close(keys[slots], turned)
    assert torch.equal(values[slots], qkv[:, heads + kv_heads :])
    assert torch.equal(out, values[slots].repeat_interleave(2, 1))
    others = torch.ones(5 * PAGE, dtype=torch.bool).index_fill(0, slots, False)
    assert not keys[others].any()
    assert not values[others].any()


@pytest.mark.parametrize(("turn", "wanted"), [(0.0, 1.0), (torch.pi / 2, 1.5), (torch.pi, 2.0)])
def test_queries_are_rotated(library: Library, turn: float, wanted: float) -> None:
    """Towards the first key, across it, and away from it; their own key is nothing."""
    keys, values = torch.zeros(2, PAGE, 1, 8)
    keys[0, 0, 0], values[0] = 1.0, 1.0
    qkv = torch.stack([100 * torch.eye(8)[0], torch.zeros(8), torch.full((8,), 2.0)])[None]
    tables = torch.zeros(1, dtype=torch.int32), torch.tensor([0]), torch.tensor([2])
    places = torch.tensor([1]), torch.tensor([1])
    angle = torch.full((2, 8), turn)
    signed = angle.sin() * torch.tensor([-1.0] * 4 + [1.0] * 4)
    found = attention(library, qkv, (keys, values), tables, places, (angle.cos(), signed), 1.0)
    torch.testing.assert_close(found, torch.full((1, 1, 8), wanted), rtol=1e-4, atol=1e-4)


def test_norms_equal_that_of_torch(library: Library) -> None:
    x, y, gain = noise(1, 6, 37), noise(2, 6, 37), noise(3, 37)
    torch.testing.assert_close(library.norm(x, gain, 1e-5), F.rms_norm(x, (37,), gain, 1e-5))
    total, normed = library.added_norm(x, y, gain, 1e-5)
    assert torch.equal(total, x + y)
    torch.testing.assert_close(normed, F.rms_norm(x + y, (37,), gain, 1e-5))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("parts", [(), ("add",), ("mult",), ("add", "mult")])
def test_gates_equal_the_formula(library: Library, parts: tuple[str, ...], scaled: bool) -> None:
    """Also for parts of wider matrices, as products of several maps in one are."""
    g, up = noise(1, 7, 66).split(33, -1)
    both = 3 * noise(2, 7, 66)
    add, mult = (
        part if name in parts else None
        for name, part in zip(("add", "mult"), both.split(33, -1), strict=True)
    )
    scales = noise(3, 7) if scaled else None
    wanted = gated(nn.SiLU(), g, up, Modulation(add, mult), None if scales is None else scales[:, None])
    found = library.gate(g, up, add, mult, scales)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    extreme = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, float("inf")]])
    ones = torch.ones_like(extreme)
    torch.testing.assert_close(library.gate(extreme, ones, None, None, None), F.silu(extreme))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("parts", [(), ("add",), ("mult",), ("add", "mult")])
def test_neurons_in_one_have_the_bits_of_their_parts(
    library: Library, parts: tuple[str, ...], biased: bool
) -> None:
    """With more inputs than are read at once, a rank that fills no panel, and more rows than a group."""
    d, ffn, wide, rank, rows = 1100, 2 * library.panel, 48, 20, 131
    widths = {"gate_up": 2 * ffn, "low": rank, "modulate": len(parts) * ffn}
    inputs = {"gate_up": d, "low": wide, "modulate": rank}
    panels = {
        name: Panels.of(library, noise(i, inputs[name], w)) for i, (name, w) in enumerate(widths.items())
    }
    biases = {name: noise(9, w) if biased else None for name, w in widths.items()}
    n, a, scales = noise(5, rows, d), noise(6, rows, wide), noise(7, rows)

    g, up = panels["gate_up"].times(n, biases["gate_up"]).split(ffn, -1)
    low = panels["low"].times(a, biases["low"])
    made = iter(panels["modulate"].times(low, biases["modulate"]).split(ffn, -1) if parts else ())
    add, mult = (next(made) if name in parts else None for name in ("add", "mult"))
    gate_up, down, modulate = (panels[name].matrix(biases[name]) for name in widths)
    modulation = (down, modulate, "add" in parts, "mult" in parts) if parts else None
    for given in (None, scales):
        wanted = library.gate(g, up, add, mult, given)
        assert torch.equal(library.neurons(n, gate_up, a, modulation, given), wanted)
        some = None if given is None else given[130:]
        assert torch.equal(library.neurons(n[130:], gate_up, a[130:], modulation, some), wanted[130:])


def test_what_is_no_number_stays_in_its_row(library: Library) -> None:
    bad = noise(1, 4, 64)
    bad[2, 5] = float("nan")
    gain, panels = torch.ones(64), Panels.of(library, noise(2, 64, 64))
    found = (
        library.norm(bad, gain, 1e-5),
        panels.times(bad, None),
        library.gate(bad, torch.ones_like(bad), None, None, None),
    )
    for each in found:
        assert each[2].isnan().any()
        assert each[[0, 1, 3]].isfinite().all()
    q = bad.view(4, 1, 64)
    keys = noise(3, 4 * PAGE, 1, 64)
    tables = torch.arange(4, dtype=torch.int32), torch.arange(4), torch.full((4,), 9)
    mixed = looked(library, q, (keys, keys), tables, 0.125)
    assert mixed[2].isnan().all()
    assert mixed[[0, 1, 3]].isfinite().all()


def test_without_kernels_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.compiled.__wrapped__() is None
    assert "no compiled kernels" in caplog.text
    for unit in COMPILED:
        (tmp_path / f"kernels-{unit}.so").write_text("not a library")
    caplog.clear()
    assert native.compiled.__wrapped__() is None
    assert "slower" in caplog.text
