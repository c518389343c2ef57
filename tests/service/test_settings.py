import pytest

from service.host import Unguarded
from service.settings import Settings, is_loopback
from tests.service.conftest import OpenHost


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_served_without_keys(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_other_machines_are_served_with_keys_or_on_demand(host_of: OpenHost, host: str) -> None:
    with pytest.raises(Unguarded, match="reachable from other machines"):
        host_of(host=host)
    assert host_of(host=host, allow_unauthenticated=True).version == 0


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPT_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001
