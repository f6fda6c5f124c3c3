"""Hypothesis strategies for every packet of both versions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tidegate_wire.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    ProtocolVersion,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from tidegate_wire.mqtt.properties import _PROPERTIES, NO_PROPERTIES, WILL, PacketType, Properties, _Kind
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
topic_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
payloads = st.binary(max_size=200)
packet_ids = st.integers(1, 65_535)
qualities = st.integers(0, 2)
reasons = st.sampled_from(ReasonCode)

_levels = st.one_of(st.just("+"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#/$")))
topic_filters = st.builds(
    lambda levels, tail, share: f"{share}{'/'.join([*levels, *tail])}",
    st.lists(_levels, min_size=1, max_size=4).filter(lambda levels: levels != [""]),
    st.sampled_from([[], ["#"]]),
    st.sampled_from(["", "$share/group/"]),
)

_VALUES: dict[_Kind, st.SearchStrategy[Any]] = {
    _Kind.FLAG: st.integers(0, 1),
    _Kind.U16: st.integers(1, 65_535),
    _Kind.U32: st.integers(1, 2**32 - 1),
    _Kind.VARINT: st.integers(1, 268_435_455),
    _Kind.STRING: texts,
    _Kind.BINARY: payloads,
    _Kind.PAIR: st.tuples(texts, texts),
}


@st.composite
def properties(draw: st.DrawFn, packet: int, version: ProtocolVersion) -> Properties:
    if version is ProtocolVersion.V311:
        return NO_PROPERTIES
    fields: dict[str, Any] = {}
    for entry in _PROPERTIES:
        if packet in entry.packets and draw(st.booleans()):
            value = _VALUES[entry.kind]
            if entry.name == "response_topic":
                value = topic_names
            if entry.may_repeat:
                most = 1 if packet == PacketType.SUBSCRIBE and entry.name == "subscription_identifiers" else 3
                value = st.lists(value, max_size=most).map(tuple)
            fields[entry.name] = draw(value)
    if "authentication_data" in fields:
        fields.setdefault("authentication_method", "m")
    return Properties(**fields) if fields else NO_PROPERTIES


@st.composite
def connects(draw: st.DrawFn, version: ProtocolVersion) -> Connect:
    username = draw(st.none() | texts)
    may_have_password = username is not None or version is ProtocolVersion.V5
    will = Will(
        topic=draw(topic_names),
        payload=draw(payloads),
        qos=draw(qualities),
        retain=draw(st.booleans()),
        properties=draw(properties(WILL, version)),
    )
    return Connect(
        client_id=draw(texts),
        version=version,
        clean_start=draw(st.booleans()),
        keep_alive_s=draw(st.integers(0, 65_535)),
        will=draw(st.none() | st.just(will)),
        username=username,
        password=draw(st.none() | payloads) if may_have_password else None,
        properties=draw(properties(PacketType.CONNECT, version)),
    )


@st.composite
def publishes(draw: st.DrawFn, version: ProtocolVersion) -> Publish:
    qos = draw(qualities)
    given = draw(properties(PacketType.PUBLISH, version))
    names = st.just("") | topic_names if given.topic_alias is not None else topic_names
    return Publish(
        topic=draw(names),
        payload=draw(payloads),
        qos=qos,
        retain=draw(st.booleans()),
        dup=draw(st.booleans()) if qos else False,
        packet_id=draw(packet_ids) if qos else 0,
        properties=given,
    )


@st.composite
def subscribes(draw: st.DrawFn, version: ProtocolVersion) -> Subscribe:
    v5 = version is ProtocolVersion.V5
    options: dict[str, st.SearchStrategy[Any]] = {}
    if v5:
        options = {
            "no_local": st.booleans(),
            "retain_as_published": st.booleans(),
            "retain_handling": st.integers(0, 2),
        }
    entry = st.builds(Subscription, topic_filter=topic_filters, qos=qualities, **options)
    return Subscribe(
        packet_id=draw(packet_ids),
        subscriptions=tuple(draw(st.lists(entry, min_size=1, max_size=4))),
        properties=draw(properties(PacketType.SUBSCRIBE, version)),
    )


def packets(version: ProtocolVersion) -> st.SearchStrategy[Packet]:
    """Any packet that `version` has, but CONNECT."""
    v5 = version is ProtocolVersion.V5
    reason = reasons if v5 else st.just(ReasonCode.SUCCESS)

    def of(kind: PacketType) -> st.SearchStrategy[Properties]:
        return properties(kind, version)

    codes = st.lists(reasons, min_size=1, max_size=4).map(tuple)
    filters = st.lists(topic_filters, min_size=1, max_size=4).map(tuple)
    common: list[st.SearchStrategy[Packet]] = [
        publishes(version),
        subscribes(version),
        st.builds(
            Connack,
            session_present=st.booleans(),
            reason_code=reasons if v5 else st.sampled_from(ConnectReturnCode),
            properties=of(PacketType.CONNACK),
        ),
        st.builds(Puback, packet_id=packet_ids, reason_code=reason, properties=of(PacketType.PUBACK)),
        st.builds(Pubrec, packet_id=packet_ids, reason_code=reason, properties=of(PacketType.PUBREC)),
        st.builds(Pubrel, packet_id=packet_ids, reason_code=reason, properties=of(PacketType.PUBREL)),
        st.builds(Pubcomp, packet_id=packet_ids, reason_code=reason, properties=of(PacketType.PUBCOMP)),
        st.builds(Suback, packet_id=packet_ids, reason_codes=codes, properties=of(PacketType.SUBACK)),
        st.builds(Unsubscribe, packet_id=packet_ids, topic_filters=filters, properties=of(PacketType.UNSUBSCRIBE)),
        st.builds(
            Unsuback,
            packet_id=packet_ids,
            reason_codes=codes if v5 else st.just(()),
            properties=of(PacketType.UNSUBACK),
        ),
        st.just(Pingreq()),
        st.just(Pingresp()),
        st.builds(Disconnect, reason_code=reason, properties=of(PacketType.DISCONNECT)),
    ]
    if v5:
        common.append(st.builds(Auth, reason_code=reason, properties=of(PacketType.AUTH)))
    return st.one_of(common)
