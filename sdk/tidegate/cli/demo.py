"""`tidegate demo`: the whole path on this machine, an outage in the middle, and a proof at the end."""

from __future__ import annotations

from typing import Annotated

import typer

from tidegate.cli.extras import extra_required
from tidegate.cli.failures import EXIT_INTERRUPTED, failures_reported
from tidegate.cli.running import run_until_stopped

HELP = """\b
Examples:
  tidegate demo
  tidegate demo --seconds 60 --devices 500 --outage 20
  tidegate demo --json

Run devices, an edge, a bridge and a core on this machine, cut the uplink for a while, and prove that every
acknowledged event is read exactly once and in order. Exit code 5 if it is not so.
"""


def demo(
    *,
    seconds: Annotated[int, typer.Option(min=1, help="How long the devices publish.")] = 20,
    devices: Annotated[int, typer.Option(min=1, help="How many devices publish.")] = 50,
    outage: Annotated[int, typer.Option(min=0, help="For how many seconds the uplink is cut; 0 leaves it.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run the whole path with an outage, and prove it."""
    with failures_reported(debug=debug, prints_data=True):
        with extra_required("demo", "all"):
            # Here, because `tidegate --help` must load neither every part nor a Kafka client.
            from tidegate import demo as demonstration  # noqa: PLC0415
        options = demonstration.DemoOptions(seconds=seconds, devices=devices, outage_s=outage, json_output=as_json)
        exit_code = run_until_stopped(demonstration.run(options))
        raise typer.Exit(EXIT_INTERRUPTED if exit_code is None else exit_code)
