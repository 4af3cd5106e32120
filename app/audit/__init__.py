"""The chain: entries, the writer of a shard, and the offline verifier."""
