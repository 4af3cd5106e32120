-- What a proof reads, in one round trip: whether a tree of this size is under a checkpoint, its root if it has one of its
-- own, and runs of hashes. With them what tells one history of the ledger from another that was put into its place: a
-- restore makes a new database, a failover or a restore of the whole cluster another start of the server.
-- Params: $1 shard smallint, $2 size bigint, $3 levels int[], $4 lows bigint[], $5 highs bigint[].
SELECT
  (SELECT d.oid::text FROM pg_database d WHERE d.datname = current_database()) || ' ' || pg_postmaster_start_time() AS history,
  EXISTS (SELECT FROM audit_checkpoints c WHERE c.shard = $1 AND c.size >= $2) AS published,
  (SELECT c.root FROM audit_checkpoints c WHERE c.shard = $1 AND c.size = $2 ORDER BY c.signed_at DESC LIMIT 1) AS root,
  ARRAY(SELECT t.run FROM proof_runs($1, $3, $4, $5) AS t (run)) AS runs
