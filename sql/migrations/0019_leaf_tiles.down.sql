-- Proofs read the hashes from the entries again; no hash is lost.
CREATE OR REPLACE FUNCTION checkpoint_append(
  of_shard smallint, writer_epoch bigint, old_size bigint, old_root bytea, new_size bigint, new_root bytea,
  signed_note text, signed_by text, level_list text, number_list text, hash_run bytea
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  last record;
BEGIN
  PERFORM pg_advisory_xact_lock(x'53484350'::int, of_shard);  -- "SHCP"
  SELECT size, root INTO last FROM audit_checkpoints WHERE shard = of_shard ORDER BY size DESC LIMIT 1;
  IF coalesce(last.size, -1) <> old_size OR last.root <> old_root OR new_size < old_size
     OR (new_size = old_size AND new_root <> old_root) THEN
    RAISE EXCEPTION 'the last checkpoint of shard % has size %, not %', of_shard, last.size, old_size
      USING ERRCODE = 'serialization_failure';
  END IF;
  IF NOT EXISTS (SELECT FROM ledger_shards WHERE shard = of_shard AND epoch = writer_epoch AND head_seq >= new_size - 1) THEN
    RAISE EXCEPTION 'shard % is not at epoch %, or has no % entries', of_shard, writer_epoch, new_size
      USING ERRCODE = 'serialization_failure';
  END IF;
  INSERT INTO audit_tree (shard, level, number, hash)
  SELECT of_shard, u.level, u.number, substr(hash_run, (u.i::int - 1) * 32 + 1, 32)
  FROM unnest(level_list::smallint[], number_list::bigint[]) WITH ORDINALITY AS u (level, number, i);
  INSERT INTO audit_checkpoints (shard, size, root, note, signers, epoch)
  VALUES (of_shard, new_size, new_root, signed_note, signed_by, writer_epoch);
END $$;

DROP FUNCTION proof_runs;
DROP FUNCTION pack_leaf_tiles;
DROP TABLE audit_leaf_tiles;
