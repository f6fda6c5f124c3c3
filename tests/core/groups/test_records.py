from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.groups.driver import subscription
from tidegate_core.groups.messages import StoredGroup, StoredMember
from tidegate_core.groups.offsets_topic import partition_of
from tidegate_core.groups.records import (
    CommittedOffset,
    GroupKey,
    GroupRecordError,
    OffsetKey,
    decode_group,
    decode_key,
    decode_offset,
    encode_group,
    encode_group_key,
    encode_offset,
    encode_offset_key,
)
from tidegate_core.groups.subscription import subscribed_topics

NAMES = st.text(st.characters(codec="utf-8"), max_size=30)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
NULLABLE = st.one_of(st.none(), NAMES)

offsets = st.builds(
    CommittedOffset,
    offset=INT64,
    leader_epoch=INT32,
    metadata=NAMES,
    commit_time_ms=INT64,
    topic_id=st.one_of(st.none(), st.uuids()),
)
members = st.builds(
    StoredMember,
    member_id=NAMES,
    instance_id=NULLABLE,
    client_id=NAMES,
    client_host=NAMES,
    rebalance_timeout_ms=INT32,
    session_timeout_ms=INT32,
    metadata=st.binary(max_size=50),
    assignment=st.binary(max_size=50),
)
groups = st.builds(
    StoredGroup,
    group_id=NAMES,
    protocol_type=NAMES,
    generation=INT32,
    protocol_name=NULLABLE,
    leader_id=NULLABLE,
    state_since_ms=INT64,
    members=st.lists(members, max_size=3).map(tuple),
)


@given(st.builds(OffsetKey, NAMES, NAMES, INT32))
def test_an_offset_key_is_read_back(key: OffsetKey) -> None:
    assert decode_key(encode_offset_key(key)) == key


@given(NAMES)
def test_a_group_key_is_read_back(group_id: str) -> None:
    assert decode_key(encode_group_key(group_id)) == GroupKey(group_id)


@given(offsets)
def test_a_committed_offset_is_read_back(committed: CommittedOffset) -> None:
    assert decode_offset(encode_offset(committed)) == committed


@given(groups)
def test_a_group_is_read_back(group: StoredGroup) -> None:
    assert decode_group(group.group_id, encode_group(group)) == group


def test_the_records_are_laid_out_as_apache_kafka_lays_them_out() -> None:
    """Written out by hand from Kafka's OffsetCommitKey/Value and GroupMetadataKey/Value message definitions."""
    assert encode_offset_key(OffsetKey("g", "t", 3)) == b"\0\1\0\1g\0\1t\0\0\0\3"
    committed = CommittedOffset(offset=7, leader_epoch=2, metadata="m", commit_time_ms=5)
    assert encode_offset(committed) == b"\0\3" + bytes(7) + b"\7\0\0\0\2\0\1m" + bytes(7) + b"\5"
    assert encode_group_key("g") == b"\0\2\0\1g"
    member = StoredMember(
        member_id="m",
        instance_id=None,
        client_id="c",
        client_host="h",
        rebalance_timeout_ms=1,
        session_timeout_ms=2,
        metadata=b"s",
        assignment=b"",
    )
    group = StoredGroup(
        group_id="g",
        protocol_type="consumer",
        generation=4,
        protocol_name="range",
        leader_id="m",
        state_since_ms=6,
        members=(member,),
    )
    assert encode_group(group) == (
        b"\0\3"
        b"\0\x08consumer"
        b"\0\0\0\4"
        b"\0\5range"
        b"\0\1m" + bytes(7) + b"\6" + b"\0\0\0\1"
        b"\0\1m"
        b"\xff\xff"
        b"\0\1c"
        b"\0\1h"
        b"\0\0\0\1"
        b"\0\0\0\2"
        b"\0\0\0\1s"
        b"\0\0\0\0"
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    for decode in (decode_key, decode_offset, lambda value: decode_group("g", value)):
        try:
            decode(data)
        except GroupRecordError:
            continue


@given(groups, st.data())
def test_a_cut_group_is_refused(group: StoredGroup, data: st.DataObject) -> None:
    encoded = encode_group(group)
    end = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(GroupRecordError):
        decode_group("g", encoded[:end])


@pytest.mark.parametrize(
    ("group_id", "java_hash"),
    [
        ("", 0),
        ("hello", 99162322),
        ("Aa", 2112),
        ("BB", 2112),
        ("Hello World", -862545276),
        ("polygenelubricants", -(2**31)),
        ("ü😀", 2015071),  # two UTF-16 units for the second character
    ],
)
def test_a_group_is_kept_where_kafka_would_keep_it(group_id: str, java_hash: int) -> None:
    absolute = 0 if java_hash == -(2**31) else abs(java_hash)
    assert partition_of(group_id, 50) == absolute % 50


def test_the_topics_of_a_subscription_are_read_in_every_version() -> None:
    for version in range(4):
        assert subscribed_topics(subscription("a", "b", version=version)) == {"a", "b"}


@given(st.binary(max_size=40))
def test_any_metadata_is_a_subscription_or_names_no_topics(metadata: bytes) -> None:
    assert isinstance(subscribed_topics(metadata), frozenset)
