"""Raft for one partition, pull-based (KIP-595), without I/O."""
