"""One client's network connection on the server: sans-IO, from CONNECT to the last packet.

Bytes go in through `receive`; what goes out is gathered and written once a turn, through the `Link` given in. PUBLISH
packets go to the intake, and come back in `acknowledge` when they are safe. A client that breaks the protocol is
closed, with the reason if it speaks MQTT 5; no other client notices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import structlog

from tidegate_wire.mqtt.broker import will_message
from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import PINGRESP, encode
from tidegate_wire.mqtt.errors import MqttError, ProtocolViolationError, UnsupportedVersionError
from tidegate_wire.mqtt.intake import Acks
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    ProtocolVersion,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from tidegate_wire.mqtt.primitives import VARINT_MAX
from tidegate_wire.mqtt.properties import Properties
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode
from tidegate_wire.mqtt.session import Qos2, Session

if TYPE_CHECKING:
    from tidegate_wire.mqtt.server import Server

log = structlog.get_logger()

_V5: Final = ProtocolVersion.V5


class Link(Protocol):
    """The socket of a connection. None of its methods raises: a broken socket is told with `connection_lost`."""

    def write(self, data: bytes) -> None:
        """Send, as soon as the socket takes it."""

    def close(self) -> None:
        """Close, once everything is sent."""

    def close_for_writing(self) -> None:
        """Say that nothing more comes, once everything is sent, and read on."""

    def abort(self) -> None:
        """Close now."""

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffer."""

    def resume_reading(self) -> None:
        """Read again."""


class ServerConnection:
    """Compared by identity. Time is given in, in seconds of any monotonic clock."""

    def __init__(self, server: Server, link: Link, *, peer: str, now_s: float) -> None:
        limits = server.limits
        self.client_id = ""
        self.version = ProtocolVersion.V311
        self.send_window = limits.inflight_max
        self.packet_bytes_max = VARINT_MAX + 5
        self.writable = True
        self._server = server
        self._link = link
        self._peer = peer
        self._decoder = Decoder(packet_bytes_max=limits.packet_bytes_max, topics=server.topics)
        self._session: Session | None = None
        """Set by CONNECT, and kept when the connection is closed: acknowledgements may still be due to it."""
        self._closed = False
        self._closed_at_s = 0.0
        self._waits_for_intake = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._keep_alive_timeout_s = 0.0
        self._accepted_at_s = now_s
        self._last_received_s = now_s
        self._unwritable_since_s = now_s
        self._unacknowledged = 0
        """QoS 1 messages received and not acknowledged."""
        self._aliases: dict[int, str] = {}

    # What the socket tells

    def receive(self, data: bytes, now_s: float) -> None:
        """Take bytes in from the socket."""
        if self._closed:
            return
        self._last_received_s = now_s
        self._server.stats.bytes_received += len(data)
        self._decoder.append(data)
        self._advance(now_s)

    def connection_lost(self, now_s: float) -> None:
        """The socket is gone."""
        self._finish("connection lost", now_s)

    def pause_writing(self, now_s: float) -> None:
        """The socket holds more than it should: read nothing more from this client, and send no more than we must."""
        self.writable = False
        self._unwritable_since_s = now_s
        if not self._closed:
            self._link.pause_reading()

    def resume_writing(self, now_s: float) -> None:
        """The socket took what it held."""
        self.writable = True
        if self._closed:
            return
        if self._session is not None:
            self._session.send_queued(now_s)
        self._read_on(now_s)

    def tick(self, now_s: float) -> None:
        """Close what took too long."""
        limits = self._server.limits
        stats = self._server.stats
        if self._closed:
            if now_s - self._closed_at_s > limits.linger_timeout_ms / 1000:
                self._link.abort()
        elif self._session is None:
            if now_s - self._accepted_at_s > limits.connect_timeout_ms / 1000:
                stats.connect_timeouts += 1
                self._finish("no CONNECT", now_s)
        elif not self.writable:
            if now_s - self._unwritable_since_s > limits.write_stall_timeout_ms / 1000:
                stats.write_stalls += 1
                self._finish("the client does not read", now_s)
                self._link.abort()
        elif (
            self._keep_alive_timeout_s
            and not self._waits_for_intake
            and now_s - self._last_received_s > self._keep_alive_timeout_s
        ):
            stats.keep_alive_timeouts += 1
            self.disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT, "keep alive timeout", now_s)

    # What the endpoint tells

    def disconnect(self, reason: ReasonCode, text: str, now_s: float, *, explanation: str | None = None) -> None:
        """Close from our side; an MQTT 5 client is told why."""
        if self._closed:
            return
        linger = self.version is _V5 and self._session is not None
        if linger:
            packet = encode(Disconnect(reason_code=reason, properties=Properties(reason_string=explanation)), _V5)
            if len(packet) <= self.packet_bytes_max:
                self.send(packet)
        self._finish(text, now_s, linger=linger)

    def shut_down(self, now_s: float) -> None:
        """Close because the server ends; no will is published, since it is not the client that fails."""
        if self._session is not None:
            self._session.will = None
        self.disconnect(ReasonCode.SERVER_SHUTTING_DOWN, "server shutting down", now_s)

    def acknowledge(self, acks: Acks) -> None:
        """Everything in `acks` is safe: PUBACK and PUBREC."""
        session = self._session
        assert session is not None, "only a connected client publishes"
        for packet_id in acks.pubrecs:
            session.store_qos2(packet_id)
        self._unacknowledged -= len(acks.pubacks)
        if self._closed:
            return
        pubrecs = acks.pubrecs
        if acks.repeated:
            pubrecs = pubrecs + [number for number in acks.repeated if session.qos2_state(number) is Qos2.STORED]
        if acks.pubacks:
            self.send(b"\x40\x02" + b"\x40\x02".join(acks.pubacks))
        if pubrecs:
            self.send(b"".join([b"\x50\x02" + packet_id.to_bytes(2, "big") for packet_id in pubrecs]))
        self._server.stats.acks_sent += len(acks.pubacks) + len(pubrecs)

    def abandon(self, acks: Acks, now_s: float) -> None:
        """Nothing in `acks` is safe: the client is to send it again, on a new connection."""
        session = self._session
        assert session is not None, "only a connected client publishes"
        for packet_id in acks.pubrecs:
            session.end_qos2(packet_id)
        self.disconnect(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, "append failed", now_s)

    def resume(self, now_s: float) -> None:
        """There is room in the intake again."""
        self._waits_for_intake = False
        self._read_on(now_s)

    # What goes out

    def send(self, data: bytes) -> None:
        """Write when the turn ends, with all else of this turn."""
        if not self._out:
            self._server.unflushed.append(self)
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what was gathered."""
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._link.write(data)

    # What comes in

    def _read_on(self, now_s: float) -> None:
        """Go on where reading paused, and pause again if it must."""
        self._last_received_s = now_s
        self._advance(now_s)
        if not self._closed and self.writable and not self._waits_for_intake:
            self._link.resume_reading()

    def _advance(self, now_s: float) -> None:
        """Handle what the decoder has, until it has no whole packet or the client must wait."""
        decoder = self._decoder
        outbound_bytes_max = self._server.limits.outbound_bytes_max
        try:
            while not self._closed:
                if self._out_bytes > outbound_bytes_max:
                    self.flush()
                if not self.writable:
                    return
                if self._session is not None and decoder.at_publish():
                    if self._server.intake.is_full:
                        self._waits_for_intake = True
                        self._server.intake.pause(self)
                        self._link.pause_reading()
                        return
                    self._take_publishes()
                packet = decoder.next_packet()
                if packet is None:
                    return
                self._handle(packet, now_s)
        except MqttError as error:
            self._fail(error, now_s)

    def _take_publishes(self) -> None:
        """The plain PUBLISH packets at the head, straight into the group that fills."""
        server = self._server
        group = server.intake.open_group()
        messages = group.messages
        messages_before = len(messages)
        messages_max = server.limits.group_messages_max - messages_before
        if self.version is _V5:
            messages_max = min(messages_max, self._receive_allowance())
        acks = group.acks.get(self)
        packet_ids: list[bytes] = [] if acks is None else acks.pubacks
        packet_ids_before = len(packet_ids)
        packet_bytes = self._decoder.take_publishes(
            self.client_id,
            messages,
            packet_ids,
            messages_max=messages_max,
            bytes_max=server.limits.group_bytes_max - group.packet_bytes,
        )
        if packet_bytes:
            if acks is None:
                group.acks[self] = Acks(packet_ids)
            self._unacknowledged += len(packet_ids) - packet_ids_before
            server.intake.count(group, len(messages) - messages_before, packet_bytes)

    def _receive_allowance(self) -> int:
        """QoS 1 and 2 messages that may still come before something is acknowledged (MQTT 5, section 4.9)."""
        assert self._session is not None
        return self._server.limits.receive_maximum - self._unacknowledged - self._session.qos2_count

    def _handle(self, packet: Packet, now_s: float) -> None:
        if isinstance(packet, Connect):
            self._on_connect(packet, now_s)
            return
        session = self._session
        assert session is not None, "the decoder takes nothing before CONNECT"
        match packet:
            case Publish():
                self._on_publish(packet, session)
            case Puback():
                session.acknowledge(packet.packet_id, now_s)
            case Pubrec():
                reason = session.receive(packet.packet_id, packet.reason_code, now_s)
                if reason is not None:
                    code = reason if self.version is _V5 else ReasonCode.SUCCESS
                    self.send(encode(Pubrel(packet_id=packet.packet_id, reason_code=code), self.version))
            case Pubcomp():
                session.complete(packet.packet_id, now_s)
            case Pubrel():
                self._on_pubrel(packet.packet_id, session)
            case Subscribe():
                self._on_subscribe(packet, session, now_s)
            case Unsubscribe():
                answers = self._server.broker.unsubscribe(session, packet.topic_filters)
                codes = tuple(answers) if self.version is _V5 else ()
                self.send(encode(Unsuback(packet_id=packet.packet_id, reason_codes=codes), self.version))
            case Pingreq():
                self.send(PINGRESP)
            case Disconnect():
                self._on_disconnect(packet, session, now_s)
            case _:
                raise ProtocolViolationError(f"a client may not send {type(packet).__name__} here")

    def _on_connect(self, packet: Connect, now_s: float) -> None:
        if self._session is not None:
            raise ProtocolViolationError("a second CONNECT")
        server = self._server
        self.version = packet.version
        self.client_id = client_id = self._choose_client_id(packet)
        if packet.properties.authentication_method is not None:
            raise ProtocolViolationError("enhanced authentication is not offered", ReasonCode.BAD_AUTHENTICATION_METHOD)
        if packet.will is not None:
            self._check_will(packet.will)
        predecessor = server.connections.get(client_id)
        if predecessor is not None:
            server.stats.takeovers += 1
            predecessor.disconnect(ReasonCode.SESSION_TAKEN_OVER, "session taken over", now_s)
        session, present = server.broker.open_session(client_id, clean_start=packet.clean_start)
        session.will = packet.will
        session.expiry_interval_s = self._expiry_interval_s(packet)
        session.outlet = self
        self._session = session
        server.connections[client_id] = self
        self._agree(packet, session, present)
        session.resume(now_s)
        log.debug("mqtt_connected", client_id=client_id, peer=self._peer, session_present=present)
        if server.on_connect is not None:
            server.on_connect(client_id)

    def _choose_client_id(self, packet: Connect) -> str:
        client_id = packet.client_id
        if not client_id:
            if self.version is ProtocolVersion.V311 and not packet.clean_start:
                raise ProtocolViolationError("a session needs a client id", ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
            return self._server.make_client_id()
        if len(client_id.encode()) > self._server.limits.client_id_bytes_max:
            raise ProtocolViolationError(
                f"a client id of more than {self._server.limits.client_id_bytes_max} bytes",
                ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
            )
        return client_id

    def _check_will(self, will: Will) -> None:
        """Refuse a will that could not be published, or that is too large to be kept."""
        self._server.topics.decode(will.topic.encode())
        size = will_message(self.client_id, will).content_bytes
        if size > self._server.limits.will_bytes_max:
            raise ProtocolViolationError(
                f"a will of {size} bytes; at most {self._server.limits.will_bytes_max} are kept",
                ReasonCode.QUOTA_EXCEEDED,
            )

    def _expiry_interval_s(self, packet: Connect) -> int:
        """How long the session may outlive the connection; 3.1.1 knows only not at all and for ever."""
        longest = self._server.limits.session_expiry_max_s
        if self.version is _V5:
            return min(packet.properties.session_expiry_interval_s or 0, longest)
        return 0 if packet.clean_start else longest

    def _agree(self, packet: Connect, session: Session, present: bool) -> None:
        """Send CONNACK, and keep to what it says."""
        limits = self._server.limits
        keep_alive_s = packet.keep_alive_s
        if self.version is ProtocolVersion.V311:
            self._keep_alive_timeout_s = 1.5 * keep_alive_s
            answer = Connack(session_present=present, reason_code=ConnectReturnCode.ACCEPTED)
        else:
            asked = packet.properties
            if not 0 < keep_alive_s <= limits.keep_alive_max_s:
                keep_alive_s = limits.keep_alive_max_s
            self._keep_alive_timeout_s = 1.5 * keep_alive_s
            self.send_window = min(limits.inflight_max, asked.receive_maximum or limits.inflight_max)
            self.packet_bytes_max = asked.maximum_packet_size or self.packet_bytes_max
            expiry_s = session.expiry_interval_s
            granted = Properties(
                session_expiry_interval_s=None if expiry_s == (asked.session_expiry_interval_s or 0) else expiry_s,
                receive_maximum=limits.receive_maximum,
                maximum_packet_size=limits.packet_bytes_max,
                assigned_client_identifier=None if packet.client_id else self.client_id,
                topic_alias_maximum=limits.topic_alias_maximum,
                server_keep_alive_s=None if keep_alive_s == packet.keep_alive_s else keep_alive_s,
            )
            answer = Connack(session_present=present, properties=granted)
        self.send(encode(answer, self.version))

    def _on_publish(self, packet: Publish, session: Session) -> None:
        """A PUBLISH that is not plain: retained, QoS 2, or with properties."""
        properties = packet.properties
        if properties.subscription_identifiers:
            raise ProtocolViolationError("a client's PUBLISH has no subscription identifier")
        topic = self._resolve_alias(packet)
        intake = self._server.intake
        packet_id = packet.packet_id
        if packet.qos == 2 and session.qos2_state(packet_id) is not None:
            self._server.stats.duplicates_answered += 1
            # through the intake, since the first one may not be safe yet
            intake.open_group().acks_for(self).repeated.append(packet_id)
            return
        limits = self._server.limits
        if packet.qos and self.version is _V5 and self._receive_allowance() <= 0:
            raise ProtocolViolationError(
                f"more than {limits.receive_maximum} messages without acknowledgement",
                ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
            )
        if packet.qos == 2 and self._server.stats.qos2_now >= limits.qos2_total_max:
            raise ProtocolViolationError(
                f"{limits.qos2_total_max} QoS 2 messages of all clients wait for PUBREL", ReasonCode.QUOTA_EXCEEDED
            )
        group = intake.add(
            ReceivedMessage(
                self.client_id,
                topic,
                packet.payload,
                packet.qos,
                packet.retain,
                packet.dup,
                packet_id,
                properties.user_properties,
                properties.content_type,
                properties.response_topic,
                properties.correlation_data,
                properties.payload_format_indicator,
                properties.message_expiry_interval_s,
            )
        )
        acks = group.acks_for(self)
        if packet.qos == 1:
            self._unacknowledged += 1
            acks.pubacks.append(packet_id.to_bytes(2, "big"))
        elif packet.qos == 2:
            session.begin_qos2(packet_id)
            acks.pubrecs.append(packet_id)

    def _resolve_alias(self, packet: Publish) -> str:
        """The topic of a PUBLISH, by its name or its alias (MQTT 5, section 3.3.2.3.4)."""
        alias = packet.properties.topic_alias
        if alias is None:
            return packet.topic
        if alias > self._server.limits.topic_alias_maximum:
            raise ProtocolViolationError(
                f"topic alias {alias}; at most {self._server.limits.topic_alias_maximum} was granted",
                ReasonCode.TOPIC_ALIAS_INVALID,
            )
        if packet.topic:
            self._aliases[alias] = packet.topic
        elif alias not in self._aliases:
            raise ProtocolViolationError(f"topic alias {alias} was never set")
        return self._aliases[alias]

    def _on_pubrel(self, packet_id: int, session: Session) -> None:
        state = session.qos2_state(packet_id)
        if state is Qos2.APPENDING:
            raise ProtocolViolationError("PUBREL before PUBREC")
        reason = ReasonCode.SUCCESS
        if state is None and self.version is _V5:
            reason = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        session.end_qos2(packet_id)
        self.send(encode(Pubcomp(packet_id=packet_id, reason_code=reason), self.version))

    def _on_subscribe(self, packet: Subscribe, session: Session, now_s: float) -> None:
        broker = self._server.broker
        answers, due = broker.subscribe(session, packet)
        if self.version is ProtocolVersion.V311:
            answers = [ReasonCode.UNSPECIFIED_ERROR if answer.is_error else answer for answer in answers]
        self.send(encode(Suback(packet_id=packet.packet_id, reason_codes=tuple(answers)), self.version))
        for subscription in due:
            broker.deliver_retained(session, subscription, now_s)

    def _on_disconnect(self, packet: Disconnect, session: Session, now_s: float) -> None:
        expiry_s = packet.properties.session_expiry_interval_s
        if expiry_s is not None:
            if expiry_s and not session.expiry_interval_s:
                raise ProtocolViolationError("DISCONNECT prolongs a session that CONNECT ended with the connection")
            session.expiry_interval_s = min(expiry_s, self._server.limits.session_expiry_max_s)
        publish_will = packet.reason_code is not ReasonCode.SUCCESS
        self._finish("disconnect", now_s, publish_will=publish_will)

    # The end

    def _fail(self, error: MqttError, now_s: float) -> None:
        """The client broke the protocol."""
        stats = self._server.stats
        log.info(
            "mqtt_protocol_error",
            client_id=self.client_id,
            peer=self._peer,
            reason=error.reason_code.name,
            error=str(error),
        )
        if self._session is not None:
            stats.protocol_errors += 1
            self.disconnect(error.reason_code, "protocol error", now_s, explanation=str(error))
            return
        version = self._decoder.version
        if isinstance(error, UnsupportedVersionError):
            version = _V5 if error.level > _V5 else ProtocolVersion.V311
        if version is None:
            stats.protocol_errors += 1
        else:
            stats.connections_refused += 1
            reason = error.reason_code if version is _V5 else ConnectReturnCode.for_reason(error.reason_code)
            self.send(encode(Connack(reason_code=reason), version))
        self._finish("refused", now_s, linger=version is not None)

    def _finish(self, text: str, now_s: float, *, publish_will: bool = True, linger: bool = False) -> None:
        """Close, once, and leave the session. `linger` reads on, and drops what comes, until the client closes too:
        a socket closed with unread bytes is reset, and the client would lose our last packet.
        """
        if self._closed:
            return
        self._closed = True
        self._closed_at_s = now_s
        server = self._server
        server.intake.forget(self)
        self.flush()
        if linger:
            self._link.close_for_writing()
        else:
            self._link.close()
        session = self._session
        if session is None:
            return
        del server.connections[self.client_id]
        server.broker.leave(session, publish_will=publish_will, now_s=now_s)
        log.debug("mqtt_disconnected", client_id=self.client_id, peer=self._peer, reason=text)
        if server.on_disconnect is not None:
            server.on_disconnect(self.client_id, text)
