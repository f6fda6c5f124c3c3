"""What each Kafka request does; one module a subject, one function an API."""
