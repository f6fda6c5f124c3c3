"""What Kafka's error codes mean to someone who reads a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from tidegate.errors import (
    CommitRefusedError,
    ConfigError,
    IntegrityError,
    RefusedError,
    TidegateError,
    UnknownStreamError,
    UnreachableError,
)

# librdkafka's own codes begin with an underscore; there are no other names for them.
_UNREACHABLE: Final = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
    }
)
_REFUSED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
_NO_LONGER_OURS: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
    }
)
_UNKNOWN_STREAM: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_DAMAGED: Final = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG})


def is_refusal(error: KafkaError) -> bool:
    """Whether trying again is no use: someone must change a right or a setting first."""
    return error.code() in _REFUSED


def is_passing(error: KafkaError) -> bool:
    """Whether librdkafka mends it by itself, given time."""
    return not error.fatal() and (error.retriable() or error.code() in _UNREACHABLE)


@contextmanager
def translated(core: str) -> Iterator[None]:
    """Raise the SDK's errors for those of the Kafka client.

    Raises:
        TidegateError: the one of its subclasses that says what the code means.
    """
    try:
        yield
    except KafkaException as exception:
        raise _translate(exception.args[0], core) from exception


def _translate(error: KafkaError, core: str) -> TidegateError:
    code, words = error.code(), error.str()
    if code in _UNREACHABLE:
        return UnreachableError(
            f"the core at {core} does not answer: {words}",
            hint="is it running, and is the address right? `tidegate core --help` shows how to start one",
        )
    if code == KafkaError._INVALID_ARG:
        return ConfigError(f"client_options: {words}")
    if code in _UNKNOWN_STREAM:
        return UnknownStreamError(f"the core at {core} has no such stream any more: {words}")
    if code in _NO_LONGER_OURS:
        return CommitRefusedError(
            f"the group has moved on: {words}",
            hint="handle events idempotently: those that were not committed are delivered again",
        )
    if code in _DAMAGED:
        return IntegrityError(
            f"a record batch from {core} is damaged: {words}", hint="check the disk and the log of the core node"
        )
    if code in _REFUSED:
        return RefusedError(f"the core at {core} refused: {words}", hint="check the credentials and the rights")
    return RefusedError(f"the core at {core} answered with an error: {words} ({error.name()})")
