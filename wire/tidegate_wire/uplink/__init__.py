"""The messages between edge and bridge, over any MQTT 3.1.1 broker.

An edge publishes under `tidegate/v1/{edge}/`: `hello` when it connects, `batch` for events, and `presence` (retained,
with a last will). A bridge answers under the same prefix: `welcome` to a hello, `ack` to each batch; `config` and
`command` carry what an operator wants of the edge. The acknowledgement is a message of its own because a PUBACK only
says that the broker in between has the batch; an `ack` says that the core committed it.
"""
