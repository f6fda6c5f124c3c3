"""A data directory of format 1: of a node alone, from before topics had ids and partitions replicas.

`one_node_format_1.tar.gz` was written by that version, as node 7: topics made, deleted and made again, three records, a
committed offset and a producer id.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.core.server.harness import RawClient, batch_of, running_core, values_of
from tidegate_core.errors import DataDirError
from tidegate_core.log.identity import id_of_old_topic
from tidegate_core.protocol.versions import Api
from tidegate_wire.kafka.messages import ErrorCode

OLD = Path(__file__).parent / "one_node_format_1.tar.gz"
CLUSTER_ID = "r0o8rI9STeOeEU8nW_BtBQ"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "data"


async def everything_is_there(client: RawClient) -> None:
    response = await client.ask(Api.METADATA, 12, topics=None)
    assert response.cluster_id == CLUSTER_ID
    assert {topic.name: len(topic.partitions) for topic in response.topics} == {
        "__consumer_offsets": 2,
        "again": 3,
        "compacted": 1,
        "kept": 2,
    }
    for topic in response.topics:
        assert topic.topic_id == id_of_old_topic(topic.name)
        for part in topic.partitions:
            assert (part.error_code, part.leader_id, part.replica_nodes) == (ErrorCode.none, 7, (7,))
    assert values_of((await client.fetch("kept", 0)).records)[:2] == [b"0", b"2"]
    assert values_of((await client.fetch("kept", 0, partition=1)).records) == [b"1"]
    assert values_of((await client.fetch("compacted", 0)).records) == [b"x"]
    groups = [{"group_id": "g", "topics": None}]
    await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=("g",))
    fetched = await client.ask(Api.OFFSET_FETCH, 8, groups=groups)
    ((topic,),) = (group.topics for group in fetched.groups)
    assert [(part.committed_offset, part.metadata) for part in topic.partitions] == [(2, "m")]


def remove_checkpoints(data: Path) -> None:
    for path in [*data.rglob("checkpoint"), *data.rglob("*.snapshot"), *data.rglob("*.index")]:
        path.unlink()


@pytest.mark.parametrize("is_clean", [True, False], ids=["stopped cleanly", "without checkpoints"])
async def test_an_old_data_directory_is_taken_over_whole(tmp_path: Path, data: Path, is_clean: bool) -> None:
    if not is_clean:
        remove_checkpoints(data)
    for start in range(2):  # the second time it is a directory of the new format
        async with running_core(tmp_path, node_id=7) as address, RawClient.connect(address) as client:
            await everything_is_there(client)
            assert (await client.produce("kept", batch_of(b"new"))).base_offset == 2 + start
            response = await client.ask(Api.INIT_PRODUCER_ID, 4)
            assert response.producer_id == 1000 * (start + 1)
    assert json.loads((data / "meta.json").read_text())["format_version"] == 2


async def test_an_old_topic_is_changed_deleted_and_made_again(tmp_path: Path, data: Path) -> None:
    async with running_core(tmp_path, node_id=7) as address, RawClient.connect(address) as client:
        grown = await client.ask(Api.CREATE_PARTITIONS, 3, topics=[{"name": "kept", "count": 3, "assignments": None}])
        assert grown.results[0].error_code is ErrorCode.none
        assert (await client.produce("kept", batch_of(b"new"), partition=2)).error_code is ErrorCode.none
        assert values_of((await client.fetch("kept", 0)).records) == [b"0", b"2"]
        await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "kept"}])
        await client.create_topic("kept", 1)
        (topic,) = (await client.ask(Api.METADATA, 12, topics=[{"name": "kept"}])).topics
        assert topic.topic_id != id_of_old_topic("kept")
        assert (await client.fetch("kept", 0)).high_watermark == 0
    async with running_core(tmp_path, node_id=7) as address, RawClient.connect(address) as client:
        assert (await client.fetch("kept", 0)).high_watermark == 0
        sizes = await client.ask(Api.DESCRIBE_LOG_DIRS, 4, topics=None)
        kept = [topic for topic in sizes.results[0].topics if topic.name == "kept"]
        assert [part.partition_index for topic in kept for part in topic.partitions] == [0]


async def test_an_old_data_directory_is_refused_to_another_node(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataDirError, match="node 7"):
        async with running_core(tmp_path, node_id=8):
            pass
    assert json.loads((data / "meta.json").read_text())["format_version"] == 1
