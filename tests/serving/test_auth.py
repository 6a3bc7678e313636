from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from cpo_ray.cluster.loopback import is_loopback
from cpo_ray.errors import ServiceError
from cpo_ray.serving.app import Endpoint, choose_port
from cpo_ray.serving.auth import KeyMiddleware, choose_key, digest


async def shake_hands(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


@pytest.fixture
def client() -> TestClient:
    routes = [Route("/open", lambda _: PlainTextResponse("in")), WebSocketRoute("/socket", shake_hands)]
    return TestClient(KeyMiddleware(Starlette(routes=routes), digest("secret")))


def test_every_route_requires_the_key(client: TestClient) -> None:
    for path in ("/open", "/nothing-here", "/-/healthz"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/open", headers={"Authorization": "Bearer secret"}).text == "in"
    assert client.get("/nothing-here", headers={"authorization": "bearer secret"}).status_code == 404


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer ", "Bearer", "secret", "Basic secret", "Bearer secret ", "Bearer ü"]
)
def test_a_wrong_key_is_refused(client: TestClient, header: str) -> None:
    assert client.get("/open", headers={"Authorization": header.encode()}).status_code == 401


def test_two_keys_are_refused(client: TestClient) -> None:
    headers = [("Authorization", "Bearer secret"), ("Authorization", "Bearer wrong")]
    assert client.get("/open", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_websockets_require_the_key(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
        pass
    with client.websocket_connect("/socket", headers={"Authorization": "Bearer secret"}):
        pass


def test_a_key_is_generated_only_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert len(choose_key("127.0.0.1", "SOME_KEY")) > 30
    assert choose_key("::1", "SOME_KEY") != choose_key("localhost", "SOME_KEY")
    for host in ("0.0.0.0", "10.0.0.5", "::", "example.org"):
        with pytest.raises(ServiceError, match="SOME_KEY"):
            choose_key(host, "SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "mine")
    assert choose_key("0.0.0.0", "SOME_KEY") == choose_key("127.0.0.1", "SOME_KEY") == "mine"
    monkeypatch.setenv("SOME_KEY", "schlüssel")
    with pytest.raises(ServiceError, match="SOME_KEY holds characters"):
        choose_key("127.0.0.1", "SOME_KEY")


def test_a_key_file_is_read_if_the_environment_has_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    file.chmod(0o600)
    assert choose_key("0.0.0.0", "SOME_KEY", file) == "from-the-file"
    file.chmod(0o644)
    with pytest.raises(ServiceError, match="chmod 600"):
        choose_key("127.0.0.1", "SOME_KEY", file)
    file.write_text("")
    file.chmod(0o600)
    with pytest.raises(ServiceError, match="is empty"):
        choose_key("127.0.0.1", "SOME_KEY", file)
    with pytest.raises(ServiceError, match="cannot be read"):
        choose_key("127.0.0.1", "SOME_KEY", tmp_path / "none")
    monkeypatch.setenv("SOME_KEY", "mine")
    assert choose_key("127.0.0.1", "SOME_KEY", file) == "mine"


def test_loopback_free_ports_and_hidden_keys() -> None:
    assert is_loopback("127.1.2.3")
    assert not is_loopback("localhost.example.org")
    assert 1024 <= choose_port("127.0.0.1", 0) <= 65535
    assert "secret" not in repr(Endpoint("http://127.0.0.1:1/v1", "secret"))
