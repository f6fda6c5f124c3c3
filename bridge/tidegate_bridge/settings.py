"""The settings of a bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tidegate_wire.address import Address


class BridgeSettings(BaseModel):
    """Where uplinks come in, where the core is, and how much is held at most. Exactly one of `listen` and `broker`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str | None = Field(default=None, description="HOST:PORT on which edges connect; port 0 takes a free one.")
    broker: str | None = Field(
        default=None,
        description="mqtt://HOST:PORT of an MQTT broker through which the edges' uplinks pass, instead of listen.",
    )
    core: tuple[str, ...] = Field(
        min_length=1, description="HOST:PORT of one or more core nodes, or of any Kafka cluster's brokers."
    )
    streams: tuple[str, ...] = Field(
        default=("*",),
        description="The streams that edges may write, as patterns with * and ?; tidegate.losses is always one.",
    )
    stream_partitions: int = Field(
        default=4, ge=1, le=10_000, description="How many partitions a stream gets when a bridge creates it."
    )
    shared_subscription: bool = Field(
        default=True,
        description="With broker: share the uplinks with other bridges where the broker can; false: take all of them.",
    )
    batch_bytes_max: int = Field(
        default=1_000_000,
        ge=1_024,
        le=64 * 1024 * 1024,
        description="The largest record batch taken; the core's max.message.bytes (1,048,588) must not be less.",
    )
    window_batches_max: int = Field(
        default=32, ge=1, le=1_000, description="How many batches an edge is told to have in flight at most."
    )
    in_flight_bytes_max: int = Field(
        default=64 * 1024 * 1024,
        ge=1_024,
        description="Bytes of batches taken and not yet answered; beyond it nothing more is read.",
    )
    in_flight_batches_max: int = Field(
        default=4_096, ge=1, description="Batches taken and not yet answered; beyond it nothing more is read."
    )
    request_timeout_ms: int = Field(
        default=10_000, ge=100, description="How long the core may take to answer; then the connection is made anew."
    )
    retry_ms: int = Field(
        default=30_000,
        ge=0,
        description="How long a batch is tried while the core can't take it; then the edge is told to send it again.",
    )
    ready_file: Path | None = Field(default=None, description="Written as JSON when the bridge serves.")

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str | None) -> str | None:
        return None if value is None else str(Address.parse(value))

    @field_validator("broker")
    @classmethod
    def _check_broker(cls, value: str | None) -> str | None:
        return None if value is None else f"mqtt://{Address.parse_mqtt_url(value)}"

    @field_validator("core")
    @classmethod
    def _check_core(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(Address.parse(address)) for address in value)

    @model_validator(mode="after")
    def _check_one_way_in(self) -> Self:
        if (self.listen is None) == (self.broker is None):
            raise ValueError("a bridge either listens itself or subscribes at a broker: set one of listen and broker")
        if self.in_flight_bytes_max < self.batch_bytes_max:
            raise ValueError("in_flight_bytes_max is less than batch_bytes_max: the largest batch would never fit")
        return self
