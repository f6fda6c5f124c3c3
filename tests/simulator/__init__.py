"""A whole cluster in one process: seeded, in virtual time, on a network and disks that fail."""
