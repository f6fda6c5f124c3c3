"""Starting and stopping a node."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.core.server.harness import RawClient, batch_of, produce_fields, running_core
from tests.support.processes import TidegatePart
from tidegate_core.errors import DataDirError, PartitionDamaged
from tidegate_core.protocol.versions import Api
from tidegate_core.settings import CoreSettings
from tidegate_wire.errors import ConfigError
from tidegate_wire.kafka.messages import ErrorCode


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"listen": "nonsense"}, "HOST:PORT"),
        ({"advertise": "nonsense"}, "HOST:PORT"),
        ({"listen": "0.0.0.0:9092"}, "advertise is needed"),
        ({"listen": "[::]:9092"}, "advertise is needed"),
        ({"topic_defaults": {"no.such": "1"}}, "no.such"),
        ({"topic_defaults": {"retention.ms": "soon"}}, "retention.ms"),
        ({"default_partitions": 0}, "greater than or equal to 1"),
        ({"group_session_timeout_min_ms": 10, "group_session_timeout_max_ms": 5}, "group_session_timeout_min_ms"),
        ({"no_such": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_reason(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CoreSettings(data_dir=tmp_path, **fields)


async def test_the_real_port_is_announced_and_advertised(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, advertise="localhost:0") as address,
        RawClient.connect(address) as client,
    ):
        facts = json.loads((tmp_path / "ready.json").read_text())
        assert facts == {"listen": str(address), "node_id": 1}
        assert address.port > 0
        (broker,) = (await client.ask(Api.METADATA, 12, topics=[])).brokers
        assert (broker.host, broker.port) == ("localhost", address.port)


async def test_an_address_in_use_is_refused_and_the_data_directory_free_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}"):
            async with running_core(tmp_path, listen=f"127.0.0.1:{port}"):
                pass
    async with running_core(tmp_path):
        pass


async def test_a_data_directory_belongs_to_one_node_at_a_time(tmp_path: Path) -> None:
    async with running_core(tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        with pytest.raises(DataDirError):
            async with running_core(other, data_dir=tmp_path / "data"):
                pass
    with pytest.raises(DataDirError):
        async with running_core(tmp_path, node_id=2):
            pass


async def test_a_node_whose_metadata_is_damaged_does_not_start(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
    (segment,) = (tmp_path / "data" / "__cluster_metadata-0").glob("*.log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    with pytest.raises(PartitionDamaged):
        async with running_core(tmp_path):
            pass


async def test_a_stop_ends_what_clients_wait_for(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        client = RawClient(reader, writer)
        await client.create_topic("t")
        await client.produce("t", batch_of(b"a"))
        client.send(Api.FETCH, 12, topics=[], min_bytes=1)
        client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"b")))
        await writer.drain()
    assert await client.closed_by_peer()
    writer.close()
    async with running_core(tmp_path) as address, RawClient.connect(address) as again:
        assert (await again.produce("t", batch_of(b"c"))).error_code is ErrorCode.none


def test_a_process_stops_cleanly_and_starts_without_recovery(tmp_path: Path) -> None:
    arguments = ["core", "--node-id", "3", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    for number in range(2):
        with TidegatePart(arguments, tmp_path, name=f"core-{number}") as core:
            assert core.wait_ready()["node_id"] == 3
            core.send_signal(signal.SIGTERM)
            assert core.wait(20) == 0
            assert "core_stopped" in core.output()
            assert "Traceback" not in core.output()
