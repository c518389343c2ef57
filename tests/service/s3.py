"""A server of S3's protocol in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import httpx2
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


@contextmanager
def moto_server() -> Iterator[str]:
    """Its URL; it is empty."""
    server, url = started_server()
    try:
        yield url
    finally:
        server.stop()


def started_server() -> tuple[ThreadedMotoServer, str]:
    """One that somebody else stops, and its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    # What its buckets hold belongs to the process: an earlier server's would be found again.
    httpx2.post(f"{url}/moto-api/reset").raise_for_status()
    return server, url


def bucket_client(url: str) -> "boto3.client":
    """Another client of it than ours."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
