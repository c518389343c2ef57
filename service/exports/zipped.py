"""A zip file, written piece by piece."""

import io
from collections.abc import Iterable, Iterator
from zipfile import ZIP_STORED, ZipFile, ZipInfo

File = tuple[str, Iterable[bytes]]
"""A path inside the archive, and what it holds."""


class _Sink(io.RawIOBase):
    """What is written, until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def zipped(files: Iterable[File]) -> Iterator[bytes]:
    """An archive of `files`, not compressed: weights do not get smaller."""
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for name, chunks in files:
            with archive.open(ZipInfo(name), "w", force_zip64=True) as file:
                for chunk in chunks:
                    file.write(chunk)
                    yield sink.taken()
    yield sink.taken()
