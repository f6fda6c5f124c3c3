"""A partition's log on disk: segments of record batches, their indexes, recovery, retention and compaction."""
