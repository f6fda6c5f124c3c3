"""Other projects' programs that tests run against; a missing one skips its tests, or fails them where CI needs all."""

from __future__ import annotations

import os
import shutil

import pytest

_PACKAGES = "mosquitto mosquitto-clients kcat strace iproute2 nftables xfsprogs e2fsprogs faketime"
"""Of Debian, with all the programs that tests ask for."""


def require_peer(program: str) -> str:
    """The path of `program`; skips the test where it is missing, fails it with TIDEGATE_REQUIRE_PEERS=1."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is not None:
        return path
    message = f"{program} is not installed (Debian: apt-get install {_PACKAGES})"
    if os.environ.get("TIDEGATE_REQUIRE_PEERS") == "1":
        pytest.fail(message)
    pytest.skip(message)
