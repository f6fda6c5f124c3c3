"""The settings of an edge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tidegate_edge.event_log import LogLimits, WhenFull
from tidegate_edge.event_log.schema import STREAMS_MAX
from tidegate_wire.address import Address
from tidegate_wire.mqtt.errors import MqttError
from tidegate_wire.mqtt.topics import check_topic_filter
from tidegate_wire.uplink.event import EDGES_STREAM, LOSS_STREAM, PRODUCERS_STREAM
from tidegate_wire.uplink.topics import is_edge_id

PartitionBy = Literal["edge", "device"]

_STREAM_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,248}")
"""What may be a Kafka topic, but for `.` and `..`."""

_OWN_STREAMS: Final = frozenset({LOSS_STREAM, PRODUCERS_STREAM, EDGES_STREAM})


def _check_stream_name(name: str) -> str:
    if _STREAM_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a stream: letters, digits, `.`, `_` and `-`, at most 249")
    if name in _OWN_STREAMS:
        raise ValueError(f"{name} is written by Tidegate itself")
    return name


class StreamSettings(BaseModel):
    """One stream, and the topics whose events go to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The stream's name; the topic's name in the core")
    topics: tuple[str, ...] = Field(min_length=1, description="MQTT topic filters; the first stream that matches wins")
    partition_by: PartitionBy = Field(
        default="edge", description="What an event's partition follows from: all of an edge in one, or by device"
    )

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _check_stream_name(name)

    @field_validator("topics")
    @classmethod
    def _topics(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        for topic_filter in topics:
            try:
                check_topic_filter(topic_filter)
            except MqttError as error:
                raise ValueError(f"{topic_filter!r} is not a topic filter: {error}") from error
        return topics


class EdgeSettings(BaseModel):
    """Everything that can be set of an edge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="The edge's name: a letter or digit, then letters, digits, `.`, `_` and `-`")
    listen: str = Field(default="127.0.0.1:1883", description="HOST:PORT for devices; port 0 asks for a free one")
    uplink: str = Field(description="mqtt://HOST:PORT of the bridge, or of the broker before it")
    data_dir: Path = Field(description="Where the event log is kept")
    streams: tuple[StreamSettings, ...] = Field(
        default=(), max_length=STREAMS_MAX - 2, description="Streams, and which topics go to them"
    )
    default_stream: str = Field(default="events", description="The stream for topics that no stream names")
    default_partition_by: PartitionBy = Field(
        default="edge", description="What an event's partition in the default stream follows from"
    )
    backlog_bytes_max: int = Field(
        default=LogLimits().backlog_bytes_max, ge=1_048_576, description="Bytes on disk that the event log may use"
    )
    backlog_events_max: int | None = Field(
        default=None, ge=1, description="Events that the event log may hold; unset: only the bytes count"
    )
    when_full: WhenFull = Field(
        default="refuse",
        description="At a limit: acknowledge no further events, or drop the oldest and write loss records",
    )
    disk_free_bytes_min: int = Field(
        default=LogLimits().disk_free_bytes_min, ge=0, description="Free disk space below which no event is taken"
    )
    commit_interval_ms: int = Field(
        default=0, ge=0, le=60_000, description="How long a group of events fills; more spares an SD card"
    )
    linger_ms: int = Field(
        default=50, ge=0, le=60_000, description="How long events wait for a full batch while another is on its way"
    )
    keepalive_s: int = Field(
        default=15, ge=1, le=240, description="MQTT keep-alive of the uplink; a silent cut is noticed in twice of it"
    )
    reconnect_delay_max_s: float = Field(
        default=30.0, gt=0, le=3600, description="The longest pause between two attempts to connect the uplink"
    )
    presence_interval_s: float = Field(
        default=30.0, gt=0, le=3600, description="How often the retained presence message is renewed"
    )
    ready_file: Path | None = Field(default=None, description="Written once the edge serves: where it listens")

    @field_validator("id")
    @classmethod
    def _id(cls, text: str) -> str:
        if not is_edge_id(text):
            raise ValueError(f"{text!r} is not an edge id: a letter or digit, then letters, digits, `.`, `_`, `-`")
        return text

    @field_validator("listen")
    @classmethod
    def _listen(cls, text: str) -> str:
        return str(Address.parse(text))

    @field_validator("uplink")
    @classmethod
    def _uplink(cls, text: str) -> str:
        return f"mqtt://{Address.parse_mqtt_url(text)}"

    @field_validator("default_stream")
    @classmethod
    def _default_stream(cls, name: str) -> str:
        return _check_stream_name(name)

    @model_validator(mode="after")
    def _streams_differ(self) -> Self:
        seen: dict[str, str] = {}
        for name in (*(stream.name for stream in self.streams), self.default_stream):
            other = seen.setdefault(name.lower(), name)
            if other != name:
                raise ValueError(f"the streams {other} and {name} differ in upper and lower case only")
        names = [stream.name for stream in self.streams]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the stream {name} is there twice; give it all of its topics in one place")
        if self.default_stream in names:
            raise ValueError(f"{self.default_stream} is the default stream; it takes what no stream names")
        return self
