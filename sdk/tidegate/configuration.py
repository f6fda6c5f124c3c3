"""Settings of a part, from command line, environment and file, and where each value came from.

A part describes its settings as one pydantic model; this file knows none of the parts. A value is taken from the flag
`--kebab-case`, else the environment variable `TIDEGATE_<PART>_<FIELD>`, else the TOML file, else the model's default.
Lists of plain values may be written as comma-separated text; tables come from the file only.

A mistake is a `ConfigError` with one line for each wrong setting: where it stands, its name, what is wrong with it and
what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tidegate.setting_shapes import SettingKind, SettingShape, nested_model, shape_of
from tidegate_wire.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "TIDEGATE"

_CONFIG_FILE_BYTES_MAX: Final = 1024 * 1024
"""A thousand streams fit in a tenth of this; whoever passes more has named the wrong file."""

_SHOWN_VALUE_LENGTH_MAX: Final = 60
_TYPO_SIMILARITY: Final = 0.8
_SUGGESTION_SIMILARITY: Final = 0.6

Settings = TypeVar("Settings", bound=BaseModel)


class Origin(Enum):
    """Where a setting's value came from; the first one that has it wins."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one setting's value came from."""

    origin: Origin
    name: str
    """The flag, the variable, or `FILE: key`; empty for a default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings(Generic[Settings]):
    """Checked settings, and for each field where its value came from."""

    settings: Settings
    provenance: Mapping[str, Provenance]


def flag_for(field: str) -> str:
    """The command-line option of a field: `node_id` is `--node-id`; and `as_json` is `--json`, as in every command
    (a field can't be called json: pydantic's models have a method of that name).
    """
    return "--json" if field == "as_json" else "--" + field.replace("_", "-")


def variable_for(part: str, field: str) -> str:
    """The environment variable of a part's field: `TIDEGATE_CORE_NODE_ID`."""
    return f"{ENVIRONMENT_PREFIX}_{part}_{field}".upper()


def load_settings(
    model: type[Settings],
    *,
    part: str,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
) -> LoadedSettings[Settings]:
    """Bring a part's settings together and check them.

    Args:
        model: The part's pydantic model.
        part: The part's name, as in `tidegate core`.
        flags: What stood on the command line, by field name; a flag that was not given is absent or None.
        environment: The environment variables; those of other programs are passed over.
        file: A TOML file whose top-level keys are the model's fields.

    Raises:
        ConfigError: a value is wrong, missing or unknown, or the file can't be read.
    """
    shapes = {name: shape_of(field) for name, field in model.model_fields.items()}
    values: dict[str, Any] = {}
    provenance = dict.fromkeys(model.model_fields, Provenance(Origin.DEFAULT, ""))

    def take(field: str, value: Any, source: Provenance) -> None:
        values[field] = _split_list(value, shapes[field])
        provenance[field] = source

    mistakes: list[str] = []
    if file is not None:
        for key, value in read_toml(file).items():
            if key in shapes:
                take(key, value, Provenance(Origin.FILE, f"{file}: {key}"))
            else:
                mistakes.append(f"{file}: {key} is no setting of {part}{_suggestion(key, shapes)}")
    for field, variable, value in _from_environment(part, shapes, environment, mistakes):
        take(field, value, Provenance(Origin.ENVIRONMENT, variable))
    for field, value in flags.items():
        if value is not None:
            take(field, value, Provenance(Origin.FLAG, flag_for(field)))

    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes += dict.fromkeys(_describe(detail, model, part, shapes, provenance) for detail in details)
        raise ConfigError("\n".join(mistakes)) from error
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return LoadedSettings(settings=settings, provenance=provenance)


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it can't be read, is too large, or is not TOML.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from error
    if len(content) > _CONFIG_FILE_BYTES_MAX:
        raise ConfigError(f"{file}: is larger than a configuration may be ({_CONFIG_FILE_BYTES_MAX} bytes)")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from error


def _from_environment(
    part: str, shapes: Mapping[str, SettingShape], environment: Mapping[str, str], mistakes: list[str]
) -> list[tuple[str, str, str]]:
    """The part's variables as (field, variable, text); an empty one counts as unset, as compose files write it.

    Only what looks like a slip of the pen is refused: Kubernetes sets TIDEGATE_CORE_PORT and the like by itself in
    every container beside a service called tidegate-core.
    """
    found: list[tuple[str, str, str]] = []
    by_variable = {variable_for(part, field): field for field in shapes}
    prefix = variable_for(part, "")
    for variable in sorted(environment):
        if not variable.startswith(prefix) or not environment[variable]:
            continue
        field = by_variable.get(variable)
        if field is None:
            near = difflib.get_close_matches(variable[len(prefix) :], [f.upper() for f in shapes], 1, _TYPO_SIMILARITY)
            if near:
                mistakes.append(f"{variable} is no setting of {part}; did you mean {prefix}{near[0]}?")
        elif shapes[field].kind is SettingKind.TABLES:
            mistakes.append(f"{variable}: {field} holds tables, which only a --config file can")
        else:
            found.append((field, variable, environment[variable]))
    return found


def _split_list(value: Any, shape: SettingShape) -> Any:
    if shape.kind is SettingKind.LIST and isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    return value


def _describe(
    detail: ErrorDetails,
    model: type[BaseModel],
    part: str,
    shapes: Mapping[str, SettingShape],
    provenance: Mapping[str, Provenance],
) -> str:
    """One line for one of pydantic's findings."""
    location = detail["loc"]
    if not location:  # a rule between fields
        return f"{part}: {_own_message(detail)}"
    field = str(location[0])
    source = provenance[field]
    if source.origin is Origin.DEFAULT and detail["type"] == "missing":
        what = model.model_fields[field].description or shapes[field].allowed
        how = f"{flag_for(field)}, {variable_for(part, field)}, or {field} in a --config file"
        if shapes[field].kind is SettingKind.TABLES:
            how = f"[[{field}]] in a --config file"
        return f"{part}: {field} is missing: {what.rstrip('.')}; give {how}"
    where = source.name or f"{part}: {field}"
    owner = model.model_fields[field]
    shape = shapes[field]
    for step in location[1:]:
        if isinstance(step, int):
            where += f"[{step}]"
            shape = shape.item or shape
            continue
        table = nested_model(owner)
        if table is None:  # a step inside pydantic's own schema (a branch of a union), not of the settings
            continue
        where += f".{step}"
        if detail["type"] == "extra_forbidden":
            return f"{where} is unknown{_suggestion(str(step), table.model_fields)}"
        owner = table.model_fields[str(step)]
        shape = shape_of(owner)
    if detail["type"] == "missing":
        return f"{where} is missing: {shape.allowed}"
    if detail["type"] in {"value_error", "assertion_error"}:
        return f"{where}: {_own_message(detail)}"
    return f"{where}: {_shown(detail['input'])} is not {shape.allowed}"


def _own_message(detail: ErrorDetails) -> str:
    """What a model's own validator said, without pydantic's prefix, on one line."""
    raised = detail.get("ctx", {}).get("error")
    return " ".join(str(raised if raised is not None else detail["msg"]).split())


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN_VALUE_LENGTH_MAX else text[: _SHOWN_VALUE_LENGTH_MAX - 3] + "..."


def _suggestion(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_").lower(), list(known), 1, _SUGGESTION_SIMILARITY)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
