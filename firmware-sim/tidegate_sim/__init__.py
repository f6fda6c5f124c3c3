"""Simulated devices: real traces, synthetic signals, flash, power loss, and a ledger of what was acknowledged."""
