-- Size in bytes of the chain's table: all partitions with their indexes. No params. Returns: bigint.
SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_partition_tree('audit_entries')
