"""The Kafka protocol as the core speaks it: versions, the hot codecs, and who handles which request."""
