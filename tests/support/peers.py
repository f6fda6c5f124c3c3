"""Other projects' programs that tests run against; a missing one skips its tests, or fails them where CI needs all."""

from __future__ import annotations

import os
import shutil

import pytest


def require_peer(program: str) -> str:
    """The path of `program`; skips the test where it is missing, fails it with TIDEGATE_REQUIRE_PEERS=1."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is not None:
        return path
    message = f"{program} is not installed (Debian: apt-get install mosquitto mosquitto-clients kcat strace)"
    if os.environ.get("TIDEGATE_REQUIRE_PEERS") == "1":
        pytest.fail(message)
    pytest.skip(message)
