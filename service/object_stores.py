"""Object stores by their URLs, with the credentials that their clients usually find."""

import configparser
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

CREDENTIALS_FILE = "AWS_SHARED_CREDENTIALS_FILE"
FRESH = timedelta(minutes=5)
"""The file is read again after so long: whoever rotates the secret changes it."""


def client_options(timeout_s: int = 30) -> "ClientConfig":
    """Of every request; plain HTTP is for stores of one's own network."""
    return {"timeout": f"{timeout_s}s", "connect_timeout": "5s", "allow_http": True}


def open_s3(url: str, timeout_s: int = 30) -> S3Store:
    """The bucket of an `s3://` URL. Credentials, region and endpoint come from the usual AWS variables, or
    credentials from the file that `AWS_SHARED_CREDENTIALS_FILE` names, if it is there.

    Raises:
        obstore.exceptions.BaseError: the URL is none.
    """
    named = os.environ.get(CREDENTIALS_FILE)
    provider = SharedCredentials(Path(named)) if named and Path(named).exists() else None
    return S3Store.from_url(
        url,
        client_options=client_options(timeout_s),
        credential_provider=provider,
        checksum_algorithm="SHA256",  # of what is put: the store refuses what was spoilt on its way
    )


class SharedCredentials:
    """The profile of a file of credentials, as aws-cli writes them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> "S3Credential":
        """What the file says now. Raises OSError, KeyError and configparser.Error."""
        content = configparser.ConfigParser(interpolation=None)
        content.read_string(self._path.read_text(encoding="utf-8"))
        profile = content[os.environ.get("AWS_PROFILE", "default")]
        return {
            "access_key_id": profile["aws_access_key_id"],
            "secret_access_key": profile["aws_secret_access_key"],
            "token": profile.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + FRESH,
        }
