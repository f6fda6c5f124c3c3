"""The replicated cluster of partitioned logs that speaks the Kafka protocol."""
