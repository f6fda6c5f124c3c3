from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.index import api_key_map, schema_name_map
from kio.serial import entity_reader

from tidegate_wire.kafka.messages import (
    MessageError,
    RequestHeader,
    decode_request,
    decode_request_header,
    decode_response,
    encode_request,
    encode_response,
    request_type,
    response_type,
)

API_VERSIONS = 18
METADATA = 3


def _body(frame: bytes) -> bytes:
    (length,) = struct.unpack_from(">i", frame)
    assert length == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("version", range(14))
def test_a_metadata_request_of_every_version_is_read_back(version: int) -> None:
    schema = request_type(METADATA, version)
    message = _from_defaults(schema)
    frame = _body(encode_request(message, 77, "cliënt"))
    header = decode_request_header(frame)
    assert (header.api_key, header.api_version, header.correlation_id) == (METADATA, version, 77)
    assert header.client_id == "cliënt"
    assert decode_request(header, frame) == message


def test_an_api_versions_response_has_the_v0_header_in_every_version() -> None:
    for version in range(5):
        message = _from_defaults(response_type(API_VERSIONS, version))
        frame = _body(encode_response(message, 5))
        assert frame[:6] == struct.pack(">ih", 5, 0), version
        assert decode_response(response_type(API_VERSIONS, version), frame) == (5, message)


def test_a_missing_client_id_is_read_as_none() -> None:
    message = _from_defaults(request_type(METADATA, 1))
    assert decode_request_header(_body(encode_request(message, 1, None))).client_id is None


@given(st.binary(max_size=80))
def test_any_bytes_as_a_request_are_read_or_refused(frame: bytes) -> None:
    try:
        header = decode_request_header(frame)
        decode_request(header, frame)
    except MessageError:
        return


@given(st.sampled_from(sorted(api_key_map)), st.binary(max_size=120), st.data())
def test_any_body_behind_a_real_header_is_read_or_refused(api_key: int, body: bytes, data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(sorted(schema_name_map[api_key_map[api_key]])))
    header = RequestHeader(api_key, version, 0, None, 0)
    try:
        decode_request(header, body)
        decode_response(response_type(api_key, version), body)
    except MessageError:
        return


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(MessageError, match="no version 99"):
        request_type(METADATA, 99)


def _from_defaults(schema: Any) -> Any:
    """The message whose body is all zero bytes: empty strings and arrays, zeros, false."""
    message, _ = entity_reader(schema)(bytes(256), 0)
    return message
