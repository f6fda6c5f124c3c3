"""Replication at work: the asyncio shells around `tidegate_core.raft`, and the words of the nodes among themselves."""
