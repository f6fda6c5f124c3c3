from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.processes import free_port
from tidegate_bridge import service
from tidegate_bridge.errors import BridgeConfigError
from tidegate_bridge.settings import BridgeSettings

CORE = {"core": ("127.0.0.1:9092",)}


def test_addresses_are_read_and_written_in_one_form() -> None:
    settings = BridgeSettings(broker="mqtt://broker.example", core=("a:1", "[::1]:2"))
    assert settings.broker == "mqtt://broker.example:1883"
    assert settings.core == ("a:1", "[::1]:2")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (CORE, "set one of listen and broker"),
        (CORE | {"listen": "127.0.0.1:1", "broker": "mqtt://b"}, "set one of listen and broker"),
        ({"listen": "127.0.0.1:1", "core": ()}, "core"),
        ({"listen": "127.0.0.1:1", "core": ("nonsense",)}, "HOST:PORT"),
        (CORE | {"listen": "1884"}, "HOST:PORT"),
        (CORE | {"broker": "http://b"}, "mqtt://"),
        (CORE | {"listen": "127.0.0.1:1", "batch_bytes_max": 5_000_000, "in_flight_bytes_max": 4_000_000}, "never fit"),
        (CORE | {"listen": "127.0.0.1:1", "lisen": "x"}, "lisen"),
    ],
)
def test_settings_that_make_no_bridge_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        BridgeSettings(**settings)


async def test_an_address_that_is_taken_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ready = tmp_path / "ready.json"
    settings = BridgeSettings(listen=f"127.0.0.1:{port}", core=(f"127.0.0.1:{free_port()}",), ready_file=ready)
    with pytest.raises(BridgeConfigError, match="listen") as caught:
        await service.run(settings)
    assert caught.value.hint
    assert not ready.exists()
    server.close()
    await server.wait_closed()
