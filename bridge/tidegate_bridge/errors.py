"""What can go wrong between a bridge and its core.

TidegateError
+-- CoreUnreachable (UnreachableError)   no connection, or no answer in time; try again later
+-- CoreRefused (RefusedError)           the core answered with an error code
+-- CoreTooOld (RefusedError)            the core does not speak a version that the bridge needs
+-- BridgeConfigError (ConfigError)      settings that contradict each other
"""

from __future__ import annotations

from tidegate_wire.errors import ConfigError, RefusedError, UnreachableError
from tidegate_wire.kafka.messages import ErrorCode


class CoreUnreachable(UnreachableError):  # noqa: N818  # says what happened
    """No node of the core can be connected to, or one did not answer in time."""


class CoreRefused(RefusedError):  # noqa: N818  # says what happened
    """The core answered a request with an error code."""

    def __init__(self, message: str, code: ErrorCode, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class CoreTooOld(RefusedError):  # noqa: N818  # says what happened
    """The core does not speak a version of the Kafka protocol that the bridge needs."""


class BridgeConfigError(ConfigError):
    """Settings that contradict each other."""
