"""What a device measures and when it thinks it is: endless signals and drifting clocks, all from a given seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

CLOCK_DRIFT_PPM_MAX: Final = 100.0
"""Cheap crystals are good to about 100 ppm over temperature: 8.6 s a day."""

_VALUE_DIGITS: Final = 4
"""A synthetic value is rounded to this many decimals, as a 16-bit converter gives no more."""


class SignalKind(StrEnum):
    """The synthetic signals."""

    SINE = "sine"
    WALK = "walk"
    SWITCH = "switch"


UNITS: Final = {SignalKind.SINE: "Cel", SignalKind.WALK: "%RH", SignalKind.SWITCH: "/"}
"""Units by their SenML names (RFC 8428, section 12.1)."""

QUANTITIES: Final = {SignalKind.SINE: "temperature", SignalKind.WALK: "humidity", SignalKind.SWITCH: "door"}


def synthesize(kind: SignalKind, rng: Random) -> Iterator[float]:
    """An endless signal of the kind; the same generator state gives the same values."""
    match kind:
        case SignalKind.SINE:
            return _sine_with_noise(rng)
        case SignalKind.WALK:
            return _random_walk(rng)
        case SignalKind.SWITCH:
            return _on_off(rng)


def _sine_with_noise(rng: Random) -> Iterator[float]:
    mean, amplitude = rng.uniform(15.0, 25.0), rng.uniform(1.0, 8.0)
    samples_per_turn, phase = rng.uniform(50.0, 500.0), rng.uniform(0.0, math.tau)
    step, noise = math.tau / samples_per_turn, amplitude / 50.0
    while True:
        yield round(mean + amplitude * math.sin(phase) + rng.gauss(0.0, noise), _VALUE_DIGITS)
        phase = (phase + step) % math.tau


def _random_walk(rng: Random) -> Iterator[float]:
    value, step = rng.uniform(30.0, 70.0), rng.uniform(0.05, 0.5)
    while True:
        yield round(value, _VALUE_DIGITS)
        value = min(100.0, max(0.0, value + rng.uniform(-step, step)))


def _on_off(rng: Random) -> Iterator[float]:
    state, change_probability = float(rng.random() < 0.5), rng.uniform(0.005, 0.1)
    while True:
        yield state
        if rng.random() < change_probability:
            state = 1.0 - state


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftingClock:
    """A device's wall clock: set once, then running a little fast or slow."""

    unix_ms_at_start: float
    """What the clock shows at fleet time 0."""
    drift_ppm: float

    @classmethod
    def seeded(cls, rng: Random, unix_ms: float) -> DriftingClock:
        """A clock within the limits of cheap crystals, set to within a second."""
        return cls(
            unix_ms_at_start=unix_ms + rng.uniform(-500.0, 500.0),
            drift_ppm=rng.uniform(-CLOCK_DRIFT_PPM_MAX, CLOCK_DRIFT_PPM_MAX),
        )

    def time_ms(self, fleet_time_s: float) -> int:
        """What the clock shows `fleet_time_s` after the fleet's start, in ms since the Unix epoch."""
        return int(self.unix_ms_at_start + fleet_time_s * 1000.0 * (1.0 + self.drift_ppm * 1e-6))
