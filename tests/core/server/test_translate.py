from __future__ import annotations

from typing import Any

import pytest

from tidegate_core.protocol import translate
from tidegate_core.protocol.translate import lift, lower, milliseconds
from tidegate_core.protocol.versions import VERSIONS, Api, newest
from tidegate_wire.kafka.messages import (
    ErrorCode,
    decode_request,
    decode_request_header,
    decode_response,
    encode_request,
    encode_response,
    request_type,
    response_type,
)

HOT = {Api.PRODUCE}
EVERY_VERSION = [
    (api, version) for api, (low, high) in VERSIONS.items() if api not in HOT for version in range(low, high + 1)
]


@pytest.mark.parametrize(("api", "version"), EVERY_VERSION)
def test_a_request_of_every_version_becomes_one_of_the_newest(api: int, version: int) -> None:
    request = translate.compose(request_type(api, version), {})
    frame = encode_request(request, 1, None)[4:]
    if api == Api.FIND_COORDINATOR and version < 4:
        assert lift(api, version, request).coordinator_keys == ("",)
    lifted = lift(api, version, decode_request(decode_request_header(frame), frame))
    assert type(lifted) is request_type(api, newest(api))


@pytest.mark.parametrize(("api", "version"), EVERY_VERSION)
def test_a_response_can_be_written_in_every_version(api: int, version: int) -> None:
    fields: dict[str, Any] = {"error_code": ErrorCode.none}
    if api == Api.FIND_COORDINATOR:
        found = {"key": "g", "node_id": 1, "host": "h", "port": 9092, "error_code": ErrorCode.none}
        fields = {"coordinators": [found]}
    elif api == Api.OFFSET_FETCH:
        fields = {"groups": [{"group_id": "g", "topics": [], "error_code": ErrorCode.none}]}
    elif api == Api.LEAVE_GROUP:
        fields["members"] = [{"member_id": "m", "group_instance_id": None, "error_code": ErrorCode.none}]
    fields = {name: value for name, value in fields.items() if name in _names(response_type(api, newest(api)))}
    frame = encode_response(lower(api, version, fields), 5)[4:]
    correlation_id, _ = decode_response(response_type(api, version), frame)
    assert correlation_id == 5


def _names(schema: Any) -> set[str]:
    return set(schema.__dataclass_fields__)


def test_a_field_that_no_version_has_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="eror_code"):
        lower(Api.HEARTBEAT, 4, {"eror_code": ErrorCode.none})


def test_what_an_old_join_group_lacks_gets_the_protocols_default() -> None:
    request = translate.compose(request_type(Api.JOIN_GROUP, 0), {"group_id": "g", "protocol_type": "consumer"})
    lifted = lift(Api.JOIN_GROUP, 0, request)
    assert lifted.group_instance_id is None
    assert milliseconds(lifted.rebalance_timeout) == -1


def test_an_old_leave_group_is_told_its_members_error() -> None:
    fields = {
        "error_code": ErrorCode.none,
        "members": [{"member_id": "m", "group_instance_id": None, "error_code": ErrorCode.unknown_member_id}],
    }
    assert lower(Api.LEAVE_GROUP, 1, fields).error_code is ErrorCode.unknown_member_id
    assert lower(Api.LEAVE_GROUP, 3, fields).error_code is ErrorCode.none


def test_an_empty_list_of_topics_asks_for_all_in_version_0_and_for_none_later() -> None:
    for version, expected in ((0, None), (1, ())):
        request = translate.compose(request_type(Api.METADATA, version), {"topics": ()})
        assert lift(Api.METADATA, version, request).topics == expected


def test_old_offset_fetch_and_delete_topics_keep_what_they_name() -> None:
    old = translate.compose(
        request_type(Api.OFFSET_FETCH, 5),
        {"group_id": "g", "topics": [{"name": "t", "partition_indexes": (1, 2)}]},
    )
    (group,) = lift(Api.OFFSET_FETCH, 5, old).groups
    assert (group.group_id, group.topics[0].name, group.topics[0].partition_indexes) == ("g", "t", (1, 2))
    old = translate.compose(request_type(Api.DELETE_TOPICS, 4), {"topic_names": ("a", "b")})
    assert [topic.name for topic in lift(Api.DELETE_TOPICS, 4, old).topics] == ["a", "b"]
