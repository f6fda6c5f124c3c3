"""Running a fleet: files, links, the clock that drives it, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from tidegate_sim.connection import DeviceLink, Network
from tidegate_sim.errors import FleetFilesError, NoTargetAnsweredError
from tidegate_sim.flash import Flash
from tidegate_sim.fleet import DeviceSetup, Fleet, set_up_devices
from tidegate_sim.ledger_file import LedgerFile
from tidegate_sim.settings import SimSettings
from tidegate_sim.status import FleetStatus, write_status
from tidegate_sim.traces import Trace, bundled_traces, read_trace
from tidegate_wire.address import Address
from tidegate_wire.errors import ConfigError
from tidegate_wire.mqtt.packets import ProtocolVersion
from tidegate_wire.readiness import announce_ready

CYCLE_S: Final = 0.005
"""How often what happened is committed: each time one write to ledger and flash for all devices. An event waits for at
most this long before it is sent."""

STATUS_INTERVAL_S: Final = 0.5

SPARE_FILES: Final = 64
"""Open files besides the devices' sockets."""

BUNDLED: Final = Path("bundled")
"""As a trace: the ones that come with Tidegate."""

_log = structlog.get_logger()


async def run(settings: SimSettings) -> None:
    """Run a fleet for its time, wait for what is not acknowledged, and end; cancelled, it ends at once.

    Raises:
        ConfigError: trace, ledger or flash can't be used, or the system allows too few sockets.
        FlashDamagedError: the flash is damaged.
        NoTargetAnsweredError: no device ever got a connection.
    """
    _allow_sockets(settings.devices)
    setups = set_up_devices(settings, _traces(settings), time.time() * 1000)
    with contextlib.ExitStack() as files:
        ledger, flash = _open_files(settings, files)
        fleet = Fleet(settings, setups, flash, ledger)
        network = Network(
            fleet,
            version=ProtocolVersion.V5 if settings.mqtt_version == "5" else ProtocolVersion.V311,
            qos=settings.qos,
            keep_alive_s=settings.keep_alive_seconds,
            reconnect_s_max=settings.reconnect_seconds_max,
        )
        links = _make_links(settings, setups, network)
        fleet.start(links)
        announce_ready(settings.ready_file, devices=settings.devices)
        _log.info("fleet_started", devices=settings.devices, rate_hz=settings.rate, targets=list(settings.target))
        try:
            await _drive(settings, fleet)
        except OSError as error:
            raise FleetFilesError(f"ledger, flash or status can't be written: {error}", hint="free the disk") from error
        finally:
            await asyncio.gather(*(link.close() for link in links))
            fleet.commit()
            status = fleet.refresh_status()
            status.done = True
            _report(settings, status)
    if not status.connects:
        raise NoTargetAnsweredError(
            f"no device got a connection to {', '.join(settings.target)}: {network.last_failure}",
            hint="start the edge or broker there, or name another with --target",
        )


async def _drive(settings: SimSettings, fleet: Fleet) -> None:
    """Let the fleet's time pass until it has drained, or for no longer than it may."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    status_at_s = 0.0
    while True:
        now_s = loop.time() - start_s
        fleet.advance(now_s)
        fleet.commit()
        if now_s >= status_at_s:
            status_at_s = now_s + STATUS_INTERVAL_S
            if settings.status_file is not None:
                write_status(settings.status_file, fleet.refresh_status())
        if now_s >= settings.seconds and (fleet.is_drained() or now_s >= settings.seconds + settings.drain_seconds):
            return
        await asyncio.sleep(CYCLE_S)


def _report(settings: SimSettings, status: FleetStatus) -> None:
    if settings.status_file is not None:
        write_status(settings.status_file, status)
    if settings.as_json:
        sys.stdout.write(status.to_json() + "\n")
        sys.stdout.flush()
    _log.info(
        "fleet_ended",
        published=status.published,
        acknowledged=status.acknowledged,
        waiting=status.waiting,
        skipped=status.skipped,
        behind_ms_max=status.behind_ms_max,
    )


def _traces(settings: SimSettings) -> list[Trace]:
    if settings.trace is None:
        return []
    paths = bundled_traces() if settings.trace == BUNDLED else (settings.trace,)
    return [read_trace(path) for path in paths]


def _make_links(settings: SimSettings, setups: list[DeviceSetup], network: Network) -> list[DeviceLink]:
    targets = [Address.parse_mqtt_url(url) for url in settings.target]
    return [
        DeviceLink(
            network,
            index=index,
            name=setup.profile.name,
            topic=settings.topic.replace("{device}", setup.profile.name).replace("{quantity}", setup.profile.quantity),
            target=targets[index % len(targets)],
            rng=setup.rng,
        )
        for index, setup in enumerate(setups)
    ]


def _open_files(settings: SimSettings, files: contextlib.ExitStack) -> tuple[LedgerFile | None, Flash]:
    ledger_path = settings.ledger
    directory = settings.flash_dir
    if directory is None and ledger_path is not None:
        directory = ledger_path.with_name(f"{ledger_path.name}.flash")
    flash_path = None if directory is None else directory / f"{settings.name}.flash"
    try:
        if (
            ledger_path is not None
            and flash_path is not None
            and not flash_path.exists()
            and ledger_path.exists()
            and ledger_path.stat().st_size
        ):
            raise FleetFilesError(
                f"the ledger {ledger_path} is of an earlier fleet, whose flash is not at {flash_path}",
                hint="a new fleet numbers its events from 1 again: give it a new --ledger",
            )
        ledger = None
        if ledger_path is not None:
            ledger_path.parent.mkdir(parents=True, exist_ok=True)
            ledger = LedgerFile(ledger_path)
            files.callback(ledger.close)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        flash = Flash(flash_path, fleet=settings.name, devices=settings.devices)
        files.callback(flash.close)
    except OSError as error:
        raise FleetFilesError(f"ledger or flash can't be opened: {error}", hint="give another path") from error
    return ledger, flash


def _allow_sockets(devices: int) -> None:
    """Raise the limit of open files as far as it takes.

    Raises:
        ConfigError: the system's hard limit is too low.
    """
    needed = devices + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{devices} devices need {needed} open files, and the system allows {hard}",
            hint="raise it with `ulimit -Hn`, or start fewer --devices",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
