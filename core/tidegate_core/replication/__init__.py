"""Replication at work: the asyncio shells around `tidegate_core.raft`, and what the nodes of a cluster say to each other."""
