"""The compiled kernels of this machine: `kernels.c`, called with tensors.

They are compiled when the project is installed (`hatch_build.py`), one file for each kind of vector unit,
and loaded for the one that torch computes with. Where there was no C compiler, or torch computes with
another unit, there are none, and the engine computes with torch's own operations, slower.
"""

import ctypes
import logging
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
UNITS = {"AVX512": "avx512", "AVX2": "avx2"}
"""By what `torch.backends.cpu.get_cpu_capability` says."""


class Matrix(ctypes.Structure):
    """`panels` `[ceil(outputs / panel), in, panel]` of a matrix, and the `bias` `[outputs]` of its products,
    or none: addresses, so whoever makes one keeps the tensors.
    """

    _fields_ = [("panels", c_void_p), ("bias", c_void_p), ("outputs", c_int64)]


class Batch(ctypes.Structure):
    """What all rows of a batch attend by, addresses again. Row `i` is at position `positions[i]`; its key and
    value go to slot `slots[i]`, and it looks at `lengths[i]` tokens in the pages from `pages[starts[i]]` on.
    `cosines` and signed `sines` are `[positions, width]`; pages are int32, what else is whole int64.
    """

    _fields_ = [
        *((name, c_void_p) for name in ("cosines", "sines")),
        *((name, c_void_p) for name in ("positions", "slots", "starts", "lengths", "pages")),
        *((name, c_int64) for name in ("rows", "heads", "kv_heads", "width", "page")),
        ("scale", c_float),
    ]


_SIGNATURES: dict[str, list[Any]] = {
    "product": [c_void_p, c_int64, c_int64, c_int64, POINTER(Matrix), c_void_p, c_int32],
    "largest": [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int32],
    "attention": [
        *(c_void_p, c_int64, POINTER(Matrix), POINTER(Batch)),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    ],
    "norm": [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p],
    "gate": [
        *(c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p),
        *(c_int64, c_int64, c_void_p, c_int32),
    ],
    "neurons": [
        *(c_void_p, c_int64, c_int64, POINTER(Matrix), c_void_p, c_int64, POINTER(Matrix), POINTER(Matrix)),
        *(c_int32, c_int32, c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    ],
}


class Library:
    """The kernels in `file`; float32, on a CPU. Numbers of a row lie side by side, and rows, unless said
    otherwise, one after the other. Nobody checks that, nor shapes: what does not fit is written anywhere.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, file: Path) -> None:
        self.unit = file.stem.removeprefix("kernels-")
        # What takes long lets other threads go on; what does not would wait for them when it is done.
        long, short = ctypes.CDLL(str(file)), ctypes.PyDLL(str(file))
        self._product, self._largest, self._attention, self._neurons = (
            _typed(long, name) for name in ("product", "largest", "attention", "neurons")
        )
        self._norm, self._gate = (_typed(short, name) for name in ("norm", "gate"))
        self.panel: int = long.npt_panel()
        """Columns of a panel of `product`."""
        self._together: int = long.npt_together()
        self.widest: int = long.npt_widest()
        """The most dimensions of `largest`."""

    def product(self, x: Tensor, by: Matrix) -> Tensor:
        """`x` `[rows, in]` times a matrix, plus its bias, `[rows, out]`; rows of `x` may lie apart."""
        rows, inputs = x.shape
        y = x.new_empty(rows, by.outputs)
        self._product(x.data_ptr(), x.stride(0), rows, inputs, by, y.data_ptr(), torch.get_num_threads())
        return y

    def largest(self, q: Tensor, keys: Tensor) -> Tensor:
        """The maximum of each row of `q` `[rows, p]` times each of `keys` `[n, p]`, `[rows]`; `p` is at most
        `widest`.
        """
        rows, width = q.shape
        threads = torch.get_num_threads()
        best = q.new_full((threads, rows), -torch.inf)  # OpenMP may have fewer threads to give
        self._largest(q.data_ptr(), rows, width, keys.data_ptr(), len(keys), best.data_ptr(), threads)
        return best.amax(0)

    def attention(
        self, n: Tensor, qkv: Matrix, batch: Batch, memory: tuple[int, int], longest: int
    ) -> Tensor:
        """What rows attend to, `[rows, heads, width]`: queries, keys and values are `n` `[rows, d]` times
        `qkv`; queries and keys get their rotary embedding; keys and values go into `memory`, the addresses
        of theirs `[slots, kv_heads, width]`. Nobody looks at more than `longest` tokens.
        """
        (rows, inputs), heads, threads = n.shape, batch.heads, torch.get_num_threads()
        mixed, q = n.new_empty(rows, qkv.outputs), n.new_empty(rows, heads, batch.width)
        out, scratch = torch.empty_like(q), n.new_empty(threads, self._together * heads * longest)
        self._attention(
            n.data_ptr(), inputs, qkv, batch, mixed.data_ptr(), q.data_ptr(), *memory, scratch.data_ptr(),
            scratch.shape[1], out.data_ptr(), threads,
        )  # fmt: skip
        return out

    def norm(self, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """`x` `[rows, d]` over its root mean square, times `gain` `[d]`."""
        normed = torch.empty_like(x)
        self._norm(x.data_ptr(), None, gain.data_ptr(), epsilon, *x.shape, None, normed.data_ptr())
        return normed

    def added_norm(self, x: Tensor, y: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """`x + y`, and that normed."""
        total, normed = torch.empty_like(x), torch.empty_like(x)
        self._norm(
            x.data_ptr(),
            y.data_ptr(),
            gain.data_ptr(),
            epsilon,
            *x.shape,
            total.data_ptr(),
            normed.data_ptr(),
        )
        return total, normed

    def gate(
        self, g: Tensor, up: Tensor, add: Tensor | None, mult: Tensor | None, scales: Tensor | None
    ) -> Tensor:
        """`silu(g (1 + s mult) + s add) up`, all `[rows, d_ffn]`; `scales` `[rows]` are `s`, or it is 1. Rows
        of `add` and `mult` are as far apart as each other's.
        """
        rows, width = g.shape
        z = g.new_empty(rows, width)
        modulation = mult if add is None else add
        self._gate(
            g.data_ptr(), g.stride(0), up.data_ptr(), up.stride(0), _pointer(add), _pointer(mult),
            0 if modulation is None else modulation.stride(0), _pointer(scales), rows, width, z.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return z

    def neurons(
        self,
        n: Tensor,
        gate_up: Matrix,
        a: Tensor,
        modulation: tuple[Matrix, Matrix, bool, bool] | None,
        scales: Tensor | None,
    ) -> Tensor:
        """What `gate` makes of products, to the bit: `n` `[rows, d]` times `gate_up` gives g and up side by
        side, each as wide as some panels; `a` `[rows, wide]` times both matrices of `modulation` gives add,
        if the first flag says so, and mult, if the second does.
        """
        (rows, inputs), ffn = n.shape, gate_up.outputs // 2
        z = n.new_empty(rows, ffn)
        down, modulate, adds, multiplies = modulation or (None, None, False, False)
        low = None if down is None else n.new_empty(rows, down.outputs)
        self._neurons(
            n.data_ptr(), rows, inputs, gate_up, a.data_ptr(), a.shape[1], down, modulate, adds, multiplies,
            _pointer(scales), _pointer(low), ffn, z.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return z


@cache
def compiled() -> Library | None:
    """The kernels for the vector unit that torch computes with here, if they were compiled."""
    unit = UNITS.get(torch.backends.cpu.get_cpu_capability(), "generic")
    file = FOLDER / f"kernels-{unit}.so"
    if not file.is_file():
        log.warning("no compiled kernels for %s: the engine computes with torch's operations, slower", unit)
        return None
    try:
        return Library(file)
    except OSError as error:
        log.warning(
            "kernels cannot be loaded, the engine computes with torch's operations, slower: %s", error
        )
        return None


def _typed(dll: ctypes.CDLL, name: str) -> "ctypes._NamedFuncPointer":
    function = dll[f"npt_{name}"]
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
