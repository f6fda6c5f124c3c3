"""Running a part: where its settings come from, its logs, its signals, its end."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.sdk.cli.tidegate import tidegate
from tests.support.processes import TidegatePart, free_port


def core_arguments(directory: Path, listen: str = "127.0.0.1:0") -> list[str]:
    return ["core", "--node-id", "1", "--listen", listen, "--data-dir", str(directory / "core")]


def test_a_wrong_setting_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = tidegate("core", "--node-id", "1", "--data-dir", str(tmp_path), "--listen", "nowhere")
    assert result.returncode == 2
    assert result.stderr == ("error: --listen: 'nowhere' is not HOST:PORT, for example 127.0.0.1:1883 or [::1]:1883\n")


def test_a_wrong_key_in_the_file_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "core.toml"
    file.write_text(f'node_id = 1\ndata_dir = "{tmp_path}"\nlisen = "127.0.0.1:0"\n')
    result = tidegate("core", "--config", str(file))
    assert result.returncode == 2
    assert result.stderr == f"error: {file}: lisen is no setting of core; did you mean listen?\n"


def test_a_missing_setting_is_one_line(tmp_path: Path) -> None:
    result = tidegate("core", "--node-id", "1", "--listen", "127.0.0.1:0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: core: data_dir is missing")
    assert result.stderr.count("\n") == 1


def test_flag_beats_environment_beats_file_in_the_running_part(tmp_path: Path) -> None:
    ports = [free_port(), free_port(), free_port()]
    file = tmp_path / "core.toml"
    file.write_text(f'node_id = 1\ndata_dir = "{tmp_path / "core"}"\nlisten = "127.0.0.1:{ports[0]}"\n')

    def listens_on(arguments: list[str], env: dict[str, str]) -> str:
        with TidegatePart(["core", *arguments], tmp_path, env=env) as core:
            listen: str = core.wait_ready()["listen"]
            assert core.terminate() == 0
            return listen

    from_environment = {"TIDEGATE_CORE_LISTEN": f"127.0.0.1:{ports[1]}"}
    flag = ["--listen", f"127.0.0.1:{ports[2]}"]
    config = ["--config", str(file)]
    assert listens_on(config, {}) == f"127.0.0.1:{ports[0]}"
    assert listens_on(config, from_environment) == f"127.0.0.1:{ports[1]}"
    assert listens_on([*config, *flag], from_environment) == f"127.0.0.1:{ports[2]}"
    assert listens_on([], {"TIDEGATE_CORE_CONFIG": str(file)}) == f"127.0.0.1:{ports[0]}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_part_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with TidegatePart(core_arguments(tmp_path), tmp_path) as core:
        core.wait_ready()
        core.send_signal(number)
        assert core.wait(20) == 0, core.output()
        assert "Traceback" not in core.output()


def test_logs_that_no_terminal_shows_are_json_on_stderr(tmp_path: Path) -> None:
    with TidegatePart([*core_arguments(tmp_path), "--log-level", "debug"], tmp_path) as core:
        core.wait_ready()
        assert core.terminate() == 0
        lines = [json.loads(line) for line in core.output().splitlines()]
    assert lines
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)


def test_logs_for_people_carry_no_colour_into_a_file(tmp_path: Path) -> None:
    with TidegatePart([*core_arguments(tmp_path), "--log-format", "console"], tmp_path) as core:
        core.wait_ready()
        assert core.terminate() == 0
        assert core.output()
        assert "\x1b" not in core.output()
        assert not core.output().startswith("{")


def test_a_log_level_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    result = tidegate(*core_arguments(tmp_path), "--log-level", "loud")
    assert (result.returncode, result.stderr) == (
        2,
        "error: --log-level: 'loud' is not one of debug, info, warning, error\n",
    )


def test_a_port_in_use_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = tidegate(*core_arguments(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}"))
    assert result.returncode not in {0, 1}
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
