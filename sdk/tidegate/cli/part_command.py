"""One part's command, its options made from the part's settings model.

So a setting is described in one place, and may be given as flag, as environment variable and as a key of the
`--config` file.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from tidegate.cli.extras import extra_required
from tidegate.cli.failures import failures_reported
from tidegate.cli.logs import LogSettings, configure_logs
from tidegate.cli.parts import Part
from tidegate.cli.running import run_until_stopped
from tidegate.configuration import flag_for, load_settings, variable_for
from tidegate.setting_shapes import SettingKind, shape_of


def make(part: Part) -> typer.Typer:
    """The command that runs `part`, with all its options.

    Raises:
        ConfigError: a package that the part's settings need is not installed.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=_help(part))(_make_function(part, _settings_model(part)))
    return app


def _settings_model(part: Part) -> type[BaseModel]:
    with extra_required(part.name, part.name):
        module = importlib.import_module(f"{part.package}.settings")
    model: type[BaseModel] = getattr(module, part.settings_name)
    return create_model(part.settings_name, __base__=(LogSettings, model))


def _help(part: Part) -> str:
    examples = "\n".join(f"  {example}" for example in part.examples)
    return (
        f"\b\nExamples:\n{examples}\n\n{part.summary}\n\n"
        f"A setting is taken from its option, else from the environment variable {variable_for(part.name, 'OPTION')},"
        " else from the --config file (TOML; the same names with underscores), else its default."
    )


def _make_function(part: Part, model: type[BaseModel]) -> Any:
    """A function whose parameters are the model's fields, as typer reads them."""

    def command(*, config: Path | None, debug: bool, **flags: Any) -> None:
        with failures_reported(debug=debug):
            loaded = load_settings(
                model,
                part=part.name,
                flags=flags,
                environment=os.environ,
                file=config or _config_file_from_environment(part),
            )
            settings = loaded.settings
            assert isinstance(settings, LogSettings)
            configure_logs(settings)
            with extra_required(part.name, part.name):
                service = importlib.import_module(f"{part.package}.service")
            run_until_stopped(service.run(settings))

    options = [_option(name, field) for name, field in model.model_fields.items()]
    config = typer.Option(help="A TOML file with settings.", show_default=False)
    debug_flag = typer.Option("--debug", help="Show the traceback of an error.")
    signature = inspect.Signature(
        [
            _keyword("config", Annotated[Path | None, config], None),
            *(option for option in options if option is not None),
            _keyword("debug", Annotated[bool, debug_flag], False),
        ]
    )
    command.__signature__ = signature  # type: ignore[attr-defined] # where inspect, and so typer, looks for it
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _config_file_from_environment(part: Part) -> Path | None:
    path = os.environ.get(variable_for(part.name, "config"))
    return Path(path) if path else None


def _option(name: str, field: FieldInfo) -> inspect.Parameter | None:
    """A field as typer's option, every value as text for the model to check; None if only a file can hold it."""
    shape = shape_of(field)
    if shape.kind is SettingKind.TABLES:
        return None
    flag = flag_for(name)
    words = f"{(field.description or '').strip()}  {_default_text(field)}".strip()
    if shape.kind is SettingKind.SWITCH:
        switch = typer.Option(f"{flag}/--no-{flag[2:]}", help=words, show_default=False)
        return _keyword(name, Annotated[bool | None, switch], None)
    option = typer.Option(flag, help=words, show_default=False, metavar=shape.metavar)
    return _keyword(name, Annotated[str | None, option], None)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "[required]"
    default: Any = field.get_default(call_default_factory=True)
    if default is None or default in ("", (), []):
        return ""
    if isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, (tuple, list, set, frozenset)):
        default = ",".join(str(item) for item in default)
    return f"[default: {getattr(default, 'value', default)}]"


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
