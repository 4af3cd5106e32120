-- Full tiles of leaf hashes, packed: a proof reads two pages in place of the thirty that 256 entries lie in.
-- service: credits
-- migrate: compatible
--
-- The signer packs a tile with the checkpoint that completes it: 32 bytes an entry. Tiles of entries that were signed before
-- this migration are not packed; proofs read those entries as before. SELECT pack_leaf_tiles(shard, 0, size) packs them.

CREATE TABLE audit_leaf_tiles (
  shard  smallint NOT NULL,
  number bigint NOT NULL CHECK (number >= 0),           -- of the tile: entries number * 256 to before (number + 1) * 256
  hashes bytea NOT NULL CHECK (length(hashes) = 8192),  -- 256 of 32 bytes
  PRIMARY KEY (shard, number)
);
ALTER TABLE audit_leaf_tiles ALTER hashes SET STORAGE EXTERNAL;  -- hashes cannot be compressed
GRANT SELECT, INSERT ON audit_leaf_tiles TO shieldx_app;

-- Pack the full tiles of the entries from the tile of `low_size` to before `high_size` that are not packed yet.
CREATE FUNCTION pack_leaf_tiles(of_shard smallint, low_size bigint, high_size bigint) RETURNS void
LANGUAGE sql SET enable_seqscan = off AS $$
  INSERT INTO audit_leaf_tiles (shard, number, hashes)
  SELECT of_shard, e.seq / 256, string_agg(e.hash, ''::bytea ORDER BY e.seq)
  FROM audit_entries AS e
  WHERE e.shard = of_shard AND e.seq >= low_size / 256 * 256 AND e.seq < high_size / 256 * 256
  GROUP BY e.seq / 256 HAVING count(*) = 256
  ON CONFLICT (shard, number) DO NOTHING
$$;
REVOKE ALL ON FUNCTION pack_leaf_tiles FROM public;
GRANT EXECUTE ON FUNCTION pack_leaf_tiles TO shieldx_app;

-- As before, and packs the tiles that the checkpoint completes.
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
  PERFORM pack_leaf_tiles(of_shard, greatest(old_size, 0), new_size);
  INSERT INTO audit_checkpoints (shard, size, root, note, signers, epoch)
  VALUES (of_shard, new_size, new_root, signed_note, signed_by, writer_epoch);
END $$;

-- What tree_runs gives, for proofs: runs that lie in one packed tile are taken from there. The signer and the verifier read
-- the entries themselves.
CREATE FUNCTION proof_runs(of_shard smallint, levels int[], lows bigint[], highs bigint[])
RETURNS SETOF bytea LANGUAGE plpgsql STABLE SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  run bytea;
BEGIN
  FOR i IN 1 .. coalesce(array_length(levels, 1), 0) LOOP
    run := NULL;
    IF levels[i] = 0 AND highs[i] <= (lows[i] / 256 + 1) * 256 THEN
      SELECT substr(t.hashes, (lows[i] % 256)::int * 32 + 1, (highs[i] - lows[i])::int * 32) INTO run
      FROM audit_leaf_tiles AS t WHERE t.shard = of_shard AND t.number = lows[i] / 256;
    END IF;
    IF run IS NULL THEN
      SELECT r.run INTO run FROM tree_runs(of_shard, levels[i:i], lows[i:i], highs[i:i]) AS r (run);
    END IF;
    RETURN NEXT run;
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION proof_runs FROM public;
GRANT EXECUTE ON FUNCTION proof_runs TO shieldx_app;
