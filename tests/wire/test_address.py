from __future__ import annotations

import pytest

from tidegate_wire.address import Address, AddressError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1883", "127.0.0.1", 1883),
        ("localhost:0", "localhost", 0),
        ("[::1]:9092", "::1", 9092),
        (" edge-3.example:65535 ", "edge-3.example", 65535),
    ],
)
def test_host_port_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert address == Address(host, port)
    assert str(address) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "localhost", ":1883", "localhost:", "::1:9092", "a b:1", "h:65536", "h:-1", "h:1x"]
)
def test_other_text_is_refused_with_the_text_in_the_message(text: str) -> None:
    with pytest.raises(AddressError) as refusal:
        Address.parse(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://broker", Address("broker", 1883)),
        ("mqtt://broker:1884/", Address("broker", 1884)),
        ("mqtt://[::1]", Address("::1", 1883)),
        ("mqtt://[::1]:1884", Address("::1", 1884)),
    ],
)
def test_an_mqtt_url_has_port_1883_where_none_is_named(text: str, expected: Address) -> None:
    assert Address.parse_mqtt_url(text) == expected


@pytest.mark.parametrize("text", ["broker:1883", "http://broker:1883", "mqtt://", "mqtt:///"])
def test_an_mqtt_url_needs_its_scheme_and_a_host(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse_mqtt_url(text)


def test_a_list_of_addresses_is_separated_by_commas() -> None:
    assert Address.parse_list("a:1,b:2") == (Address("a", 1), Address("b", 2))
    with pytest.raises(AddressError):
        Address.parse_list("a:1,")
