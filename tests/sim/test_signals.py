"""Signals, clocks and traces: the same seed gives the same values."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tidegate_sim.errors import TraceError
from tidegate_sim.signals import CLOCK_DRIFT_PPM_MAX, DriftingClock, SignalKind, synthesize
from tidegate_sim.traces import bundled_traces, read_trace


@pytest.mark.parametrize("kind", SignalKind)
def test_a_seed_decides_a_signal(kind: SignalKind) -> None:
    first, again, other = (list(islice(synthesize(kind, Random(seed)), 2_000)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) >= 2


def test_signals_stay_within_what_they_measure() -> None:
    assert set(islice(synthesize(SignalKind.SWITCH, Random(3)), 1_000)) == {0.0, 1.0}
    assert all(0.0 <= value <= 100.0 for value in islice(synthesize(SignalKind.WALK, Random(3)), 20_000))


def test_a_clock_drifts_by_what_it_says() -> None:
    clock = DriftingClock(unix_ms_at_start=1_000_000.0, drift_ppm=50.0)
    assert clock.time_ms(0.0) == 1_000_000
    assert clock.time_ms(86_400.0) == 1_000_000 + 86_400_000 + 4_320
    seeded = DriftingClock.seeded(Random(1), 1_000_000.0)
    assert abs(seeded.drift_ppm) <= CLOCK_DRIFT_PPM_MAX


def test_the_bundled_traces_are_there_with_their_licence() -> None:
    paths = bundled_traces()
    assert [path.name for path in paths] == [
        "ambient_temperature_system_failure.csv",
        "machine_temperature_system_failure.csv",
    ]
    assert (paths[0].parent / "LICENSE.txt").read_text(encoding="utf-8").startswith("Copyright")
    ambient = read_trace(paths[0])
    assert ambient.quantity == "ambient_temperature_system_failure"
    assert ambient.values[:2] == (69.88083514, 71.22022706)
    assert len(ambient.values) == 7_267


def test_a_trace_replays_from_any_row_and_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "pump.csv"
    path.write_text("2020-01-01,1\n2020-01-02,2\n\n2020-01-03,3\n", encoding="utf-8")
    trace = read_trace(path)
    assert trace.quantity == "pump"
    assert list(islice(trace.replay(1), 6)) == [2.0, 3.0, 1.0, 2.0, 3.0, 1.0]
    assert list(islice(trace.replay(3), 4)) == [1.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"timestamp,value\n", "no rows"),
        (b"timestamp,value\n2020,1\n2021,nan\n", "data row 2: 'nan' is not a number"),
        (b"timestamp,value\n2020,1\n2021,\n", "data row 2"),
        (b"2020,1\n\xff\xfe,2\n", "can't be read"),
    ],
)
def test_a_trace_that_is_no_csv_of_numbers_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        read_trace(path)


def test_a_missing_trace_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="can't be read") as caught:
        read_trace(tmp_path / "missing.csv")
    assert "timestamp,value" in caught.value.hint
