"""The `tidegate` command. Data goes to stdout, talk to stderr; `failures` lists the exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from tidegate.cli import demo, parts, tail, verify

HELP = """\b
Examples:
  tidegate demo
  tidegate core --node-id 1 --listen 127.0.0.1:9092 --data-dir ./core
  tidegate bridge --listen 127.0.0.1:1884 --core 127.0.0.1:9092
  tidegate edge --id plant-7 --listen 127.0.0.1:1883 --uplink mqtt://127.0.0.1:1884 --data-dir ./edge
  tidegate tail events --core 127.0.0.1:9092

Tidegate takes sensor events in over MQTT and lets them run to a cluster of logs that speaks the Kafka protocol:
every event once, in order per device, none lost.

Exit codes: 0 ok, 2 usage, 3 unreachable, 4 refused, 5 integrity failure.
"""


def main() -> None:
    """Run the command with the process's arguments; ends the process."""
    make_app()(prog_name="tidegate")


def make_app() -> typer.Typer:
    """The command with all its subcommands; no part is imported yet."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=HELP
    )
    app.callback()(_tidegate)
    parts.add_part_commands(app)
    app.command("tail", help=tail.HELP, short_help="Print the events of a stream as they come.")(tail.tail)
    app.command("verify", help=verify.HELP, short_help="Compare what was acknowledged with what the core has.")(
        verify.verify
    )
    app.command("demo", help=demo.HELP, short_help="Run the whole path with an outage, and prove it.")(demo.demo)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # noqa: PLC0415 # it takes as long to load as all the rest

        typer.echo(f"tidegate {metadata.version('tidegate')}")
        raise typer.Exit


def _tidegate(
    *,
    version: Annotated[  # its callback acts on it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


__all__ = ["main", "make_app"]
