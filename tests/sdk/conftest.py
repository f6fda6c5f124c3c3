"""A core for the tests of the SDK: the real one, in its own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdk.streams import Core
from tests.support.processes import TidegatePart


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    directory = tmp_path_factory.mktemp("core")
    arguments = ["core", "--node-id", "1", "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data")]
    with TidegatePart([*arguments, "--log-level", "warning"], directory) as part:
        yield Core(part.wait_ready()["listen"])
        assert part.terminate() == 0, part.output()
