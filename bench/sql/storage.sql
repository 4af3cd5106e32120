-- What the ledger's database holds now. No params.
-- Returns: chain_rows bigint (from the heads, without a scan), postgres_bytes bigint (the whole database),
--          wal_bytes bigint (written since the cluster was made).
SELECT
    (SELECT coalesce(sum(head_seq + 1), 0)::bigint FROM ledger_shards) AS chain_rows,
    pg_database_size(current_database()) AS postgres_bytes,
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal_bytes
