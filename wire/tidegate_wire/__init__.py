"""The protocols Tidegate speaks, without the parts that speak them.

- `mqtt`: MQTT 3.1.1 and 5 packets, sessions and topic filters (sans-IO), and the asyncio endpoint around them.
- `records`: Kafka record batches (magic 2), written by the edge and moved unchanged by everyone after it.
- `uplink`: the messages between edge and bridge.
- `kafka`: request and response frames; needs the `core` or `bridge` extra, and the edge never imports it.

Nothing here imports another part of Tidegate.
"""
