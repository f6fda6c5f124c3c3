"""HOST:PORT and mqtt://HOST:PORT as people type them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MQTT_PORT: Final = 1883
"""The port IANA registered for MQTT without TLS."""

_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")
_PORT_MAX: Final = 65535


class AddressError(ValueError):
    """The text is not an address; the message says what one looks like."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A TCP address. Port 0 asks the kernel for a free port when listening."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT`; an IPv6 host stands in brackets.

        Raises:
            AddressError: the text has another form, or the port is above 65535.
        """
        match = _HOST_PORT.fullmatch(text.strip())
        if match is None:
            raise AddressError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:1883 or [::1]:1883")
        port = int(match["port"])
        if port > _PORT_MAX:
            raise AddressError(f"{text!r}: a port is at most {_PORT_MAX}")
        return cls(match["host"].strip("[]"), port)

    @classmethod
    def parse_list(cls, text: str) -> tuple[Address, ...]:
        """Read `HOST:PORT[,HOST:PORT...]`; at least one.

        Raises:
            AddressError: one of the parts is not an address.
        """
        return tuple(cls.parse(part) for part in text.split(","))

    @classmethod
    def parse_mqtt_url(cls, text: str) -> Address:
        """Read `mqtt://HOST[:PORT]`; the port is 1883 where none is named.

        Raises:
            AddressError: the scheme is not mqtt, or the rest is not an address.
        """
        scheme, separator, rest = text.strip().partition("://")
        if scheme != "mqtt" or not separator:
            raise AddressError(f"{text!r} is not mqtt://HOST:PORT, for example mqtt://127.0.0.1:1883")
        rest = rest.rstrip("/")
        has_port = re.search(r":[0-9]+$", rest) is not None and not rest.endswith("]")
        return cls.parse(rest if has_port else f"{rest}:{MQTT_PORT}")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
