"""The safetensors format, written piece by piece: what is exported may be larger than memory.

A file is the length of its header (8 bytes, little endian), the header (JSON: name to dtype, shape and
offsets), and the tensors' bytes, without gaps.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIGNMENT = 8
CHUNK = 1 << 20
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Block:
    """Bytes of some tensors: entries `(name, dtype, shape, first, last)`, offsets counted from the block's
    first byte, and how to read its `size` bytes.
    """

    entries: Sequence[tuple[str, str, Sequence[int], int, int]]
    size: int
    read: Callable[[], Iterable[bytes]]


def streamed(blocks: Sequence[Block], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """One file of all `blocks`, each read when its turn comes."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    for block in blocks:
        for name, dtype, shape, first, last in block.entries:
            offsets = [start + first, start + last]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        start += block.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for block in blocks:
        yield from block.read()


def block_of(data: bytes, prefix: str, read: Callable[[], bytes]) -> Block:
    """The tensors of a whole file, whose bytes are `data` now and `read` later, under a `prefix`."""
    length = 8 + int.from_bytes(data[:8], "little")
    entries = _entries(json.loads(data[8:length]), prefix)
    return Block(entries, len(data) - length, lambda: [read()[length:]])


def blocks_of_file(path: Path, replaced: Mapping[str, bytes]) -> tuple[list[Block], dict[str, str]]:
    """Every tensor of the file at `path` as a block of its own, and its metadata; those that are `replaced`
    become float32.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    blocks = []
    for name, dtype, shape, first, last in _entries(header, ""):
        if name in replaced:
            new = replaced[name]
            blocks.append(Block([(name, "F32", shape, 0, len(new))], len(new), lambda new=new: [new]))  # type: ignore[misc]
            continue
        start, size = 8 + length + first, last - first
        blocks.append(
            Block([(name, dtype, shape, 0, size)], size, lambda at=start, n=size: _part(path, at, n))  # type: ignore[misc]
        )
    return blocks, header.get(_METADATA, {})


def _entries(header: Mapping[str, Any], prefix: str) -> list[tuple[str, str, Sequence[int], int, int]]:
    found = [
        (prefix + name, entry["dtype"], entry["shape"], *entry["data_offsets"])
        for name, entry in header.items()
        if name != _METADATA
    ]
    return sorted(found, key=lambda entry: entry[3])


def _part(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size:
            chunk = file.read(min(CHUNK, size))
            if not chunk:
                raise EOFError(f"{path} became shorter while it was read")
            size -= len(chunk)
            yield chunk
