"""Which Kafka error a client is told for which exception: the one place where that is decided."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from tidegate_core.errors import InvalidLogConfig, PartitionError, PartitionExists
from tidegate_wire.kafka.messages import ErrorCode

_log = structlog.get_logger()


class KafkaError(Exception):
    """A request, or a part of one, that is refused: the error code and the text for the client."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Refusal(NamedTuple):
    """An error as it stands in a response."""

    code: ErrorCode
    message: str | None


ACCEPTED = Refusal(ErrorCode.none, None)


def refusal_of(error: Exception) -> Refusal:
    """The error code and message for an exception of the storage or of a handler.

    Whatever has no code of its own is our own mistake: it is logged with its traceback, and the client is told
    UNKNOWN_SERVER_ERROR.
    """
    if isinstance(error, KafkaError):
        return Refusal(error.code, str(error))
    if isinstance(error, PartitionError | PartitionExists | InvalidLogConfig):
        return Refusal(_code(error.kafka_error), str(error))
    _log.error("request_failed", exc_info=error)
    return Refusal(ErrorCode.unknown_server_error, "the node's own mistake; its log says more")


def _code(kafka_error: str) -> ErrorCode:
    return ErrorCode[kafka_error.lower()]
