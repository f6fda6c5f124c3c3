"""From the uplink to the core: checks batches and produces them, unchanged."""
