"""Where the settings keep things. Commands that only tidy come here without a model, and so without torch."""

from service.blobs import PLAIN, Blobs, BlobUnavailable, FolderBlobs
from service.ledger import Ledger, sqlite_url
from service.sealing import Cipher, Fernets
from service.settings import Settings

LEDGER_FILE = "ledger.db"
BLOB_FOLDER = "blobs"


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that the settings name. Raises the `LedgerError` tree."""
    return Ledger(settings.database_url or sqlite_url(settings.data / LEDGER_FILE))


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name. Raises the `BlobError` and `StorageError` trees."""
    cipher = _cipher(settings)
    if settings.blob_store is None:
        return FolderBlobs(settings.data / BLOB_FOLDER, cipher)
    try:
        from service.object_blobs import ObjectBlobs
    except ImportError as error:
        reason = "needs the extra `s3`: pip install 'npt[s3]'"
        raise BlobUnavailable(settings.blob_store, reason) from error
    return ObjectBlobs(settings.blob_store, cipher)


def _cipher(settings: Settings) -> Cipher:
    if settings.blob_keys is None:
        return PLAIN
    try:
        return Fernets(settings.blob_keys.get_secret_value().split(","))
    except ImportError as error:
        reason = "needs the extra `encryption`: pip install 'npt[encryption]'"
        raise BlobUnavailable("NPT_BLOB_KEYS", reason) from error
