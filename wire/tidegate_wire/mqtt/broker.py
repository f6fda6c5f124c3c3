"""The sessions of an endpoint and the messages between them: sans-IO, the time is given in.

State is in memory: after a restart no client finds its session present, and nothing is retained. Devices lose nothing
by that: what was acknowledged to them is in the log behind `append`.
"""

from __future__ import annotations

from collections.abc import Callable

from tidegate_wire.mqtt.errors import ProtocolViolationError
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import ProtocolVersion, Subscribe, Subscription, Will
from tidegate_wire.mqtt.reason_codes import ReasonCode
from tidegate_wire.mqtt.retained import Retained, RetainedMessages
from tidegate_wire.mqtt.session import Delivery, QueueBudget, Session, encode_delivery
from tidegate_wire.mqtt.stats import EndpointStats
from tidegate_wire.mqtt.subscriptions import Grant, Subscriptions
from tidegate_wire.mqtt.topics import split_shared

Encoded = dict[tuple[ProtocolVersion, int, tuple[int, ...]], bytes]
"""A QoS 0 message as sent to the first of its subscribers, by version, first byte and identifiers."""


class Broker:
    """Owns all sessions; `publish_will` takes a will whose time has come."""

    def __init__(
        self, limits: EndpointLimits, stats: EndpointStats, publish_will: Callable[[ReceivedMessage], None]
    ) -> None:
        self._limits = limits
        self._stats = stats
        self._publish_will = publish_will
        self._budget = QueueBudget(limits.queued_bytes_total_max)
        self._sessions: dict[str, Session] = {}
        self._away: dict[Session, None] = {}
        """Sessions without a connection, the one left longest ago first."""
        self._subscriptions: Subscriptions[Session] = Subscriptions()
        self._retained = RetainedMessages(limits, stats)

    @property
    def has_subscribers(self) -> bool:
        """Whether any message may have to be delivered."""
        return bool(self._subscriptions)

    def session(self, client_id: str) -> Session | None:
        """The session that a client has, connected or not."""
        return self._sessions.get(client_id)

    def open_session(self, client_id: str, *, clean_start: bool) -> tuple[Session, bool]:
        """The session for a client that connects, without a connection yet, and whether it was there before.

        Raises:
            ProtocolViolationError: as many sessions are connected as may be kept.
        """
        session = self._sessions.get(client_id)
        if session is not None:
            assert session.outlet is None, "a client that takes over has closed the connection before it"
            if clean_start:
                self._end(session)
            else:
                session.will = session.will_due_s = session.ends_at_s = None
                self._away.pop(session, None)
                return session, True
        if len(self._sessions) >= self._limits.sessions_max:
            if not self._away:
                raise ProtocolViolationError(
                    f"{len(self._sessions)} sessions are connected; no more are kept", ReasonCode.QUOTA_EXCEEDED
                )
            self._stats.sessions_evicted += 1
            self._end(next(iter(self._away)))
        session = Session(client_id, self._limits, self._stats, self._budget)
        self._sessions[client_id] = session
        self._stats.sessions_now = len(self._sessions)
        return session, False

    def leave(self, session: Session, *, publish_will: bool, now_s: float) -> None:
        """The client's connection is gone; its will is published, now or after its delay, or dropped."""
        session.outlet = None
        will = session.will
        if not publish_will:
            session.will = will = None
        if session.expiry_interval_s == 0:
            self._end(session)
            return
        session.ends_at_s = now_s + session.expiry_interval_s
        self._away[session] = None
        if will is not None:
            session.will_due_s = now_s + (will.properties.will_delay_interval_s or 0)
            self._publish_due_will(session, now_s)

    def tick(self, now_s: float) -> None:
        """End the sessions and publish the wills that are due."""
        for session in list(self._away):
            if session.ends_at_s is not None and session.ends_at_s <= now_s:
                self._end(session)
            else:
                self._publish_due_will(session, now_s)

    def subscribe(self, session: Session, packet: Subscribe) -> tuple[list[ReasonCode], list[Subscription]]:
        """Grant or refuse each subscription; returns the answers, and the ones that are due retained messages.

        Raises:
            ProtocolViolationError: No Local on a shared subscription.
        """
        answers: list[ReasonCode] = []
        due: list[Subscription] = []
        identifiers = packet.properties.subscription_identifiers
        for subscription in packet.subscriptions:
            topic_filter = subscription.topic_filter
            is_shared = split_shared(topic_filter) is not None
            if is_shared and subscription.no_local:
                raise ProtocolViolationError("No Local on a shared subscription")
            refusal = self._refusal(session, topic_filter)
            if refusal is not None:
                answers.append(refusal)
                continue
            grant = Grant.of(subscription, identifiers)
            is_new = self._subscriptions.add(session, topic_filter, grant)
            session.subscriptions[topic_filter] = grant
            answers.append(ReasonCode(grant.qos))
            if not is_shared and (subscription.retain_handling == 0 or (subscription.retain_handling == 1 and is_new)):
                due.append(subscription)
        return answers, due

    def deliver_retained(self, session: Session, subscription: Subscription, now_s: float) -> None:
        """Give a new subscription the retained messages it matches."""
        grant = session.subscriptions[subscription.topic_filter]
        queued_max = self._limits.queued_messages_max + self._limits.retained_messages_max
        for retained in self._retained.matched_by(subscription.topic_filter, now_s):
            if not (grant.no_local and retained.message.client_id == session.client_id):
                self._deliver(session, grant, retained, now_s, {}, retain=True, queued_max=queued_max)

    def unsubscribe(self, session: Session, topic_filters: tuple[str, ...]) -> list[ReasonCode]:
        """Remove subscriptions; a reason code for each."""
        answers = []
        for topic_filter in topic_filters:
            existed = session.subscriptions.pop(topic_filter, None) is not None
            if existed:
                self._subscriptions.remove(session, topic_filter)
            answers.append(ReasonCode.SUCCESS if existed else ReasonCode.NO_SUBSCRIPTION_EXISTED)
        return answers

    def publish(self, message: ReceivedMessage, now_s: float) -> None:
        """Retain the message if it asks for it, and give it to every subscriber."""
        if message.retain:
            self._retained.update(message, now_s)
        if not self._subscriptions:
            return
        route = self._subscriptions.route(message.topic)
        if not route.targets and not route.groups:
            return
        interval_s = message.message_expiry_interval_s
        entry = Retained(message, None if interval_s is None else now_s + interval_s)
        encoded: Encoded = {}
        queued_max = self._limits.queued_messages_max
        for target in route.targets:
            session = target.subscriber
            grant = target.grant if session.client_id != message.client_id else target.own_grant
            if grant is not None:
                retain = message.retain and grant.retain_as_published
                self._deliver(session, grant, entry, now_s, encoded, retain=retain, queued_max=queued_max)
        for group in route.groups:
            session, grant = group.next()
            retain = message.retain and grant.retain_as_published
            self._deliver(session, grant, entry, now_s, encoded, retain=retain, queued_max=queued_max)

    def _deliver(
        self,
        session: Session,
        grant: Grant,
        entry: Retained,
        now_s: float,
        encoded: Encoded,
        *,
        retain: bool,
        queued_max: int,
    ) -> None:
        message = entry.message
        qos = min(grant.qos, message.qos)
        if qos:
            delivery = Delivery(message, qos, retain, grant.identifiers, entry.expires_at_s)
            session.deliver(delivery, now_s, queued_max=queued_max)
            return
        if session.outlet is None:
            return
        key = (session.outlet.version, 0x30 | retain, grant.identifiers)
        data = encoded.get(key)
        if data is None:
            expiry_s = None if entry.expires_at_s is None else max(1, round(entry.expires_at_s - now_s))
            version, first_byte, identifiers = key
            data = encoded[key] = b"".join(
                encode_delivery(
                    message, version, first_byte=first_byte, identifiers=identifiers, expiry_interval_s=expiry_s
                )
            )
        session.deliver_qos0(data)

    def _refusal(self, session: Session, topic_filter: str) -> ReasonCode | None:
        limits = self._limits
        if len(topic_filter.encode()) > limits.topic_bytes_max or topic_filter.count("/") >= limits.topic_levels_max:
            return ReasonCode.TOPIC_FILTER_INVALID
        if (
            len(session.subscriptions) >= limits.subscriptions_per_session_max
            or len(self._subscriptions) >= limits.subscriptions_max
        ) and topic_filter not in session.subscriptions:
            return ReasonCode.QUOTA_EXCEEDED
        return None

    def _publish_due_will(self, session: Session, now_s: float) -> None:
        if session.will_due_s is not None and session.will_due_s <= now_s:
            will = session.will
            assert will is not None
            session.will = session.will_due_s = None
            self._publish_will(will_message(session.client_id, will))

    def _end(self, session: Session) -> None:
        """Drop the session; a will that still waits goes out now (MQTT 5, section 3.1.2.5)."""
        for topic_filter in session.subscriptions:
            self._subscriptions.remove(session, topic_filter)
        session.subscriptions.clear()
        session.discard()
        self._away.pop(session, None)
        del self._sessions[session.client_id]
        self._stats.sessions_now = len(self._sessions)
        if session.will is not None:
            will, session.will = session.will, None
            self._publish_will(will_message(session.client_id, will))


def will_message(client_id: str, will: Will) -> ReceivedMessage:
    """What a client's will says when its time has come."""
    properties = will.properties
    return ReceivedMessage(
        client_id=client_id,
        topic=will.topic,
        payload=will.payload,
        qos=will.qos,
        retain=will.retain,
        user_properties=properties.user_properties,
        content_type=properties.content_type,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        payload_format_indicator=properties.payload_format_indicator,
        message_expiry_interval_s=properties.message_expiry_interval_s,
    )
