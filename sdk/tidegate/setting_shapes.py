"""What a setting may hold, told from its pydantic field: the kind of option it becomes, and words for people."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class SettingKind(Enum):
    """How a setting is written on the command line."""

    TEXT = "text"
    SWITCH = "switch"
    LIST = "list"
    """Comma-separated."""
    TABLES = "tables"
    """Not at all: it comes from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingShape:
    """What may stand in a setting."""

    kind: SettingKind
    metavar: str
    """The placeholder in `--help`."""
    allowed: str
    """Follows "is not": `an integer of at least 1`."""
    item: SettingShape | None = None
    """What one item of a list may be."""


_PLAIN: dict[type, tuple[str, str]] = {
    int: ("INTEGER", "an integer"),
    float: ("NUMBER", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
}

_BOUNDS = (
    ("ge", "of at least {}"),
    ("gt", "above {}"),
    ("le", "of at most {}"),
    ("lt", "below {}"),
    ("min_length", "of length {} or more"),
    ("max_length", "of length {} or less"),
    ("pattern", "that matches {}"),
)


def shape_of(field: FieldInfo) -> SettingShape:
    """The shape of a field of a settings model."""
    return _shape(field.annotation, tuple(field.metadata))


def nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model of the tables that a field holds, if it holds tables."""
    return next(_models(field.annotation), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _shape(annotation: Any, metadata: tuple[Any, ...]) -> SettingShape:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _shape(inner, (*metadata, *more))
    if origin in {Union, types.UnionType}:
        branches = [branch for branch in get_args(annotation) if branch is not type(None)]
        if len(branches) == 1:
            return _shape(branches[0], metadata)
        choices = [choice for branch in branches for choice in _choices(branch)]
        if choices and all(_choices(branch) for branch in branches):
            return _choice(choices)
    if _choices(annotation):
        return _choice(_choices(annotation))
    if origin in {tuple, list, set, frozenset}:
        return _list_shape(get_args(annotation)[0], metadata)
    if annotation is bool:
        return SettingShape(kind=SettingKind.SWITCH, metavar="", allowed="true or false")
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return SettingShape(kind=SettingKind.TABLES, metavar="", allowed="a table")
        if annotation in _PLAIN:
            metavar, words = _PLAIN[annotation]
            return SettingShape(kind=SettingKind.TEXT, metavar=metavar, allowed=words + _bounds(metadata))
    if origin is dict:
        return SettingShape(kind=SettingKind.TABLES, metavar="", allowed="a table")
    return SettingShape(kind=SettingKind.TEXT, metavar="TEXT", allowed="a valid value")


def _list_shape(item: Any, metadata: tuple[Any, ...]) -> SettingShape:
    shape = _shape(item, ())
    if shape.kind in {SettingKind.TABLES, SettingKind.LIST}:
        return SettingShape(kind=SettingKind.TABLES, metavar="", allowed="a list of tables", item=shape)
    allowed = f"a list{_bounds(metadata)}, each {shape.allowed}"
    return SettingShape(kind=SettingKind.LIST, metavar=f"{shape.metavar}[,...]", allowed=allowed, item=shape)


def _choices(annotation: Any) -> list[str]:
    """The values that a Literal or an Enum allows; empty for any other type."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return []


def _choice(values: list[str]) -> SettingShape:
    words = f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    return SettingShape(kind=SettingKind.TEXT, metavar="|".join(values), allowed=words)


def _bounds(metadata: tuple[Any, ...]) -> str:
    """The field's constraints in words, to follow a noun: ` of at least 1 and below 10`."""
    found = [
        words.format(bound)
        for name, words in _BOUNDS
        for constraint in metadata
        if (bound := getattr(constraint, name, None)) is not None
    ]
    return f" {' and '.join(found)}" if found else ""
