from collections.abc import Iterator

import pytest

from service.logs import configure_logging


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command sends logs to its own standard error, which ends with it."""
    yield
    configure_logging("CRITICAL")
