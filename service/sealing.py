"""Blobs encrypted at rest: what lies in the folder or the bucket is of no use without a key."""

import base64
from collections.abc import Sequence
from typing import Protocol

_MAGIC = b"npt-sealed\x01"


class Sealed(Exception):
    """It was encrypted, and no key that is known opens it."""


class Cipher(Protocol):
    """What is stored for some bytes, and back."""

    def seal(self, data: bytes) -> bytes:
        """What to store for `data`."""

    def open(self, stored: bytes) -> bytes:
        """The bytes that were sealed. Raises `Sealed`."""


class Plain:
    """Stores bytes as they are."""

    def seal(self, data: bytes) -> bytes:
        return data

    def open(self, stored: bytes) -> bytes:
        if stored.startswith(_MAGIC):
            raise Sealed("is encrypted, and NPT_BLOB_KEYS names no key")
        return stored


class Fernets:
    """Fernet (AES-128-CBC, HMAC-SHA256): the first key seals, every key opens.

    What was stored before there was a key is read as it is: its name still tells whether it was changed.

    Raises:
        ValueError: a key that is none.
        ImportError: the extra `encryption` is not installed.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet

        self._invalid = InvalidToken
        self._fernets = MultiFernet([Fernet(key) for key in keys])

    def seal(self, data: bytes) -> bytes:
        # A token is Base64 of bytes: those are a quarter shorter.
        return _MAGIC + base64.urlsafe_b64decode(self._fernets.encrypt(data))

    def open(self, stored: bytes) -> bytes:
        if not stored.startswith(_MAGIC):
            return stored
        try:
            return self._fernets.decrypt(base64.urlsafe_b64encode(stored.removeprefix(_MAGIC)))
        except self._invalid as error:
            raise Sealed(
                "is damaged, or was encrypted with another key than those of NPT_BLOB_KEYS"
            ) from error
