"""`tidegate demo`: the whole path on this machine, with an outage and a kill -9 in the middle, and a proof at the end.

`story` tells it, `processes` and `relay` are its stage, `counts`, `proof` and `display` show it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tidegate.demo.display import Display
from tidegate.demo.options import DemoOptions
from tidegate.demo.processes import Processes
from tidegate.demo.proof import INTEGRITY_EXIT_CODE
from tidegate.demo.relay import Relay
from tidegate.demo.story import Story

__all__ = ["DemoOptions", "run"]


async def run(options: DemoOptions) -> int:
    """Run the demo; nothing of it is left behind, however it ends.

    Returns:
        0 if the promise held, 5 if not.

    Raises:
        PartFailedError: a part did not come up, or ended; the message shows the end of its log.
    """
    display = Display(to_stderr=options.json_output)
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as directory, display.running():
        async with Processes() as processes, Relay() as relay:
            proof = await Story(options, Path(directory), processes, relay, display).tell()
    display.result(proof, time.monotonic() - start_s)
    if options.json_output:
        display.data(proof.to_json())
    return 0 if proof.holds else INTEGRITY_EXIT_CODE
