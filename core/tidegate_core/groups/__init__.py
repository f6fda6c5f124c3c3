"""Consumer groups: the classic rebalance protocol and committed offsets, kept in `__consumer_offsets`."""
