"""The settings of a simulated fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tidegate_sim.device import FLASH_EVENTS_LIMIT
from tidegate_sim.signals import SignalKind
from tidegate_wire.address import Address

DEVICES_MAX: Final = 20_000
"""Each device has a socket of its own, and one address has some 28,000 outgoing ports."""

RATE_HZ_MAX: Final = 10_000.0
"""Faster than one Python process can sample and send."""


def _mqtt_url(text: str) -> str:
    return f"mqtt://{Address.parse_mqtt_url(text)}"


MqttUrl = Annotated[str, AfterValidator(_mqtt_url)]


class SimSettings(BaseModel):
    """What to simulate, and against whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: tuple[MqttUrl, ...] = Field(
        min_length=1,
        description="Where the devices connect: mqtt://HOST:PORT, or several; device number i takes the i-th, in turn.",
    )
    devices: int = Field(10, ge=1, le=DEVICES_MAX, description="How many devices there are.")
    rate: float = Field(1.0, gt=0, le=RATE_HZ_MAX, description="Samples a second of each device (Hz).")
    seconds: float = Field(10.0, gt=0, description="For how long the devices sample.")
    drain_seconds: float = Field(
        30.0, ge=0, description="How long to wait after that for what is not acknowledged yet, reconnecting if need be."
    )
    ledger: Path | None = Field(
        None, description="Where to write what was published and what was acknowledged; none is written by default."
    )
    flash_dir: Path | None = Field(
        None,
        description="Where the devices' flash is kept, so that a fleet goes on where it was killed; by default"
        " beside the ledger, as LEDGER.flash, and in memory only where there is no ledger.",
    )
    trace: Path | None = Field(
        None,
        description="Replay this CSV file (rows of timestamp,value), one row a sample; `bundled` replays the recorded"
        " temperatures that come with Tidegate, in turn. Synthetic signals by default.",
    )
    signal: SignalKind | Literal["mixed"] = Field(
        "mixed", description="The synthetic signal; mixed gives the devices all of them in turn."
    )
    topic: str = Field(
        "sensors/{device}/{quantity}",
        min_length=1,
        max_length=1024,
        pattern=r"^[^+#\x00]+$",
        description="The topic of each event; {device} and {quantity} are filled in.",
    )
    name: str = Field(
        "d",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="What the devices' names begin with: d gives d-0001, d-0002, ...; fleets need different ones.",
    )
    qos: int = Field(1, ge=1, le=2, description="The QoS of each PUBLISH.")
    mqtt_version: Literal["3.1.1", "5"] = Field("3.1.1", description="The version of MQTT to speak.")
    window: int = Field(
        100, ge=1, le=FLASH_EVENTS_LIMIT, description="Events on the way and not acknowledged, at most, of each device."
    )
    flash_events: int = Field(
        16_384,
        ge=1,
        le=FLASH_EVENTS_LIMIT,
        description="Un-acknowledged events that a device's flash holds; when it is full the device skips samples.",
    )
    keep_alive_seconds: int = Field(30, ge=1, le=65_535, description="The MQTT keep-alive.")
    reconnect_seconds_max: float = Field(
        5.0, gt=0, description="The longest pause before a new attempt to connect; the pause is random (full jitter)."
    )
    power_loss_every: float | None = Field(
        None, gt=0, description="Let each device lose power at random, once in so many seconds on average."
    )
    power_off_seconds: float = Field(0.5, ge=0, description="How long a device without power stays off.")
    disconnect_every: float | None = Field(
        None, gt=0, description="Let each device's radio drop its connection, once in so many seconds on average."
    )
    seed: int = Field(0, description="Decides every random choice: signals, clocks, and when power and radio fail.")
    status_file: Path | None = Field(None, description="Where to write the counts, twice a second, as a JSON object.")
    as_json: bool = Field(False, description="Print the counts at the end as one JSON object on stdout.")
    ready_file: Path | None = Field(None, description="Written once the fleet runs.")
