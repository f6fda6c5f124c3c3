"""Between a message's version on the wire and the newest one served, which is the only one that handlers know.

kio has a dataclass for each version of each message. A request is lifted to the newest version: fields that its version
lacks get the protocol's defaults. A response is written by a handler as a mapping from field names (kio's) to values,
lists of mappings for arrays, and becomes the dataclass of the requested version: fields that it lacks are left out.
Where versions differ in shape and not only in fields, `_LIFTED` and `_LOWERED` hold the few functions for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, cast

from tidegate_core.protocol.versions import Api, newest
from tidegate_wire.kafka.messages import ErrorCode, request_type, response_type

Fields = Mapping[str, Any]
"""A response as handlers write it."""

_MILLISECOND: Final = datetime.timedelta(milliseconds=1)


def milliseconds(duration: datetime.timedelta) -> int:
    """A duration of a request as a number."""
    return duration // _MILLISECOND


def lift(api_key: int, api_version: int, request: Any) -> Any:
    """`request`, read in `api_version`, as the newest version's dataclass."""
    highest = newest(api_key)
    if api_version == highest:
        return request
    schema = request_type(api_key, highest)
    lifted = _LIFTED.get(api_key)
    if lifted is not None and api_version <= lifted.last_version:
        return compose(schema, lifted.function(request), checked=True)
    return _copy(schema, request)


def lower(api_key: int, api_version: int, fields: Fields) -> Any:
    """The response that `fields` describe in the newest version's names, as the dataclass of `api_version`."""
    lowered = _LOWERED.get(api_key)
    if lowered is not None and api_version <= lowered.last_version:
        fields = lowered.function(fields)
    schema = response_type(api_key, api_version)
    return compose(schema, fields, checked=api_version == newest(api_key))


class _Reshape(NamedTuple):
    last_version: int
    """The last version of the old shape."""
    function: Callable[[Any], Fields]


def _one_coordinator(fields: Fields) -> Fields:
    return cast("Fields", fields["coordinators"][0])


def _one_group(fields: Fields) -> Fields:
    return cast("Fields", fields["groups"][0])


def _one_leaver(fields: Fields) -> Fields:
    if fields["error_code"] is not ErrorCode.none:
        return fields
    return {"error_code": fields["members"][0]["error_code"]}


_LIFTED: Final[dict[int, _Reshape]] = {
    Api.METADATA: _Reshape(0, lambda request: {"topics": request.topics or None}),  # an empty list asks for all
    Api.FIND_COORDINATOR: _Reshape(
        3, lambda request: {"key_type": getattr(request, "key_type", 0), "coordinator_keys": (request.key,)}
    ),
    Api.OFFSET_FETCH: _Reshape(
        7,
        lambda request: {
            "groups": [{"group_id": request.group_id, "topics": request.topics}],
            "require_stable": getattr(request, "require_stable", False),
        },
    ),
    Api.LEAVE_GROUP: _Reshape(
        2, lambda request: {"group_id": request.group_id, "members": [{"member_id": request.member_id}]}
    ),
    Api.DELETE_TOPICS: _Reshape(
        5,
        lambda request: {"topics": [{"name": name} for name in request.topic_names], "timeout": request.timeout},
    ),
}

_LOWERED: Final[dict[int, _Reshape]] = {
    Api.FIND_COORDINATOR: _Reshape(3, _one_coordinator),
    Api.OFFSET_FETCH: _Reshape(7, _one_group),
    Api.LEAVE_GROUP: _Reshape(2, _one_leaver),
}


class _Field(NamedTuple):
    name: str
    nested: Any
    """The dataclass of the field or of an array's items, or None where the field holds plain values."""
    default: Any
    """What the protocol says where a version lacks the field."""


_IMPLICIT: Final[dict[type, Any]] = {
    bool: False,
    int: 0,
    str: "",
    bytes: b"",
    datetime.timedelta: datetime.timedelta(0),
}


@cache
def _fields(schema: Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(schema)
    return tuple(_field(item, hints[item.name]) for item in dataclasses.fields(schema))


def _field(item: dataclasses.Field[Any], hint: Any) -> _Field:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not types.NoneType)
    nested = None
    if typing.get_origin(kind) is tuple:
        (item_type, _) = typing.get_args(kind)
        nested = item_type if dataclasses.is_dataclass(item_type) else None
        implicit: Any = ()
    elif dataclasses.is_dataclass(kind):
        nested, implicit = kind, None
    else:
        implicit = next((value for base, value in _IMPLICIT.items() if issubclass(kind, base)), None)
    default = item.default if item.default is not dataclasses.MISSING else implicit
    return _Field(item.name, nested, None if len(options) > 1 and default is implicit else default)


def _copy(schema: Any, source: Any) -> Any:
    values: dict[str, Any] = {}
    for name, nested, default in _fields(schema):
        value = getattr(source, name, default)
        if nested is not None and value:
            value = tuple([_copy(nested, item) for item in value]) if isinstance(value, tuple) else _copy(nested, value)
        values[name] = value
    return schema(**values)


def compose(schema: Any, source: Mapping[str, Any], *, checked: bool = False) -> Any:
    """The dataclass `schema` with the fields of `source`; those it lacks are left out, those not given are defaults.

    `checked`: none is left out, which only the newest version can say of everything that handlers write.
    """
    values: dict[str, Any] = {}
    for name, nested, default in _fields(schema):
        value = source.get(name, default)
        if nested is not None and isinstance(value, Mapping):
            value = compose(nested, value, checked=checked)
        elif nested is not None and value:
            value = tuple(
                [
                    compose(nested, item, checked=checked) if isinstance(item, Mapping) else _copy(nested, item)
                    for item in value
                ]
            )
        elif value.__class__ is list:
            value = tuple(value)
        values[name] = value
    assert not checked or source.keys() <= values.keys(), source.keys() - values.keys()
    return schema(**values)
