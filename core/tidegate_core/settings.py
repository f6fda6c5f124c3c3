"""Everything about a core node that can be set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tidegate_core.errors import InvalidLogConfig
from tidegate_core.log.config import LogConfig
from tidegate_wire.address import Address

MIB = 1024 * 1024

_ALL_INTERFACES = ("0.0.0.0", "::")


def _check_address(text: str) -> str:
    return str(Address.parse(text))


def parse_voters(voters: Iterable[str]) -> dict[int, Address]:
    """Node ids and addresses of ID@HOST:PORT.

    Raises:
        ValueError: one is something else, or an id or address is there twice.
    """
    parsed: dict[int, Address] = {}
    for voter in voters:
        node_id, _, address = voter.partition("@")
        if not node_id.isdecimal() or not address:
            raise ValueError(f"{voter!r} is not ID@HOST:PORT, as in 1@10.0.0.1:9092")
        if int(node_id) in parsed:
            raise ValueError(f"voter {node_id} is there twice")
        parsed[int(node_id)] = Address.parse(address)
    if len(set(parsed.values())) < len(parsed):
        raise ValueError("two voters have the same address")
    return parsed


def _check_voters(voters: tuple[str, ...]) -> tuple[str, ...]:
    parse_voters(voters)
    return voters


def _check_topic_settings(settings: dict[str, str]) -> dict[str, str]:
    try:
        LogConfig.from_names(settings)
    except InvalidLogConfig as error:
        raise ValueError(str(error)) from error
    return settings


class CoreSettings(BaseModel):
    """A core node: who it is, where it listens, where its data is, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_id: int = Field(default=1, ge=0, le=2**31 - 1, description="This node's number in the cluster.")
    listen: Annotated[str, AfterValidator(_check_address)] = Field(
        default="127.0.0.1:9092", description="HOST:PORT to listen on; port 0 takes a free one."
    )
    advertise: Annotated[str, AfterValidator(_check_address)] | None = Field(
        default=None,
        description="HOST:PORT that clients are told to connect to; by default where the node listens, as for port 0.",
    )
    data_dir: Path = Field(description="Directory for all data of this node.")
    voters: Annotated[tuple[str, ...], AfterValidator(_check_voters)] = Field(
        default=(),
        description="ID@HOST:PORT of each node that votes on the cluster's metadata, the same on every node; "
        "empty for a cluster of this node alone. A node that is not among them joins as one that holds partitions.",
    )
    ready_file: Path | None = Field(default=None, description="File to write, as JSON, once the node serves.")

    auto_create_topics: bool = Field(
        default=True, description="Make a topic when a client first asks for it, as Kafka does by default."
    )
    default_partitions: int = Field(
        default=4, ge=1, le=1000, description="Partitions of a topic for which no number was given."
    )
    offsets_partitions: int = Field(
        default=8, ge=1, le=1000, description="Partitions of __consumer_offsets; fixed once the topic is there."
    )
    partitions_max: int = Field(
        default=4000,
        ge=1,
        description="Partitions on this node in all; each takes memory, time at the start, and open files.",
    )
    topic_defaults: Annotated[dict[str, str], AfterValidator(_check_topic_settings)] = Field(
        default_factory=dict,
        description="Settings of topics that were given none of their own, by Kafka's names (retention.ms, ...).",
    )

    default_replication_factor: int = Field(
        default=3, ge=1, le=7, description="Replicas of a topic for which no number was given; fewer on fewer nodes."
    )
    election_timeout_ms: int = Field(
        default=1000,
        ge=100,
        le=60_000,
        description="A node that is not heard for this long is replaced as the leader of its partitions.",
    )
    heartbeat_ms: int = Field(
        default=250,
        ge=10,
        description="How long a follower's fetch waits when there is nothing new: at most a third of the election "
        "timeout.",
    )
    recovery_bytes_per_s: int = Field(
        default=64 * MIB,
        ge=MIB,
        description="How fast this node sends records to replicas that are far behind, so that new records get by.",
    )
    shutdown_timeout_s: float = Field(
        default=5.0, ge=0, description="How long a node that is told to stop waits for others to lead its partitions."
    )

    connections_max: int = Field(
        default=5000, ge=1, description="Client connections at once; more are closed as they come."
    )
    connection_idle_s: float = Field(
        default=600, gt=0, description="Close a connection on which nothing was asked for this long, as Kafka does."
    )
    connection_stall_s: float = Field(
        default=30,
        gt=0,
        description="Close a connection whose request stops half-way, or whose answer is not taken, for this long.",
    )
    request_bytes_max: int = Field(
        default=100 * MIB,
        ge=1024,
        le=2**31 - 1,
        description="The largest request, as Kafka's socket.request.max.bytes.",
    )
    requests_in_flight_max: int = Field(
        default=200, ge=1, description="Requests of one connection that may wait for their answers; then reading stops."
    )
    connection_bytes_max: int = Field(
        default=32 * MIB,
        ge=1024,
        description="Bytes of requests that one connection may have waiting, one request excepted; then reading stops.",
    )
    memory_bytes_max: int = Field(
        default=512 * MIB,
        ge=MIB,
        description="Memory for requests and answers of all connections; above it reading stops until some are done.",
    )
    fetch_bytes_max: int = Field(
        default=8 * MIB,
        ge=1024,
        description="The largest answer to one Fetch, one batch excepted, whatever the client would take.",
    )
    fetch_wait_ms_max: int = Field(default=60_000, ge=0, description="The longest a Fetch may wait for records.")

    group_initial_delay_ms: int = Field(
        default=100,
        ge=0,
        description="How long an empty group waits for more members before its first assignment (KIP-134).",
    )
    group_members_max: int = Field(default=1000, ge=1, description="Members of one consumer group.")
    groups_max: int = Field(
        default=10_000, ge=1, description="Groups in one partition of __consumer_offsets; any client can make one."
    )
    group_session_timeout_min_ms: int = Field(
        default=6_000, ge=1, description="The shortest session timeout a member may ask for, as in Kafka."
    )
    group_session_timeout_max_ms: int = Field(
        default=1_800_000, ge=1, description="The longest session timeout a member may ask for, as in Kafka."
    )
    offsets_retention_minutes: int = Field(
        default=10_080, ge=1, description="How long the offsets of an empty group are kept, as in Kafka: seven days."
    )

    @model_validator(mode="after")
    def _check_advertise(self) -> CoreSettings:
        if self.advertise is None and Address.parse(self.listen).host in _ALL_INTERFACES:
            raise ValueError(f"advertise is needed with listen = {self.listen}: clients can't connect to that")
        return self

    @model_validator(mode="after")
    def _check_heartbeat(self) -> CoreSettings:
        if self.heartbeat_ms * 3 > self.election_timeout_ms:
            raise ValueError("heartbeat_ms is above a third of election_timeout_ms: one late answer would end a leader")
        return self

    @model_validator(mode="after")
    def _check_session_timeouts(self) -> CoreSettings:
        if self.group_session_timeout_min_ms > self.group_session_timeout_max_ms:
            raise ValueError("group_session_timeout_min_ms is above group_session_timeout_max_ms")
        return self
