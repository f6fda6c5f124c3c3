"""What can go wrong with a simulated fleet.

TidegateError
+-- ConfigError
|   +-- TraceError                a trace is missing, or is not a CSV of numbers
|   +-- FleetFilesError           ledger or flash are in use, or belong to another fleet
+-- UnreachableError
|   +-- NoTargetAnsweredError     no device ever got a connection
+-- IntegrityError
    +-- FlashDamagedError         a flash file holds something that this program did not write
ValueError
+-- UnexpectedAcknowledgementError    a broker acknowledged what was not sent (its connection is closed)
"""

from __future__ import annotations

from tidegate_wire.errors import ConfigError, IntegrityError, UnreachableError


class TraceError(ConfigError):
    """A trace is missing, or is not a CSV of numbers."""


class FleetFilesError(ConfigError):
    """The ledger or the flash is in use, or belongs to another fleet."""


class NoTargetAnsweredError(UnreachableError):
    """No device of the fleet ever got a connection."""


class FlashDamagedError(IntegrityError):
    """A flash file holds something that this program did not write."""


class UnexpectedAcknowledgementError(ValueError):
    """A broker acknowledged a packet id that the device has not in flight on this connection."""
