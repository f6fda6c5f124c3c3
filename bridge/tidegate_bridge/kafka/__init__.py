"""A small Kafka client: leader look-up, ready-made record batches out, and a compacted topic read to its end.

It keeps to the public protocol, so that the core may be this project's or any Apache Kafka from 2.4 on.

    api.py           the requests and responses other than Produce, as functions and plain values
    produce.py       Produce by hand: the batch's bytes are passed on, not copied into a message
    cluster.py       who leads which partition, from Metadata responses (sans-IO)
    connection.py    one TCP connection: requests pipelined, answers in order
    client.py        connections, reconnects, metadata refresh
"""
