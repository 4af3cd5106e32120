-- Where the legs of a transaction over several shards were settled. Params: $1 transaction id uuid. Returns shard, seq.
SELECT shard, closed_seq FROM credit_reservations WHERE transfer_id = $1 AND status = 'committed' ORDER BY shard, closed_seq
