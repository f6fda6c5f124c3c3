"""Kafka request and response frames, for the core (server) and the bridge (client). Needs kio."""
