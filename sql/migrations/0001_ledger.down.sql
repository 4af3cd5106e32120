-- Takes the ledger away with everything in it. The role stays: other databases of the cluster may use it.
DROP FUNCTION ensure_partitions(timestamptz, timestamptz, int);
DROP FUNCTION uuid7_floor(timestamptz) CASCADE;
DROP TABLE credit_transfers, credit_answers, credit_refunds, credit_reservations, credit_accounts;
DROP TABLE audit_entries, ledger_shards, ledger;
