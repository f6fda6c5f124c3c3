"""Every limit of the endpoint, with the reason for its value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """What one endpoint holds, waits for and takes at most.

    The memory an endpoint can be made to hold is about `held_bytes_max`, plus `retained_bytes_max`, plus
    `queued_bytes_total_max`, plus for each connection one packet of `packet_bytes_max`, one read of 64 KiB,
    `outbound_bytes_max` and one group of `group_bytes_max` above it, plus for each session a will of `will_bytes_max`,
    plus some 10 KiB for each of `subscriptions_max`, plus some 100 bytes for each of `qos2_total_max`.
    """

    connections_max: int = 1_000
    """Sockets at once. A Linux process may open 1,024 files by default; the rest stays for the host program."""
    connect_timeout_ms: int = 10_000
    """From accept to CONNECT; longer is a port scanner or a slow loris. A radio with a 2 s round trip fits well."""
    packet_bytes_max: int = 1_048_576
    """Remaining length of a packet; announced to MQTT 5 clients as Maximum Packet Size. Kafka takes records of about
    1 MB by default, so that a larger event could not leave the edge."""
    client_id_bytes_max: int = 256
    """MQTT 3.1.1 asks servers for at least 23; device ids made of a UUID and a path fit into 256."""
    topic_bytes_max: int = 1_024
    """UTF-8 bytes of a topic name or filter. Real ones have less than 200; the specification allows 65,535."""
    topic_levels_max: int = 32
    """Levels of a topic name or filter: the trie that matches them is as deep as this."""
    subscriptions_per_session_max: int = 1_000
    """Filters of one session; a dashboard that names each device of a site one by one fits."""
    subscriptions_max: int = 50_000
    """Filters of all sessions together."""
    will_bytes_max: int = 16_384
    """Topic, payload and properties of a will: it says in a few words that a device is gone."""
    sessions_max: int = 4_000
    """Sessions kept, connected or not. Beyond it the disconnected session that was left longest ago is dropped."""
    session_expiry_max_s: int = 604_800
    """A week. MQTT 3.1.1 sessions without Clean Session never expire by themselves; here they do after this."""
    keep_alive_max_s: int = 3_600
    """MQTT 5 clients that ask for more, or for 0 (none), are told this as Server Keep Alive; so half-open connections
    are noticed within 90 minutes. MQTT 3.1.1 has no way to say so: its clients get what they ask for."""
    receive_maximum: int = 1_024
    """QoS 1 and 2 PUBLISH packets that an MQTT 5 client may have unacknowledged; ten times what clients use."""
    qos2_total_max: int = 262_144
    """QoS 2 messages between PUBLISH and PUBREL, of all sessions together: each is a packet id to be remembered. MQTT
    3.1.1 has no Receive Maximum: a client may use all 65,535 packet ids at once, and paho-mqtt sends everything that it
    has queued before it answers the first PUBREC. Beyond it, the client that sends one more is closed."""
    topic_alias_maximum: int = 64
    """Topic aliases a client may set on one connection; a device has few topics."""
    group_messages_max: int = 5_000
    """Messages of one call of `append`; more would not make a commit cheaper, only acknowledgements later."""
    group_bytes_max: int = 4_194_304
    """Packet bytes of one call of `append`; a group may pass it by one packet."""
    held_bytes_max: int = 33_554_432
    """Bytes received and not yet appended; beyond it, publishing connections are not read. A second of a full
    gigabit link would be 120 MB; a disk that stalls for longer is to be felt by the devices, not by our memory."""
    inflight_max: int = 100
    """QoS 1 and 2 messages sent to a subscriber and not yet acknowledged, unless its Receive Maximum is lower."""
    queued_messages_max: int = 1_000
    """QoS 1 and 2 messages that wait for one session, connected or not. The newest is dropped, and counted."""
    queued_bytes_max: int = 4_194_304
    """Topic and payload bytes that wait for one session."""
    queued_bytes_total_max: int = 67_108_864
    """The same, of all sessions together."""
    outbound_bytes_max: int = 1_048_576
    """Bytes written to one connection that its socket has not taken. Beyond it the connection is not read, QoS 0
    messages for it are dropped and counted, and others wait in the session."""
    write_stall_timeout_ms: int = 30_000
    """A connection that stays above `outbound_bytes_max` for so long is closed: its client does not read."""
    linger_timeout_ms: int = 1_000
    """How long a connection that we close with a word is read on, so that the word is not lost to a reset: a client
    that is still sending learns why."""
    retained_messages_max: int = 10_000
    """Retained messages; a new topic beyond it is not retained, and counted."""
    retained_bytes_max: int = 16_777_216
    """Topic and payload bytes of all retained messages."""
