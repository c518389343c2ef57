"""What becomes of memory that the process no longer needs."""

import ctypes
import platform

LARGE = 4 << 20
"""Bytes from which a block gets pages of its own, which go back to the system with it."""
_M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> None:
    """Freed tensors go back to the system at once, under glibc.

    By itself glibc takes the largest block that was freed so far, up to 32 MiB, for the size of what should
    stay in its heaps: the temporaries of consolidation do, between what lives long, and the memory of a
    server under load grows by 60 MiB at a time for no reason that an operator could see (see mallopt(3)).
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
