"""What the cluster is made of: topics, their settings and producer ids, kept in `__cluster_metadata`."""
