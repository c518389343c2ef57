"""Memory of large tensors goes back to the system."""

import platform
import subprocess
import sys

import pytest

from tests.programs import skip_or_fail

SIZES = """
import ctypes, sys
import torch
from service.cli.allocator import return_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()] + [
        (f"other{i}", ctypes.c_size_t) for i in range(5)
    ]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
if sys.argv[1] == "set":
    return_large_blocks()
freed = torch.empty(24 << 20, dtype=torch.uint8)
del freed  # glibc's own idea of what is large would be this from now on
before = mallinfo2().hblkhd
kept = torch.empty(8 << 20, dtype=torch.uint8)
print(mallinfo2().hblkhd - before)
"""


@pytest.mark.parametrize(("how", "own_pages"), [("set", True), ("unset", False)])
def test_large_tensors_have_pages_of_their_own(how: str, own_pages: bool) -> None:
    if platform.libc_ver()[0] != "glibc":
        skip_or_fail("a matter of glibc")
    command = [sys.executable, "-c", SIZES, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": ""})
    assert (int(done.stdout) >= 8 << 20) is own_pages
