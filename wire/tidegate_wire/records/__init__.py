"""Kafka record batches (magic 2): headers, building, reading, compression."""
