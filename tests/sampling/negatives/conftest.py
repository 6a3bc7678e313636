import pytest

from cpo_ray.inference import client
from tests.flaky_server import KEY


@pytest.fixture(autouse=True)
def api_key_and_short_waits(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0002)
    monkeypatch.setenv("CPO_RAY_UNHELPFUL_KEY", KEY)
