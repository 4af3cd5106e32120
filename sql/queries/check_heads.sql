-- Whether each shard's head is the last entry of its chain. No params. Returns shard, head_seq, same.
SELECT s.shard, s.head_seq,
       s.head_seq < 0 OR EXISTS (
         SELECT FROM audit_entries e WHERE e.shard = s.shard AND e.seq = s.head_seq AND e.hash = s.head_hash) AS same
FROM ledger_shards s ORDER BY s.shard
