"""The commands that run a part: `tidegate core`, `bridge`, `edge`, `sim`; none is imported before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import typer

from tidegate.cli.failures import failures_reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that the command can run: `PACKAGE.settings.SETTINGS_NAME` and `PACKAGE.service.run(settings)`."""

    name: str
    package: str
    settings_name: str
    summary: str
    examples: tuple[str, ...]


PARTS: Final = (
    Part(
        name="core",
        package="tidegate_core",
        settings_name="CoreSettings",
        summary="Run a core node: partitioned logs that speak the Kafka protocol.",
        examples=(
            "tidegate core --node-id 1 --listen 127.0.0.1:9092 --data-dir /var/lib/tidegate/core",
            "tidegate core --config /etc/tidegate/core.toml --log-level debug",
        ),
    ),
    Part(
        name="bridge",
        package="tidegate_bridge",
        settings_name="BridgeSettings",
        summary="Run a bridge: uplinks of edges in, Produce requests to the core out.",
        examples=(
            "tidegate bridge --listen 127.0.0.1:1884 --core 127.0.0.1:9092",
            "tidegate bridge --broker mqtt://127.0.0.1:1883 --core 127.0.0.1:9092",
        ),
    ),
    Part(
        name="edge",
        package="tidegate_edge",
        settings_name="EdgeSettings",
        summary="Run an edge: MQTT from devices in, onto its own disk, up to the core.",
        examples=(
            "tidegate edge --id plant-7 --listen 127.0.0.1:1883 --uplink mqtt://127.0.0.1:1884 --data-dir ./edge",
            "TIDEGATE_EDGE_ID=plant-7 tidegate edge --config /etc/tidegate/edge.toml",
        ),
    ),
    Part(
        name="sim",
        package="tidegate_sim",
        settings_name="SimSettings",
        summary="Run simulated devices that keep a ledger of what they published.",
        examples=(
            "tidegate sim --target mqtt://127.0.0.1:1883 --devices 100 --rate 10 --seconds 30 --ledger ledger.jsonl",
        ),
    ),
)


def add_part_commands(app: typer.Typer) -> None:
    """Register a command for each part.

    The registered command takes whatever follows its name, and hands it to a second one that is made once the part's
    settings are imported; so `tidegate --help` names every part and imports none.
    """
    for part in PARTS:
        app.command(
            part.name,
            help=part.summary,
            add_help_option=False,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_hand_over(part))


def _hand_over(part: Part) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        with failures_reported(debug="--debug" in context.args):
            from tidegate.cli import part_command  # noqa: PLC0415 # pydantic and the part: `--help` needs neither

            run = part_command.make(part)
        run(args=context.args, prog_name=f"tidegate {part.name}")

    return command
