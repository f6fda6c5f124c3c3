from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tidegate.configuration import LoadedSettings, Origin, Provenance, load_settings
from tidegate_wire.address import Address
from tidegate_wire.errors import ConfigError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


HostPort = Annotated[str, AfterValidator(lambda text: str(Address.parse(text)))]


class StreamSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    filters: tuple[str, ...] = ("#",)
    retention_ms: int | None = Field(default=None, ge=1)


class GateSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    node_id: int = Field(description="The gate's number.", ge=0, le=1000)
    listen: HostPort = "127.0.0.1:9092"
    voters: tuple[HostPort, ...] = ()
    mode: Literal["slow", "fast"] = "slow"
    colour: Colour | Literal["any"] = "any"
    sync: bool = True
    data_dir: Path | None = None
    interval_s: float = Field(default=1.0, gt=0)
    streams: tuple[StreamSettings, ...] = ()

    @model_validator(mode="after")
    def _fast_means_no_sync(self) -> Self:
        if self.mode == "fast" and self.sync:
            raise ValueError("mode fast does not go with sync:\nset sync to false")
        return self


def load(
    *, file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any
) -> LoadedSettings[GateSettings]:
    return load_settings(GateSettings, part="gate", flags=flags, environment=environment or {}, file=file)


def mistakes(*, file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(file=file, environment=environment, **flags)
    return str(raised.value).splitlines()


def write(directory: Path, text: str) -> Path:
    path = directory / "gate.toml"
    path.write_text(text)
    return path


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'node_id = 1\nlisten = "127.0.0.1:1"\nmode = "slow"')
    environment = {"TIDEGATE_GATE_NODE_ID": "2", "TIDEGATE_GATE_LISTEN": "127.0.0.1:2"}
    loaded = load(file=file, environment=environment, node_id="3", listen=None)
    assert loaded.settings == GateSettings(node_id=3, listen="127.0.0.1:2")
    assert loaded.provenance["node_id"] == Provenance(Origin.FLAG, "--node-id")
    assert loaded.provenance["listen"] == Provenance(Origin.ENVIRONMENT, "TIDEGATE_GATE_LISTEN")
    assert loaded.provenance["mode"] == Provenance(Origin.FILE, f"{file}: mode")
    assert loaded.provenance["sync"] == Provenance(Origin.DEFAULT, "")
    assert set(loaded.provenance) == set(GateSettings.model_fields)


def test_lists_are_comma_separated_text_or_toml_arrays(tmp_path: Path) -> None:
    wanted = ("127.0.0.1:1", "[::1]:2")
    assert load(node_id="1", voters="127.0.0.1:1, [::1]:2").settings.voters == wanted
    environment = {"TIDEGATE_GATE_VOTERS": "127.0.0.1:1,[::1]:2"}
    assert load(node_id="1", environment=environment).settings.voters == wanted
    file = write(tmp_path, 'node_id = 1\nvoters = ["127.0.0.1:1", "[::1]:2"]')
    assert load(file=file).settings.voters == wanted


def test_text_becomes_what_the_model_says(tmp_path: Path) -> None:
    environment = {"TIDEGATE_GATE_SYNC": "false", "TIDEGATE_GATE_INTERVAL_S": "0.5", "TIDEGATE_GATE_COLOUR": "red"}
    settings = load(node_id="1", data_dir=str(tmp_path), environment=environment).settings
    assert settings == GateSettings(node_id=1, data_dir=tmp_path, sync=False, interval_s=0.5, colour=Colour.RED)


def test_tables_come_from_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'node_id = 1\n[[streams]]\nname = "a"\n[[streams]]\nname = "b"\nfilters = ["x/#"]')
    streams = load(file=file).settings.streams
    assert streams == (StreamSettings(name="a"), StreamSettings(name="b", filters=("x/#",)))
    assert mistakes(node_id="1", environment={"TIDEGATE_GATE_STREAMS": "a"}) == [
        "TIDEGATE_GATE_STREAMS: streams holds tables, which only a --config file can"
    ]


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(node_id="1", environment={"TIDEGATE_GATE_LISTEN": ""}).settings.listen == "127.0.0.1:9092"


def test_variables_of_others_are_passed_over() -> None:
    kubernetes = {"TIDEGATE_GATE_PORT": "tcp://10.0.0.1:9092", "TIDEGATE_GATE_SERVICE_HOST": "10.0.0.1"}
    load(node_id="1", environment=kubernetes | {"TIDEGATE_OTHER_LISTEN": "x", "LISTEN": "x"})


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"node_id": "x"}, "--node-id: 'x' is not an integer of at least 0 and of at most 1000"),
        ({"node_id": "-1"}, "--node-id: '-1' is not an integer of at least 0 and of at most 1000"),
        ({"listen": "nowhere"}, "--listen: 'nowhere' is not HOST:PORT, for example 127.0.0.1:1883 or [::1]:1883"),
        ({"voters": "a:1,b"}, "--voters[1]: 'b' is not HOST:PORT, for example 127.0.0.1:1883 or [::1]:1883"),
        ({"mode": "quick"}, "--mode: 'quick' is not one of slow, fast"),
        ({"colour": "green"}, "--colour: 'green' is not one of red, blue, any"),
        ({"sync": "maybe"}, "--sync: 'maybe' is not true or false"),
        ({"interval_s": "0"}, "--interval-s: '0' is not a number above 0"),
        ({"mode": "fast"}, "gate: mode fast does not go with sync: set sync to false"),
        ({"node_id": "9" * 100}, f"--node-id: '{'9' * 56}... is not an integer of at least 0 and of at most 1000"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_flag_and_what_is_allowed(flags: dict[str, Any], line: str) -> None:
    assert mistakes(**{"node_id": "1"} | flags) == [line]


def test_each_mistake_has_a_line_wherever_it_stands(tmp_path: Path) -> None:
    file = write(tmp_path, 'interval_s = "often"\nlisen = "127.0.0.1:1"\n')
    assert mistakes(file=file, environment={"TIDEGATE_GATE_MODE": "no"}, node_id="x") == [
        f"{file}: lisen is no setting of gate; did you mean listen?",
        "--node-id: 'x' is not an integer of at least 0 and of at most 1000",
        "TIDEGATE_GATE_MODE: 'no' is not one of slow, fast",
        f"{file}: interval_s: 'often' is not a number above 0",
    ]


def test_mistakes_inside_tables_name_the_place(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'node_id = 1\n[[streams]]\nname = "a"\nfilter = "#"\n[[streams]]\nretention_ms = 0\nfilters = [1]\n',
    )
    assert mistakes(file=file) == [
        f"{file}: streams[0].filter is unknown; did you mean filters?",
        f"{file}: streams[1].name is missing: text",
        f"{file}: streams[1].filters[0]: 1 is not text",
        f"{file}: streams[1].retention_ms: 0 is not an integer of at least 1",
    ]


def test_a_key_like_no_other_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    (line,) = mistakes(file=write(tmp_path, "node_id = 1\nqqq = 1"))
    assert line.endswith(f"qqq is no setting of gate; known are {', '.join(GateSettings.model_fields)}")


def test_a_key_written_like_its_flag_is_recognised(tmp_path: Path) -> None:
    assert "did you mean node_id?" in mistakes(file=write(tmp_path, "node-id = 1"))[0]


def test_a_slip_in_a_variable_is_refused() -> None:
    assert mistakes(node_id="1", environment={"TIDEGATE_GATE_LISTN": "127.0.0.1:1"}) == [
        "TIDEGATE_GATE_LISTN is no setting of gate; did you mean TIDEGATE_GATE_LISTEN?"
    ]


def test_a_missing_setting_is_answered_with_the_ways_to_give_it() -> None:
    ways = "give --node-id, TIDEGATE_GATE_NODE_ID, or node_id in a --config file"
    assert mistakes() == [f"gate: node_id is missing: The gate's number; {ways}"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"node_id = ", "is not TOML: Invalid value (at end of document)"),
        (b"\xff", "is not TOML: byte 0 is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "is larger than a configuration may be (1048576 bytes)"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "gate.toml"
    file.write_bytes(content)
    assert mistakes(file=file) == [f"{file}: {words}"]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    assert mistakes(file=file) == [f"{file}: can't be read: No such file or directory"]
    assert mistakes(file=tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]
