"""The one adapter around kio: Kafka messages as dataclasses, whole frames as bytes.

A frame is a length (int32), a header and a message; the lengths are read and written here and nowhere else. Versions
are kio's: a version that it has no schema for is a `MessageError`. Source: the Kafka protocol guide, and KIP-482 for
flexible versions (in a flexible request header the client id is still an int16-length string).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, cast

from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError
from kio.static.protocol import RequestPayload, ResponsePayload

__all__ = [
    "ErrorCode",
    "MessageError",
    "RequestHeader",
    "decode_request",
    "decode_request_header",
    "decode_response",
    "encode_request",
    "encode_response",
    "request_type",
    "response_type",
]

_LENGTH: Final = struct.Struct(">i")
_REQUEST_HEADER: Final = struct.Struct(">hhih")  # api key, api version, correlation id, client id's length
_RESPONSE_HEADER: Final = struct.Struct(">ii")  # frame length, correlation id

R = TypeVar("R")


class MessageError(ValueError):
    """A frame that is not a message of the API and version it names."""


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """What stands before every request's message."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_offset: int
    """Where the message begins in the frame, if its version is not flexible; a flexible one has tags first."""


def decode_request_header(frame: bytes | memoryview) -> RequestHeader:
    """Read the fields that every version's request header has; `frame` is without its length.

    Raises:
        MessageError: the frame is too short, or the client id is not UTF-8.
    """
    try:
        api_key, api_version, correlation_id, length = _REQUEST_HEADER.unpack_from(frame)
    except struct.error as error:
        raise MessageError(f"a frame of {len(frame)} bytes has no request header") from error
    end = _REQUEST_HEADER.size + max(length, 0)
    if end > len(frame):
        raise MessageError("the client id is longer than the frame")
    try:
        client_id = None if length < 0 else str(frame[_REQUEST_HEADER.size : end], "utf-8")
    except UnicodeDecodeError as error:
        raise MessageError("the client id is not UTF-8") from error
    return RequestHeader(api_key, api_version, correlation_id, client_id, end)


def skip_tags(frame: bytes | memoryview, offset: int) -> int:
    """The offset after a tagged-field section (KIP-482).

    Raises:
        MessageError: the section runs past the frame's end.
    """
    try:
        count, offset = _uvarint(frame, offset)
        for _ in range(count):
            _, offset = _uvarint(frame, offset)
            size, offset = _uvarint(frame, offset)
            offset += size
    except IndexError as error:
        raise MessageError("tagged fields run past the frame's end") from error
    if offset > len(frame):
        raise MessageError("tagged fields run past the frame's end")
    return offset


def decode_request(header: RequestHeader, frame: bytes | memoryview) -> RequestPayload:
    """Read the message that follows `header` in `frame`.

    Raises:
        MessageError: kio has no such version, or the bytes do not fit its schema.
    """
    schema = request_type(header.api_key, header.api_version)
    offset = skip_tags(frame, header.body_offset) if schema.__flexible__ else header.body_offset
    request: RequestPayload = _read(schema, frame, offset)
    return request


def encode_request(request: RequestPayload, correlation_id: int, client_id: str | None) -> bytes:
    """The request as a whole frame, length included."""
    name = b"" if client_id is None else client_id.encode()
    body = io.BytesIO()
    body.write(
        _REQUEST_HEADER.pack(
            request.__api_key__,
            request.__version__,
            correlation_id,
            -1 if client_id is None else len(name),
        )
    )
    body.write(name)
    if request.__flexible__:
        body.write(b"\0")
    _writer(type(request))(body, request)
    return _LENGTH.pack(body.tell()) + body.getvalue()


def encode_response(response: ResponsePayload, correlation_id: int) -> bytes:
    """The response as a whole frame, length included; ApiVersions always has the v0 header (KIP-511)."""
    body = io.BytesIO()
    body.write(b"\0" * _RESPONSE_HEADER.size)
    if _has_tags_in_header(type(response)):
        body.write(b"\0")
    _writer(type(response))(body, response)
    frame = bytearray(body.getbuffer())
    _RESPONSE_HEADER.pack_into(frame, 0, len(frame) - _LENGTH.size, correlation_id)
    return bytes(frame)


def decode_response(schema: type[R], frame: bytes | memoryview) -> tuple[int, R]:
    """Read a response of type `schema`; `frame` is without its length. Returns correlation id and message.

    Raises:
        MessageError: the bytes do not fit the schema.
    """
    if len(frame) < 4:
        raise MessageError(f"a frame of {len(frame)} bytes has no response header")
    (correlation_id,) = _LENGTH.unpack_from(frame)
    offset = skip_tags(frame, 4) if _has_tags_in_header(schema) else 4
    return correlation_id, _read(schema, frame, offset)


@cache
def request_type(api_key: int, api_version: int) -> type[RequestPayload]:
    """The dataclass of a request.

    Raises:
        MessageError: kio has no such API or version.
    """
    try:
        return load_request_schema(api_key, api_version)
    except RuntimeError as error:
        raise MessageError(f"API {api_key} has no version {api_version} here") from error


@cache
def response_type(api_key: int, api_version: int) -> type[ResponsePayload]:
    """The dataclass of a response.

    Raises:
        MessageError: kio has no such API or version.
    """
    try:
        return load_response_schema(api_key, api_version)
    except RuntimeError as error:
        raise MessageError(f"API {api_key} has no version {api_version} here") from error


def _uvarint(frame: bytes | memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = frame[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
        if shift > 28:
            raise MessageError("a length of more than five bytes")


def _has_tags_in_header(schema: Any) -> bool:
    return bool(schema.__header_schema__.__flexible__)


@cache
def _reader(schema: Hashable) -> Callable[[Any, int], tuple[Any, int]]:
    return entity_reader(cast(Any, schema))


@cache
def _writer(schema: Hashable) -> Callable[[Any, Any], None]:
    return entity_writer(cast(Any, schema))


def _read(schema: Any, frame: bytes | memoryview, offset: int) -> Any:
    try:
        message, _ = _reader(schema)(frame, offset)
    except (SerialError, ValueError, OverflowError) as error:
        raise MessageError(f"not a {schema.__name__} of version {schema.__version__}: {error}") from error
    return message
