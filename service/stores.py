"""Where the settings keep things. Commands that only tidy come here without a model, and so without torch."""

from service.blobs import Blobs, BlobUnavailable, FolderBlobs
from service.ledger import Ledger, sqlite_url
from service.settings import Settings

LEDGER_FILE = "ledger.db"
BLOB_FOLDER = "blobs"


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that the settings name. Raises the `LedgerError` tree."""
    return Ledger(settings.database_url or sqlite_url(settings.data / LEDGER_FILE))


def open_blobs(settings: Settings) -> Blobs:
    """The blobs that the settings name. Raises the `BlobError` and `StorageError` trees."""
    if settings.blob_store is None:
        return FolderBlobs(settings.data / BLOB_FOLDER)
    try:
        from service.object_blobs import ObjectBlobs
    except ImportError as error:
        reason = "needs the extra `s3`: pip install 'npt[s3]'"
        raise BlobUnavailable(settings.blob_store, reason) from error
    return ObjectBlobs(settings.blob_store)
