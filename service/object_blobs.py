"""Blobs in an object store: S3 and what speaks its protocol."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from obstore.exceptions import BaseError

from service.blobs import (
    PLAIN,
    BlobDamaged,
    BlobMissing,
    BlobSealed,
    BlobUnavailable,
    Stored,
    is_name,
    opened,
)
from service.object_stores import open_s3
from service.sealing import Cipher

log = structlog.get_logger(__name__)

READS = 3
"""Of an object that comes damaged, or not to its end: perhaps it is not the store's fault."""
READ_AT_ONCE = 8
"""Objects that are asked for together: each takes its time to come."""


class ObjectBlobs:
    """Objects below a prefix of a bucket, e.g. `s3://bucket/npt`.

    Consistency is S3's: once a put was answered, every reader gets the object.

    Raises:
        BlobUnavailable: the store cannot be reached, or does not let us in.
    """

    def __init__(self, url: str, cipher: Cipher = PLAIN) -> None:
        self._cipher = cipher
        self._url = url.rstrip("/")
        try:
            self._store = open_s3(self._url)
            next(iter(self._store.list(chunk_size=1)), None)
        except BaseError as error:
            raise BlobUnavailable(self._url, _reason(error)) from error

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        try:
            self._store.put(name, self._cipher.seal(data))
        except BaseError as error:
            raise BlobUnavailable(f"{self._url}/{name}", _reason(error)) from error
        return name

    def get(self, name: str) -> bytes:
        where = f"{self._url}/{name}"
        for left in reversed(range(READS)):
            try:
                answer = self._store.get(name)
            except FileNotFoundError as error:
                raise BlobMissing(where, "is missing") from error
            except BaseError as error:  # after the store's client has repeated the request
                raise BlobUnavailable(where, _reason(error)) from error
            try:
                return opened(where, name, answer.bytes().to_bytes(), self._cipher)
            except (BlobDamaged, BlobSealed, BaseError) as error:
                problem = BlobUnavailable(where, _reason(error)) if isinstance(error, BaseError) else error
                if left:
                    log.warning("a blob was spoilt on its way, it is read again", reason=str(problem))
        raise problem

    def get_all(self, names: Sequence[str]) -> Generator[bytes]:
        with ThreadPoolExecutor(READ_AT_ONCE, "npt-blobs") as readers:
            try:
                yield from readers.map(self.get, names)
            finally:
                readers.shutdown(cancel_futures=True)

    def __contains__(self, name: object, /) -> bool:
        try:
            self._store.head(str(name))
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise BlobUnavailable(f"{self._url}/{name}", _reason(error)) from error
        return True

    def __iter__(self) -> Iterator[Stored]:
        try:
            for page in self._store.list():
                for entry in page:
                    if is_name(entry["path"]):
                        yield Stored(entry["path"], entry["last_modified"])
        except BaseError as error:
            raise BlobUnavailable(self._url, _reason(error)) from error

    def delete(self, name: str) -> None:
        try:
            self._store.delete(name)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise BlobUnavailable(f"{self._url}/{name}", _reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line: what follows is the library's own debugging."""
    return f"is out of reach: {str(error).splitlines()[0][:300]}"
